"""A lower bound on ε from one training run with many canaries (Steinke, Nasr and Jagielski, 2023).

Each canary is in the training with probability ½, independently. An attacker guesses for some of them whether they are
in. Under (ε, δ)-DP no attacker guesses much better than a coin that is right with probability e^ε / (1 + e^ε); one that
does refutes ε. Any score may rank the canaries: a bad one loses power and never validity. How many guesses are made is
fixed beforehand, and several tests share the confidence (Bonferroni): the best of many would be found too often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArgumentError
from harness.privacy.guesses import ceiling, epsilon_bound

Verdict = Literal["violated", "inconclusive", "consistent"]


@dataclass(frozen=True)
class Question:
    """What one test asks. Private until the audit is over.

    Attributes:
        kind: Of the canaries: ``gradient`` or ``text``.
        score: Name of the score.
        group: Privacy group of the canaries; None: they are of all groups.
        scores: Of each canary, shape [canaries]; higher: rather in.
        included: Whether each is in the training, shape [canaries].
        guesses: Fixed before anything was scored; None: half of the canaries.
    """

    kind: str
    score: str
    group: str | None
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    guesses: int | None = None


@dataclass(frozen=True)
class Test:
    """One test and its answer.

    Attributes:
        kind: Of the canaries.
        score: Name of the score.
        group: Privacy group; None: all.
        canaries: Their number m.
        guesses: Their number r ≤ m, even.
        correct: How many guesses were right, 0 … r.
        bound: ε is at least this with `confidence`; 0: nothing is known.
        ceiling: The bound that r right guesses would have given: no larger ε could have been found.
        confidence: Of this test by itself, in (0, 1); that of all tests together is lower.
    """

    __test__ = False  # pytest

    kind: str
    score: str
    group: str | None
    canaries: int
    guesses: int
    correct: int
    bound: float
    ceiling: float
    confidence: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": self.kind,
            "score": self.score,
            "group": self.group,
            "canaries": self.canaries,
            "guesses": self.guesses,
            "correct": self.correct,
            "bound": self.bound,
            "ceiling": self.ceiling,
            "confidence": self.confidence,
        }


# --- guesses ------------------------------------------------------------------------------------------------


def usable_guesses(guesses: int | None, canaries: int) -> int:
    """How many guesses are made: even, at most one per canary; half of them if nothing is said."""
    wanted = canaries // 2 if guesses is None else min(guesses, canaries)
    return wanted - wanted % 2


def judge(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int) -> int:
    """Guesses "in" for the highest scores and "out" for the lowest, half each, and counts right ones.

    Canaries with equal scores are taken in the order of the array, which knows nothing of who is in. Scores that are
    not finite count as the lowest.

    Args:
        scores: Shape [canaries].
        included: The truth, shape [canaries].
        guesses: r, even, at most the number of canaries.

    Returns:
        v, from 0 to r.
    """
    if guesses % 2 or guesses > len(scores):
        raise ArgumentError(f"guesses must be even and at most one per canary, found {guesses} for {len(scores)}")
    known = np.where(np.isfinite(scores), scores, -np.inf)
    order = np.argsort(known, kind="stable")
    half = guesses // 2
    out, into = order[:half], order[len(order) - half :]
    return int(np.sum(~included[out]) + np.sum(included[into]))


def run_tests(questions: Sequence[Question], delta: float, confidence: float) -> tuple[Test, ...]:
    """Asks all questions so that all bounds hold together with `confidence` (Bonferroni).

    Args:
        questions: All that are asked: one that is dropped after a look at its answer must be counted too.
        delta: δ of the claim.
        confidence: Of all bounds together, in (0, 1).

    Returns:
        A test per question, each at 1 − (1 − confidence) / k for k questions.
    """
    each = 1 - (1 - confidence) / max(1, len(questions))
    tests = []
    for q in questions:
        m = len(q.scores)
        r = usable_guesses(q.guesses, m)
        v = judge(np.asarray(q.scores, dtype=np.float64), np.asarray(q.included, dtype=bool), r)
        bound = epsilon_bound(m, r, v, delta, each)
        tests.append(Test(q.kind, q.score, q.group, m, r, v, bound, ceiling(m, r, delta, each), each))
    return tuple(tests)


def verdict(tests: Sequence[Test], claimed: float) -> Verdict:
    """What the tests say of a claimed ε; there is no "passed", since a weak attack finds nothing either.

    Args:
        tests: Of those for whom ε is claimed: all, or those of one group.
        claimed: The ε; infinity where nothing is claimed.

    Returns:
        ``violated``: a bound lies above the claim. ``inconclusive``: no test could have found a violation, since every
        ceiling lies below the claim. ``consistent``: one could have, and did not.
    """
    if any(t.bound > claimed for t in tests):
        return "violated"
    if not any(t.ceiling >= claimed for t in tests):
        return "inconclusive"
    return "consistent"
