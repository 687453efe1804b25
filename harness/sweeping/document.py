"""What of a sweep may be shown: ``sweep.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from harness.sweeping.costing import SweepPlan, price_rows
from harness.sweeping.predicting import EXACT, Ranked
from harness.sweeping.trials import Outcome

MOST_RANKED = 50
"""Candidates of a predicted search that are kept, the best ones first."""


def document(plan: SweepPlan) -> dict[str, Any]:
    """What is known before anything is paid: the space, the search, and its price beside others'."""
    guarantee, terms = (plan.untuned if plan.proxy else plan.plan).guarantee, plan.terms
    names = [g.name for g in plan.plan.groups]
    return {
        "space": {key: prior.model_dump(mode="json") for key, prior in plan.block.space.items()},
        "search": plan.block.search.model_dump(mode="json"),
        "select": plan.block.select.model_dump(mode="json"),
        "epsilon": guarantee.total,
        "delta": guarantee.delta,
        "charged": plan.trials is not None,
        "proxy": bool(plan.proxy),
        "trials": None if plan.trials is None else dataclasses.asdict(plan.trials),
        "in_words": None if plan.trials is None else plan.trials.in_words(),
        "claimed": {} if terms is None else {name: terms.claim(name) for name in names},
        "prices": price_rows(plan),
    }


def released_document(plan: SweepPlan, winner: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """After the search: the winner, and every trial only where its data are public, or all trials are charged."""
    shown = None
    if shows_trials(plan):
        shown = [dataclasses.asdict(one) for one in outcomes]
    return document(plan) | {
        "winner": {"candidate": winner.candidate, "score": winner.score},
        "shown": shown,
    }


def shows_trials(plan: SweepPlan) -> bool:
    """Whether everything about all trials may be shown: their data are public, or all of them are charged."""
    all_charged = plan.trials is not None and plan.trials.law == "fixed"
    return all_charged or bool(plan.proxy) or plan.plan.spec.data.visibility == "public"


def predicted_document(plan: SweepPlan, ranked: Sequence[Ranked]) -> dict[str, Any]:
    """After a search by predicted noise: the best candidates, the first of which was trained. All of it is public.

    Args:
        plan: The sweep.
        ranked: Every candidate, the best first; at least one.
    """
    best = ranked[0]
    score = best.by(plan.block.search.by or "worst")
    return document(plan) | {
        "winner": {"candidate": best.candidate.document(), "score": _finite(score)},
        "shown": None,
        "compared": len(ranked),
        "exact": min(EXACT, len(ranked)),
        "candidates": [_finite(one.document()) for one in ranked[:MOST_RANKED]],
    }


def _finite(value: Any) -> Any:
    """The same without infinite numbers, which JSON has none of: None in their place."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
