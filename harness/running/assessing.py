"""Where users are made and their risks known: whether segments and tiers find those who are at risk.

Only of made users, in data that the spec declares public: of anybody else it would say who is in which group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.sources.base import RecordSource
from harness.data.store import Corpus
from harness.files import as_json, write_released
from harness.planning import Plan
from harness.training.job import Folder

ASSESSMENT = "assessment.json"
ANY = "any of these"

Truths = npt.NDArray[np.bool_]


def write_assessment(plan: Plan, corpus: Corpus, groups: npt.NDArray[np.int16], folder: Folder) -> None:
    """Writes how groups and known risks go together, if risks are known and the data public.

    Args:
        plan: Names the groups.
        corpus: All users; those held out are left out.
        groups: Of every user, as an index into the plan's.
        folder: The run's.
    """
    source = plan.source
    if plan.spec.data.visibility != "public" or not isinstance(source, RecordSource):
        return
    risks = source.known_risks()
    if risks is None or len(plan.groups) < 2:
        return
    trained = [int(user) for user in corpus.users(holdout=False) if groups[user] >= 0]
    kinds = sorted({kind for found in risks.values() for kind in found})
    own = [risks.get(corpus.user_id(user), frozenset()) for user in trained]
    truths = {kind: np.array([kind in found for found in own], dtype=bool) for kind in kinds}
    if len(kinds) > 1:
        truths[ANY] = np.array([bool(found) for found in own], dtype=bool)
    write_released(folder.root / ASSESSMENT, as_json(_document(plan, groups[trained], truths)))


def _document(plan: Plan, groups: npt.NDArray[np.int16], truths: Mapping[str, Truths]) -> dict[str, Any]:
    found: dict[str, Any] = {"users": len(groups), "by": []}
    merged = any(len(held) > 1 for held in plan.basis.holds)  # whose tiers and segments are not told apart any more
    if plan.sensitivity is not None and not merged:
        tiers = plan.sensitivity.names
        tier = np.array([tiers.index(g.tier or tiers[0]) for g in plan.groups])[groups]
        cuts = [(f"{name} or above" if name != tiers[-1] else name, tier >= i) for i, name in enumerate(tiers) if i]
        found["by"].append({"what": "tier", "rows": _rows(cuts, truths)})
    names = [g.name if merged else g.segment for g in plan.groups]
    segments = list(dict.fromkeys(names))
    if len(segments) > 1:
        segment = np.array([segments.index(name) for name in names])[groups]
        cuts = [(name, segment == i) for i, name in enumerate(segments)]
        found["by"].append({"what": "group" if merged else "segment", "rows": _rows(cuts, truths)})
    return found


def _rows(cuts: Sequence[tuple[str, Truths]], truths: Mapping[str, Truths]) -> list[dict[str, Any]]:
    """Precision and recall of each cut as a finder of each risk; None where there is nobody to divide by."""
    rows = []
    for kind, risky in truths.items():
        for name, flagged in cuts:
            both = int((risky & flagged).sum())
            at_risk, found = int(risky.sum()), int(flagged.sum())
            rows.append(
                {
                    "risk": kind,
                    "at_risk": at_risk,
                    "group": name,
                    "users": found,
                    "both": both,
                    "precision": both / found if found else None,
                    "recall": both / at_risk if at_risk else None,
                }
            )
    return rows
