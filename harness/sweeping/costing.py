"""What a search costs, before anything is paid: the curve that its trials are held under, and what others would leave.

Fixed before the first trial and the same whichever wins: from public constants alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.groups import PublicCounts
from harness.data.sources.base import RecordSource
from harness.errors import ArgumentError, BudgetError, MachineError, UserError
from harness.planning import Plan, make_plan
from harness.planning.basis import SearchTerms
from harness.planning.fitting import LedgerView, look
from harness.planning.making import Counter, begin, count_publicly
from harness.plugins import Proposal, Segmenter
from harness.privacy.calibration import noise_multiplier
from harness.privacy.search import Searched, Trials
from harness.spec import LoadedSpec, Spec, load_spec
from harness.spec.conditions import Space
from harness.spec.overriding import override
from harness.spec.sweep_block import ProxyBlock, SweepBlock, TrialsBlock
from harness.sweeping.fitting import neediest
from harness.sweeping.space import Candidate, base_values, draw, finite

GROUPING = ("segmentation", "sensitivity", "groups")
"""Blocks that decide who is in which group."""
LADDER = (1.0, 0.5, 0.25, 0.125)
"""Where targets are not known beforehand, trials are held at the orders that these parts of the largest need."""
MOST_TARGETS = 200
"""Settings of the noise policy that are looked at for the targets that they propose."""


@dataclass(frozen=True)
class Price:
    """What one way to search would leave for each trial, at the same total. Public.

    Attributes:
        name: The search, in words.
        noise_multiplier: σ of the loosest group as the spec is written; None: no noise is enough.
        own: Whether it is the spec's.
    """

    name: str
    noise_multiplier: float | None
    own: bool = False


@dataclass(frozen=True)
class SweepPlan:
    """A sweep before anything is paid. Public.

    Attributes:
        path: The spec.
        overrides: Its ``key=value``.
        plan: What is reserved and promised: of a charged search, the spec as it is written as a trial of it, with ε of
            the whole search; of a free one, the plan of one run. Where trials are trained on a proxy: that of a trial.
        untuned: The spec as it is written, as one run with the whole budget.
        trials: How many; None: a search that trains nothing on the users' data.
        prices: The spec's search beside others.
        count: What every plan of the sweep is counted with: users are counted once.
        proxy: ``key=value`` that put the public data set in the place of the users'; empty: there is none.
    """

    path: Path
    overrides: tuple[str, ...]
    plan: Plan
    untuned: Plan
    trials: Trials | None
    prices: tuple[Price, ...]
    count: Counter
    proxy: tuple[str, ...] = ()

    @property
    def number(self) -> Trials:
        """How many trials are trained, on whatever data."""
        found = self.trials or _number(self.block)
        assert found is not None
        return found

    @property
    def block(self) -> SweepBlock:
        """What the spec says of the sweep."""
        found = self.untuned.spec.sweep
        assert found is not None
        return found

    @property
    def terms(self) -> SearchTerms | None:
        """What every trial keeps; None where trials cost nothing."""
        return self.plan.basis.search

    def load(self, candidate: Candidate) -> LoadedSpec:
        """The spec with a candidate's values, and without a sweep."""
        return _with(self.path, self.overrides, candidate)

    def _check_unchanged(self) -> None:
        """The spec is read again with every candidate's values: it must still be the one that was planned.

        Raises:
            MachineError: Somebody has edited it.
        """
        now = load_spec(self.path, (*self.overrides, "sweep=null")).resolved
        if {**self.untuned.loaded.resolved, "sweep": None} != now:
            raise MachineError(f"{self.path} has changed since the sweep began; undo that, and go on with --resume")

    def plan_of(self, candidate: Candidate) -> Plan:
        """A candidate as a trial, held under the search's curves.

        Raises:
            UserError: It can't be one, whatever the users' data are.
        """
        if self.terms is not None or self.proxy:
            self._check_unchanged()
        # What is trained for comparison alone is no part of a trial.
        loaded = _with(self.path, (*self.overrides, *self.proxy, "evaluation.ordinary=false"), candidate)
        return make_plan(loaded, search=self.terms, count=self.count)


def plan_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepPlan:
    """Plans a sweep; reads what planning a run reads.

    Raises:
        ArgumentError: The spec is wrong, or has no sweep.
        BudgetError: The budget can't be kept.
    """
    found = _planned(load_spec(path, overrides), tuple(overrides))
    if found.block.search.type == "predicted":
        return found  # of its candidates, those that do not fit are not chosen
    room = neediest(found)
    untuned = dataclasses.replace(found.untuned, memory=room)
    return dataclasses.replace(found, plan=dataclasses.replace(found.plan, memory=room), untuned=untuned)


