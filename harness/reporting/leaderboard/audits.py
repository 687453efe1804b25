"""What ``audit.json`` says: the largest lower bound on ε that attacks reached, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.reporting.leaderboard.files import Refused
from harness.reporting.records import number

Verdict = Literal["violated", "inconclusive", "consistent"]
WORST: tuple[Verdict, ...] = ("violated", "inconclusive", "consistent")
MOST_TESTS = 1000


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


def audited(document: Mapping[str, Any] | None, claimed: float | None) -> Audited | None:
    """The audit of a run; None: there is none.

    A bound above the claim is a violation, whatever the file calls it.

    Args:
        document: ``audit.json``.
        claimed: ε of the run; None: it claims none, so that nothing can be violated.

    Raises:
        Refused: The file is none of an audit, or contradicts itself or the run.
    """
    if document is None:
        return None
    if document.get("version") != 1:
        raise Refused("audit.json is of no known version")
    stated = number(document.get("claimed"))
    if (stated is None) != (claimed is None) or (
        stated is not None and claimed is not None and abs(stated - claimed) > 1e-9 * claimed
    ):
        raise Refused("audit.json is about another ε than privacy.json claims")
    tests = document.get("one_run") or []
    if not isinstance(tests, list) or len(tests) > MOST_TESTS or not all(isinstance(t, dict) for t in tests):
        raise Refused("audit.json: one_run should be a list of tests")
    bounds, ceilings = [], []
    for test in tests:
        bound, ceiling = number(test.get("bound")), number(test.get("ceiling"))
        guesses, correct = number(test.get("guesses")), number(test.get("correct"))
        known = bound is not None and ceiling is not None and guesses is not None and correct is not None
        if not known or not (0 <= bound <= ceiling * (1 + 1e-9) + 1e-9 and 0 <= correct <= guesses):  # type: ignore[operator]
            raise Refused(
                "audit.json: a test has no bound between 0 and its ceiling, or more right guesses than guesses"
            )
        bounds.append(bound)
        ceilings.append(ceiling)
    verdict = document.get("verdict")
    if verdict is not None and verdict not in WORST:
        raise Refused("audit.json has no known verdict")
    most = max((b for b in bounds if b is not None), default=None)
    highest = max((c for c in ceilings if c is not None), default=None)
    return Audited(most, highest, _verdict(most, highest, verdict, claimed))


def _verdict(bound: float | None, ceiling: float | None, stated: Any, claimed: float | None) -> Verdict | None:
    """What the numbers say; where the file says worse, that."""
    if claimed is None:
        return None
    if stated == "violated" or (bound is not None and bound > claimed):
        return "violated"
    if bound is None or ceiling is None:
        return None
    return "inconclusive" if ceiling < claimed or stated == "inconclusive" else "consistent"
