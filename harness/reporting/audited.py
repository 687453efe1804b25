"""What attacks measured of ε, read from `audit.json`: the tests, what they test, and what they say together.

A file that contradicts itself, or that says less than it should, never looks better than the worst of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, items, number

Verdict = Literal["violated", "inconclusive", "consistent"]
KINDS = {"gradient": "direction", "text": "text", "secret": "secret"}
"""Canaries in words."""
_LARGEST = 1e12
"""More is not told apart from it."""


@dataclass(frozen=True)
class EpsilonTest:
    """One test of the one-run audit. None: the file does not say.

    Attributes:
        kind: Of the canaries.
        score: Name of the score.
        group: Privacy group; None: all.
        canaries: Their number.
        guesses: How many were guessed about.
        correct: How many guesses were right.
        bound: ε is at least this.
        ceiling: What right guesses alone would have given.
        claimed: What is claimed for those users; None: nothing.
        confidence: Of this test by itself.
        verdict: What it says of the claim by itself.
    """

    kind: str
    score: str
    group: str | None
    canaries: float | None
    guesses: float | None
    correct: float | None
    bound: float | None
    ceiling: float | None
    claimed: float | None
    confidence: float | None
    verdict: Verdict

    @property
    def whose(self) -> str:
        """Of whom it speaks."""
        return "any user" if self.group is None else f"users of “{self.group}”"


@dataclass(frozen=True)
class Audited:
    """All tests of a run.

    Attributes:
        tests: In the order of the file.
        verdict: Of all of them; None: ε was not tested.
        planted: Number of canaries by kind.
    """

    tests: tuple[EpsilonTest, ...]
    verdict: Verdict | None
    planted: Mapping[str, float]

    @property
    def bound(self) -> float | None:
        """The largest lower bound on ε that any test gives; None: there is none."""
        return max((t.bound for t in self.tests if t.bound is not None), default=None)

    @property
    def worst(self) -> EpsilonTest | None:
        """The test that refutes most of its claim; None: none does."""
        found = [t for t in self.tests if t.verdict == "violated"]
        return max(found, key=lambda t: (t.bound or 0.0) - (t.claimed or 0.0)) if found else None

    @property
    def confidence(self) -> float | None:
        """With which all bounds hold together, by the union bound; None: not known."""
        each = [t.confidence for t in self.tests]
        known = [c for c in each if c is not None]
        return max(0.0, 1 - sum(1 - c for c in known)) if known and len(known) == len(each) else None

    @property
    def claims_something(self) -> bool:
        """Whether there is a claim that a test could refute."""
        return any(t.claimed is not None for t in self.tests)


def audited(record: RunRecord) -> Audited | None:
    """The tests of a run; None where it was not audited."""
    if not record.audit:
        return None
    tests = tuple(_test(entry, record) for entry in items(record.audit, "one_run"))
    counts: dict[str, float] = {}
    for entry in items(record.audit, "planted"):
        if count := _positive(entry.get("count")):
            kind = _text(entry, "kind")
            counts[kind] = counts.get(kind, 0.0) + count
    return Audited(tests, _verdict(tests, record.audit.get("verdict")), counts)


def failed(found: Audited | None) -> str | None:
    """How a claim was refuted, in a sentence; None: it was not."""
    if found is None or found.verdict != "violated":
        return None
    worst = found.worst
    if worst is None or worst.bound is None or worst.claimed is None or worst.bound <= worst.claimed:
        return "An attack measured more than is claimed."
    measured, claimed = f.apart(worst.bound, worst.claimed)
    return f"ε of {worst.whose} is at least {measured}, and {claimed} is claimed."


def _test(entry: Mapping[str, Any], record: RunRecord) -> EpsilonTest:
    bound, ceiling = _positive(entry.get("bound")), _positive(entry.get("ceiling"))
    # No user is promised less than the run claims for all.
    claims = [_positive(entry.get("claimed")), _positive(record.epsilon if record.private else None)]
    claimed = min((c for c in claims if c is not None), default=None)
    verdict: Verdict = "inconclusive"
    if entry.get("verdict") == "violated" or (bound is not None and claimed is not None and bound > claimed):
        verdict = "violated"
    elif bound is not None and ceiling is not None and claimed is not None and ceiling >= claimed:
        # Of canaries that were seen in part alone, the file says less.
        verdict = "consistent" if entry.get("verdict") == "consistent" else "inconclusive"
    group, confidence = entry.get("group"), number(entry.get("confidence"))
    return EpsilonTest(
        _text(entry, "kind"),
        _text(entry, "score"),
        None if group is None else _text(entry, "group"),
        _positive(entry.get("canaries")),
        _positive(entry.get("guesses")),
        _positive(entry.get("correct")),
        bound,
        ceiling,
        claimed,
        confidence if confidence is not None and 0 < confidence < 1 else None,
        verdict,
    )


def _text(entry: Mapping[str, Any], key: str) -> str:
    found = entry.get(key)
    return found if isinstance(found, str) else f.MISSING


def _positive(value: object) -> float | None:
    known = number(value)
    return min(known, _LARGEST) if known is not None and known >= 0 else None


def _verdict(tests: tuple[EpsilonTest, ...], stated: object) -> Verdict | None:
    if stated == "violated" or any(t.verdict == "violated" for t in tests):
        return "violated"
    if not tests:
        return None
    return "consistent" if stated == "consistent" and any(t.verdict == "consistent" for t in tests) else "inconclusive"