def _planned(loaded: LoadedSpec, overrides: tuple[str, ...]) -> SweepPlan:
    sweep = loaded.spec.sweep
    if sweep is None:
        raise ArgumentError(f"{loaded.path}: there is no sweep block; say what to search in sweep.space")
    count = counting_once()
    untuned = make_plan(loaded, count=count)
    if not untuned.mechanism.private:
        raise ArgumentError("noise.type: none promises nothing, so there is no budget to search in")
    trials = trials_of(sweep)
    if sweep.proxy is not None:
        return _by_proxy(SweepPlan(loaded.path, overrides, untuned, untuned, None, (), count), sweep.proxy)
    if trials is None:
        return SweepPlan(loaded.path, overrides, untuned, untuned, None, (), count)
    _check_answers(untuned)
    terms = terms_of(untuned, trials, lambda candidate: _with(loaded.path, overrides, candidate), count)
    plan = make_plan(loaded, search=terms, count=count)
    plan = dataclasses.replace(plan, ledger=look(loaded, plan.guarantee))
    return SweepPlan(loaded.path, overrides, plan, untuned, trials, prices(untuned, trials), count)


def _by_proxy(sweep: SweepPlan, proxy: ProxyBlock) -> SweepPlan:
    """The same with its trials on a public data set, which takes the place of the users' and costs them nothing."""
    spec = sweep.untuned.spec
    given = proxy.model_dump(mode="json")
    changes: dict[str, Any] = {
        "name": f"{spec.name}-proxy",
        "data.name": f"{spec.data.name} (public proxy)",
        "data.visibility": "public",
        "data.population": "public",
        "data.source": given["source"],
        "data.user": given["user"],
        "data.text": given["text"],
        "data.messages": given["messages"],
        "data.holdout.visibility": "public",
        "privacy.ledger": None,
        "privacy.delta": sweep.untuned.guarantee.delta,
    }
    extra = tuple(override(key, value) for key, value in changes.items())
    loaded = load_spec(sweep.path, (*sweep.overrides, *extra, "sweep=null"))
    one = make_plan(loaded, count=sweep.count)
    plan = dataclasses.replace(one, guarantee=one.guarantee.of_public_trials(), curve=())
    return dataclasses.replace(sweep, plan=plan, proxy=extra)


def _with(path: Path, overrides: Sequence[str], candidate: Candidate) -> LoadedSpec:
    return load_spec(path, (*overrides, *candidate.overrides, "sweep=null"))


def trials_of(sweep: SweepBlock) -> Trials | None:
    """How many trials are trained on the users' data; None: none."""
    return None if sweep.proxy is not None else _number(sweep)


def _number(sweep: SweepBlock) -> Trials | None:
    if sweep.search.type == "predicted":
        return None
    number = sweep.search.trials
    if isinstance(number, TrialsBlock):
        return Trials(number.law, number.mean, number.shape)
    assert number is not None
    return Trials("fixed", float(number))


def counting_once() -> Counter:
    """Counts users as a plan does, and the same users with the same rule once."""
    known: dict[str, PublicCounts | None] = {}

    def count(spec: Spec, rule: Segmenter, source: RecordSource) -> PublicCounts | None:
        parts = (spec.data, spec.segmentation, spec.sensitivity)
        key = json.dumps([None if part is None else part.model_dump(mode="json") for part in parts])
        if key not in known:
            known[key] = count_publicly(spec, rule, source)
        return known[key]

    return count


def _check_answers(untuned: Plan) -> None:
    if untuned.asked.choice:
        raise ArgumentError(
            "sampling: auto is decided by a noisy answer, which every trial would ask for again; name its values in "
            "sweep.space instead"
        )


# --- the terms ----------------------------------------------------------------------------------------------


