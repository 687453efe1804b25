"""Predicted search: candidates compared by accounting alone. It trains nothing, reads nothing private, and is free."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError, UserError
from harness.planning import Plan, make_plan
from harness.planning.basis import SearchTerms
from harness.planning.plan import noise_to_signal_of_run
from harness.privacy.search import Trials
from harness.spec import load_spec
from harness.sweeping.costing import SweepPlan, counting_once, terms_of
from harness.sweeping.space import Candidate, base_values, draw, finite

EXACT = 10
"""So many of the best are planned again by the spec's own accountant, and ranked by that."""
MANY = 100
"""From here on candidates are compared side by side on Ray."""
CHUNK = 25


@dataclass(frozen=True)
class Ranked:
    """A candidate and what is predicted of it. Public.

    Attributes:
        candidate: Its values.
        worst: Noise over signal of the group with most of it: noise std of all updates in sum, over the most that the
            group's users can add to them. None: no plan can be made of the candidate.
        overall: The same of all users together.
        mean: The mean over groups, by weight.
        groups: Per group.
        tokens: Expected training tokens.
        reason: Why there is no plan, or why it is left out.
    """

    candidate: Candidate
    worst: float | None = None
    overall: float | None = None
    mean: float | None = None
    groups: tuple[tuple[str, float], ...] = ()
    tokens: float | None = None
    reason: str = ""

    def by(self, what: str) -> float:
        """What candidates are ordered by; infinite without a plan."""
        value: float | None = getattr(self, what)
        return math.inf if value is None or self.reason else value

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "candidate": self.candidate.document(), "groups": dict(self.groups)}


def candidates_of(sweep: SweepPlan) -> tuple[Candidate, ...]:
    """All candidates of a finite space, if they are few enough; else draws by the spec's public seed."""
    search, base = sweep.block.search, base_values(sweep.untuned.loaded.resolved)
    most = search.candidates or 1000
    listed = finite(sweep.block.space, base)
    if listed is not None and len(listed) <= most:
        return listed
    public = random.Random(f"{sweep.untuned.spec.seed}")
    return tuple(draw(sweep.block.space, lambda _: 1.0 - public.random(), base) for _ in range(most))


def rank(sweep: SweepPlan) -> tuple[Ranked, ...]:
    """Every candidate, the best first; those that can't be planned, or train on too much, at the end.

    Raises:
        ArgumentError: No candidate can be planned.
    """
    candidates = candidates_of(sweep)
    terms = _drafting(sweep)
    if len(candidates) < MANY:
        found = [_ranked(sweep, candidate, terms) for candidate in candidates]
    else:
        found = _on_ray(sweep, candidates, terms)
    by = sweep.block.search.by or "worst"
    found.sort(key=lambda one: one.by(by))
    # To rank, few Rényi orders do; what is chosen is chosen by what would be trained.
    top = [_ranked(sweep, one.candidate, None) for one in found[:EXACT] if one.by(by) < math.inf]
    if not any(one.by(by) < math.inf for one in top):
        why = next((one.reason for one in found if one.reason), "there is none")
        raise ArgumentError(f"sweep.space: no candidate can be planned ({why})")
    top.sort(key=lambda one: one.by(by))
    return (*top, *found[len(top) :])


def _drafting(sweep: SweepPlan) -> SearchTerms | None:
    """One trial, held at few orders: quick."""
    if not sweep.untuned.mechanism.private or sweep.untuned.choice is None:
        return None
    return terms_of(sweep.untuned, Trials("fixed", 1.0), sweep.load, sweep.count)


def _ranked(sweep: SweepPlan, candidate: Candidate, terms: SearchTerms | None) -> Ranked:
    try:
        plan = make_plan(sweep.load(candidate), search=terms, count=sweep.count)
    except UserError as error:
        return Ranked(candidate, reason=" ".join(str(error).split()))
    if plan.memory is not None and plan.memory.refusal is not None:
        return Ranked(candidate, reason=plan.memory.refusal)
    return _measured(plan, candidate, sweep.block.search.tokens)


def _measured(plan: Plan, candidate: Candidate, most: int | None) -> Ranked:
    mechanism = plan.mechanism
    steps = math.sqrt(mechanism.steps)
    ratios = [noise_to_signal_of_run(mechanism, i) / steps for i in range(len(mechanism.groups))]
    weights = [plan.population.weights[g.name] for g in mechanism.groups]
    by_group = (
        mechanism.units(i) * g.sampling_rate * g.steps * _examples(plan, i) for i, g in enumerate(mechanism.groups)
    )
    tokens = sum(by_group) * plan.spec.data.max_tokens
    reason = "" if most is None or tokens <= most else f"trains on {tokens:.3g} tokens, more than sweep.search.tokens"
    return Ranked(
        candidate,
        max(ratios),
        1 / sum(1 / ratio for ratio in ratios),
        sum(w * r for w, r in zip(weights, ratios, strict=True)) / sum(weights),
        tuple((g.name, r) for g, r in zip(mechanism.groups, ratios, strict=True)),
        tokens,
        reason,
    )


def _examples(plan: Plan, group: int) -> int:
    return plan.mechanism.groups[group].examples_per_user if plan.mechanism.sampling_unit == "user" else 1


def _on_ray(sweep: SweepPlan, candidates: Sequence[Candidate], terms: SearchTerms | None) -> list[Ranked]:
    import ray

    from harness.training.ray_session import silent, start_ray

    started = start_ray()
    try:
        with silent(started):
            remote = ray.remote(_chunk)
            asked = (str(sweep.path), sweep.overrides, terms)
            futures = [remote.remote(*asked, part) for part in _parts(candidates)]
            return [one for part in ray.get(futures) for one in part]
    finally:
        if started:
            ray.shutdown()


def _parts(candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    for first in range(0, len(candidates), CHUNK):
        yield candidates[first : first + CHUNK]


_counts = counting_once()
"""Of a Ray worker, which goes from chunk to chunk: users are counted once."""


def _chunk(
    path: str, overrides: tuple[str, ...], terms: SearchTerms | None, candidates: Sequence[Candidate]
) -> list[Ranked]:
    loaded = load_spec(path, overrides)
    untuned = make_plan(loaded, count=_counts, search=terms)
    sweep = SweepPlan(Path(path), overrides, untuned, untuned, None, (), _counts)
    return [_ranked(sweep, candidate, terms) for candidate in candidates]
