"""What ``audit.json`` says: the largest lower bound on ε that attacks reached, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.privacy.guesses import ceiling, epsilon_bound
from harness.privacy.mechanism import Mechanism
from harness.reporting.leaderboard.files import Refused
from harness.reporting.records import block, number

Verdict = Literal["violated", "inconclusive", "consistent"]
WORST: tuple[Verdict, ...] = ("violated", "inconclusive", "consistent")
MOST_TESTS = 1000
MOST_CANARIES = 100_000
LEAST_SURE = 0.1
"""Of all bounds together: the probability that one of them is wrong. Ours is 0.05."""


@dataclass(frozen=True)
class Audited:
    """The one-run audit of a run.

    Attributes:
        bound: The largest lower bound on ε of all tests; None: no test was run.
        ceiling: The largest bound that perfect guesses would have reached.
        verdict: ``violated``: a bound is above what is claimed; ``inconclusive``: none could have been.
    """

    bound: float | None
    ceiling: float | None
    verdict: Verdict | None


def audited(
    document: Mapping[str, Any] | None,
    claimed: float | None,
    delta: float | None,
    groups: Mapping[str, float],
    planted: Mapping[str, int],
) -> Audited | None:
    """The audit of a run; None: there is none.

    Every bound is computed again from its counts; one above the claim is a violation, whatever the file calls it.

    Args:
        document: ``audit.json``.
        claimed: ε of the run; None: it claims none, so that nothing can be violated.
        delta: Its δ.
        groups: ε of each group's users: a test of one group is held against its own.
        planted: Canaries of each group, as the mechanism counts them.

    Raises:
        Refused: The file is none of an audit, or contradicts itself or the run.
    """
    if document is None:
        return None
    if document.get("version") != 1:
        raise Refused("audit.json is of no known version")
    stated = number(block(document, "claimed").get("epsilon"))
    if (stated is None) != (claimed is None) or (
        stated is not None and claimed is not None and abs(stated - claimed) > 1e-9 * claimed
    ):
        raise Refused("audit.json is about another ε than privacy.json claims")
    tests = document.get("one_run") or []
    if not isinstance(tests, list) or len(tests) > MOST_TESTS or not all(isinstance(t, dict) for t in tests):
        raise Refused("audit.json: one_run should be a list of tests")
    said = number(block(document, "claimed").get("delta"))
    if said != delta:
        raise Refused("audit.json is about another δ than privacy.json claims")
    found = [_recomputed(test, delta or 0.0) for test in tests]
    for test in tests if any(planted.values()) else ():
        group = test.get("group")
        if test["canaries"] > (planted.get(group, 0) if isinstance(group, str) else sum(planted.values())):
            raise Refused("audit.json: a test has more canaries than the mechanism counts")
    bounds, ceilings = [bound for bound, _ in found], [highest for _, highest in found]
    if sum(1 - float(test["confidence"]) for test in tests) > LEAST_SURE + 1e-9:
        raise Refused(f"audit.json: its bounds together hold with a confidence below {1 - LEAST_SURE:g}")
    verdict = document.get("verdict")
    if verdict is not None and verdict not in WORST:
        raise Refused("audit.json has no known verdict")
    most, highest = max(bounds, default=None), max(ceilings, default=None)
    claims = [_claim(test, claimed, groups) for test in tests]
    return Audited(most, highest, _verdict(list(zip(found, claims, strict=True)), verdict, claimed))


def planted_of(mechanism: Mechanism) -> dict[str, int]:
    """Canaries of each group."""
    return {group.name: group.canaries for group in mechanism.groups}


def as_shown(
    document: Mapping[str, Any], audit: Audited, claimed: float | None, groups: Mapping[str, float]
) -> dict[str, Any]:
    """``audit.json`` for a report: with our verdict, each test with what is claimed, and no word of its own."""
    tests = [
        {**{k: v for k, v in test.items() if k != "verdict"}, "claimed": _claim(test, claimed, groups)}
        for test in document.get("one_run") or ()
    ]
    return {**document, "one_run": tests, "verdict": audit.verdict}


def _claim(test: Mapping[str, Any], claimed: float | None, groups: Mapping[str, float]) -> float | None:
    """ε of those whom a test is about.

    Raises:
        Refused: There are none.
    """
    group = test.get("group")
    if group is None or claimed is None:
        return claimed
    if not isinstance(group, str) or group not in groups:
        raise Refused("audit.json: a test is of a group that the run does not have")
    return groups[group]


def _recomputed(test: Mapping[str, Any], delta: float) -> tuple[float, float]:
    """The bound and the ceiling of a test, computed again from its counts.

    Raises:
        Refused: They are not what the file says, or can't be computed.
    """
    counts = [_count(test.get(name)) for name in ("canaries", "guesses", "correct")]
    stated = [number(test.get(name)) for name in ("bound", "ceiling", "confidence")]
    canaries, guesses, correct = (-1 if one is None else one for one in counts)
    if None in counts or None in stated or not 0 <= correct <= guesses <= canaries <= MOST_CANARIES:
        raise Refused("audit.json: a test lacks a number, or has more right guesses than guesses, or than canaries")
    confidence = float(stated[2] or 0.0)
    if not (0 < confidence < 1 and 0 <= delta < 1):
        raise Refused("audit.json: a test has a confidence that is none")
    found = epsilon_bound(canaries, guesses, correct, delta, confidence), ceiling(canaries, guesses, delta, confidence)
    if any(abs(own - float(said or 0.0)) > 1e-6 * (1 + own) for own, said in zip(found, stated, strict=False)):
        raise Refused("audit.json: a bound does not follow from the guesses that it states")
    return found


def _count(value: object) -> int | None:
    """A whole number, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _verdict(
    tests: list[tuple[tuple[float, float], float | None]], stated: Any, claimed: float | None
) -> Verdict | None:
    """What the numbers of each test say of its claim; where the file says worse, that."""
    if claimed is None:
        return None
    if stated == "violated" or any(bound > (claim or 0.0) for (bound, _), claim in tests):
        return "violated"
    if not tests:
        return None
    reached = any(ceiling >= (claim or 0.0) for (_, ceiling), claim in tests)
    return "consistent" if reached and stated != "inconclusive" else "inconclusive"