def terms_of(untuned: Plan, trials: Trials, load: Callable[[Candidate], LoadedSpec], count: Counter) -> SearchTerms:
    """What every trial keeps.

    The reference is the spec as it is written. What is claimed of a group is the largest target that any candidate
    gives it; where candidates have other groups, only the budget is claimed, of everybody.

    Args:
        untuned: The spec as it is written, as one run.
        trials: How many.
        load: Gives the spec with a candidate's values.
        count: What every plan of the sweep is counted with.
    """
    assert untuned.choice is not None
    exposure = untuned.choice.terms.exposure
    searched = Searched(
        trials,
        exposure.rate,
        exposure.steps,
        exposure.unit,
        exposure.examples,
        exposure.schedule,
        exposure.charges,
        always=_order_of(untuned.ledger),
    )
    delta, budget = untuned.guarantee.delta, untuned.spec.privacy.epsilon
    assert delta is not None
    sweep = untuned.spec.sweep
    assert sweep is not None
    regroups = any(key.split(".")[0] in GROUPING for key in sweep.space) or untuned.guarantee.largest is not None
    own = untuned.targets
    assert own is not None
    if regroups:
        held = searched.held_at([budget * part for part in LADDER], delta, apart=False)
        return SearchTerms(held, None, budget)
    claims, every = _claims(untuned, sweep, own, lambda candidate: begin(load(candidate), None, count)[0].proposal)
    varied = any(_is_noise(key) for key in sweep.space)
    held = searched.held_at(sorted(every), delta, apart=not varied)
    return SearchTerms(held, claims, max(claims.values()))


def _order_of(ledger: LedgerView | None) -> tuple[float, ...]:
    """The one Rényi order of the data set's budget, if it has one: what a search adds there must be known."""
    budget = None if ledger is None else ledger.account.budget
    return () if budget is None or budget.order is None else (budget.order,)


def _claims(
    untuned: Plan, sweep: SweepBlock, own: Mapping[str, float], proposed: Callable[[Candidate], Proposal]
) -> tuple[dict[str, float], set[float]]:
    """Per group, the largest target of any candidate that is looked at, and all targets.

    A trial that would be exposed more than that is refused by itself: then it is a failed one.
    """
    keys = [key for key in sweep.space if _is_noise(key)]
    if not keys:
        return dict(own), set(own.values())
    claims, every = dict(own), set(own.values())
    for candidate in _settings(sweep, keys, untuned.loaded):
        try:
            targets = proposed(candidate).epsilon or {}
        except UserError:
            continue  # as a trial it will be a failed one
        for name, target in targets.items():
            claims[name] = max(claims.get(name, 0.0), target)
            every.add(target)
    return claims, every


def _is_noise(key: str) -> bool:
    return key.split(".", maxsplit=1)[0] == "noise"


def _settings(sweep: SweepBlock, keys: Sequence[str], loaded: LoadedSpec) -> Sequence[Candidate]:
    """Settings of the noise policy: all of them, or the ends of ranges and what lies between."""
    space, base = {key: sweep.space[key] for key in keys}, base_values(loaded.resolved)
    listed = finite(space, base)
    if listed is not None and len(listed) <= MOST_TARGETS:
        return listed
    places = [0.0, 0.25, 0.5, 0.75, 1.0]
    corners = [_at(space, base, dict.fromkeys(keys, u)) for u in places]
    for key in keys:
        corners += [_at(space, base, {key: u}) for u in places]
    return corners


def _at(space: Space, base: Mapping[str, Any], quantiles: Mapping[str, float]) -> Candidate:
    """The candidate at these quantiles of its priors; a key without one at its upper end."""
    return draw(space, lambda key: max(quantiles.get(key, 1.0), 1e-300), base)


# --- beside others ------------------------------------------------------------------------------------------


def prices(untuned: Plan, own: Trials) -> tuple[Price, ...]:
    """σ that searches of as many trials would leave each of them, at the same ε in all."""
    mean = own.mean
    number = f"{mean:g}"
    ways: list[tuple[str, Trials | None]] = [
        ("no search: one run", None),
        (f"random, geometric with mean {number}", Trials("geometric", mean)),
        (f"random, logarithmic with mean {number}", Trials("logarithmic", mean)),
        (f"random, poisson with mean {number}", Trials("poisson", mean)),
        (f"{round(mean)} trials, all charged (optuna, asha, a grid)", Trials("fixed", float(round(mean)))),
    ]
    if own.law == "negative_binomial":
        ways.insert(2, (own.in_words(), own))
    return tuple(Price(name, _multiplier(untuned, way), own=way == own) for name, way in ways)


def _multiplier(untuned: Plan, trials: Trials | None) -> float | None:
    assert untuned.choice is not None
    assert untuned.targets is not None
    exposure, target = untuned.choice.terms.exposure, max(untuned.targets.values())
    if trials is not None:
        searched = Searched(trials, exposure.rate, exposure.steps, exposure.unit, exposure.examples, exposure.schedule)
        exposure = exposure.of(accountant=dataclasses.replace(searched, charges=exposure.charges))
    try:
        return noise_multiplier(target, exposure)
    except BudgetError:
        return None


def price_rows(plan: SweepPlan) -> list[dict[str, Any]]:
    """Plain data."""
    return [dataclasses.asdict(price) for price in plan.prices]
