"""All cells of a suite, planned before any of them trains: what each promises, and what they cost together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.benchmarking.cells import Cell, Promised, Variant, baselines, load_cell, name_of, policies, problems_of
from harness.benchmarking.reading import LoadedSuite, inside, load_suite
from harness.benchmarking.suite import DROPPING, NON_PRIVATE, STRICTEST, Suite
from harness.errors import ArgumentError, BudgetError, MachineError
from harness.planning import Plan, make_plan
from harness.planning.fitting import needs, rdp_of
from harness.planning.footprint import RAY
from harness.plugins import suggest
from harness.spec import LoadedSpec, Problem, SpecErrors
from harness.spec.problems import KeyPath, dotted

Planned = tuple[Variant, dict[int, LoadedSpec], Plan]


@dataclass(frozen=True)
class SuitePlan:
    """A suite whose cells can all be trained. Public.

    Attributes:
        loaded: The suite.
        cells: All cells, in the order in which they begin: seed by seed, so that an unfinished suite compares all
            policies.
        plans: The plan of each cell, by its name.
    """

    loaded: LoadedSuite
    cells: tuple[Cell, ...]
    plans: Mapping[str, Plan]

    @property
    def suite(self) -> Suite:
        """What was asked for."""
        return self.loaded.suite

    def document(self, cells: tuple[Cell, ...] | None = None) -> dict[str, Any]:
        """Plain data for ``bench --plan --json``, of some cells or of all."""
        cells = self.cells if cells is None else cells
        return {
            "suite": self.suite.suite,
            "title": self.suite.title or self.suite.suite,
            "cells": [{**cell.document(), **self._planned(cell)} for cell in cells],
            "steps": sum(self.plans[cell.name].mechanism.steps for cell in cells),
            "charges": charges(self, cells),
        }

    def _planned(self, cell: Cell) -> dict[str, Any]:
        guarantee = self.plans[cell.name].guarantee
        epsilon = guarantee.epsilon or (None,) * len(guarantee.mechanism.groups)
        return {
            "private": guarantee.mechanism.private,
            "epsilon": guarantee.total,
            "delta": guarantee.delta,
            "mechanism_digest": guarantee.mechanism.digest,
            "steps": guarantee.mechanism.steps,
            "groups": [
                {"name": group.name, "epsilon": value}
                for group, value in zip(guarantee.mechanism.groups, epsilon, strict=True)
            ],
            "dropped": [group.name for group in self.plans[cell.name].basis.dropped],
        }


def plan_suite(path: str | Path) -> SuitePlan:
    """Plans all cells of a suite. Reads no private record and changes nothing.

    Args:
        path: The suite's file, or the name of a packaged one.

    Raises:
        ArgumentError: The suite, a spec or the data are wrong; every mistake is named.
        BudgetError: A cell's budget can't be kept.
        MachineError: The ledger does not answer.
    """
    loaded = load_suite(path)
    problems: list[Problem] = []
    planned: list[Planned] = []
    for data in loaded.specs:
        own = [one for variant in policies(loaded, data) if (one := _planned(loaded, variant, problems)) is not None]
        promised = _promised(own)
        if not problems:
            _check_baselines(loaded, data, promised, problems)
        for variant in [] if problems else baselines(loaded, data, promised):
            one = _planned(loaded, variant, problems)
            own += [] if one is None else [one]
        planned += own
    _check_machine(loaded, planned, problems)
    if problems:
        raise SpecErrors(_ordered(problems, loaded))
    cells, plans = [], {}
    for seed in loaded.suite.seeds:
        for variant, specs, plan in planned:
            spec = specs[seed]
            cell = Cell(name_of(loaded, variant, seed), variant, seed, spec, digest_of(spec))
            cells.append(cell)
            # A seed decides neither groups nor noise: the plan is that of all seeds.
            plans[cell.name] = replace(plan, basis=replace(plan.basis, loaded=spec))
    if len(plans) < len(cells):
        raise SpecErrors([_ambiguous(loaded, cells)])
    return SuitePlan(loaded, tuple(cells), plans)


def chosen(plan: SuitePlan, only: str | None) -> tuple[Cell, ...]:
    """The cells whose names fit a pattern; all without one.

    Raises:
        ArgumentError: None does.
    """
    found = tuple(cell for cell in plan.cells if only is None or fnmatchcase(cell.name, only))
    if not found:
        near = suggest(only or "", [cell.name for cell in plan.cells])
        told = f"one is {plan.cells[0].name}" if near is None else f'did you mean "{near}"?'
        raise ArgumentError(f'--only: no cell is called "{only}"; {told}')
    return found


def digest_of(loaded: LoadedSpec) -> str:
    """Identifies everything in a spec that decides a result: all but speed, papers, its name and its ledger."""
    resolved = {key: value for key, value in loaded.resolved.items() if key not in ("compute", "report", "name")}
    resolved["privacy"] = {key: value for key, value in resolved["privacy"].items() if key != "ledger"}
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def _planned(loaded: LoadedSuite, variant: Variant, problems: list[Problem]) -> Planned | None:
    """A variant with the specs of its seeds and the plan of all of them; None: it has problems."""
    try:
        specs = {seed: load_cell(loaded, variant, seed) for seed in loaded.suite.seeds}
    except SpecErrors as errors:
        problems.extend(errors.problems)
        return None
    first = specs[loaded.suite.seeds[0]]
    if (problem := _by_seed(loaded, variant, specs)) is not None:
        problems.append(problem)
        return None
    if variant.policy == NON_PRIVATE and first.spec.data.visibility != "public":
        place = loaded.merged.place_of_value(variant.at)
        message = f'{NON_PRIVATE} trains without privacy, and the data set "{first.spec.data.name}" is private'
        problems.append(Problem(place, dotted(variant.at), f"{message}; leave it out"))
        return None
    try:
        plan = make_plan(first)
        if not plan.mechanism.private and variant.policy != NON_PRIVATE:
            raise ArgumentError(f"noise.type: trains without privacy; the baseline {NON_PRIVATE} does")
    except BudgetError as error:
        raise BudgetError(f"{variant.words}: {error}") from None
    except MachineError as error:
        raise MachineError(f"{variant.words}: {error}") from None
    except ArgumentError as error:
        problems.extend(problems_of(error, variant, loaded, first))
        return None
    return variant, specs, plan


def _by_seed(loaded: LoadedSuite, variant: Variant, specs: Mapping[int, LoadedSpec]) -> Problem | None:
    """What follows from the seed besides itself, so that one plan can't stand for all seeds; None: nothing."""
    first, *others = (
        {key: value for key, value in inside((), one.resolved) if not isinstance(value, dict | list)}
        for one in specs.values()
    )
    for index, other in enumerate(others, start=1):
        differing = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        for key in differing:
            if key not in (("seed",), ("name",)):
                at: KeyPath = ("seeds", index)
                message = f"{dotted(key)} depends on the seed (in {variant.words}); only the seed itself may"
                return Problem(loaded.merged.place_of_value(at), dotted(at), message)
    return None


def _promised(planned: list[Planned]) -> dict[float, Promised]:
    """What the policies promise, by budget."""
    found: dict[float, Promised] = {}
    for variant, _, plan in planned:
        budget = variant.budget
        assert budget is not None
        targets = plan.targets or {}
        names = tuple(group.name for group in plan.basis.dropped)
        before = found.get(budget, Promised(budget, (), names))
        strict = [name for name, target in targets.items() if target < budget]
        found[budget] = Promised(
            min(before.strictest, *targets.values()),
            tuple(dict.fromkeys([*before.strict, *strict])),
            tuple(name for name in before.dropped if name in names),
        )
    return found


def _check_baselines(
    loaded: LoadedSuite, data: str, promised: Mapping[float, Promised], problems: list[Problem]
) -> None:
    """Without a group that is promised less than the budget, some of them would be uniform at the budget once more."""
    for index, name in enumerate(loaded.suite.baselines):
        if name not in (STRICTEST, DROPPING):
            continue
        for budget, one in promised.items():
            if not one.strict:
                at, on = ("baselines", index), f" on {data}" if data else ""
                message = (
                    f"no policy promises any group less than ε = {budget:g}{on}: it would be uniform at the budget"
                )
                problems.append(Problem(loaded.merged.place_of_value(at), dotted(at), message))
                break


def _check_machine(loaded: LoadedSuite, planned: list[Planned], problems: list[Problem]) -> None:
    """Cells are trained side by side, so that each must take the same place."""
    first = None
    for variant, specs, _ in planned:
        compute = next(iter(specs.values())).spec.compute
        takes = (compute.workers, compute.accelerator)
        first = takes if first is None else first
        if takes != first:
            message = f"compute.workers and compute.accelerator must be the same in all cells (see {variant.words})"
            problems.append(Problem(loaded.merged.place_of_key(variant.at), "", f"{message}; give them in set"))
            return


def _ambiguous(loaded: LoadedSuite, cells: list[Cell]) -> Problem:
    names = [cell.name for cell in cells]
    twice = next(name for name in names if names.count(name) > 1)
    return Problem(loaded.merged.place_of_key(("policies",)), "policies", f"two cells would be called {twice}")


def _ordered(problems: list[Problem], loaded: LoadedSuite) -> list[Problem]:
    """Each mistake once, however many cells have it: the suite's first, from top to bottom."""
    once = {(p.place, p.key): p for p in reversed(problems)}
    return sorted(once.values(), key=lambda p: (p.place.file != str(loaded.path), p.place))


# --- what it costs ------------------------------------------------------------------------------------------


def charges(plan: SuitePlan, cells: tuple[Cell, ...]) -> list[dict[str, Any]]:
    """What cells will be charged in all, by ledger and data set: each is a run with a row of its own, and they add."""
    found = []
    for (url, data_set), plans in _by_account(plan, cells).items():
        costs = [needs(one.guarantee) for one in plans]
        private = [cost for cost in costs if math.isfinite(cost[0])]
        view = plans[0].ledger
        found.append(
            {
                "data_set": data_set,
                "ledger": url,
                "cells": len(plans),
                "without_privacy": len(costs) - len(private),
                "epsilon": math.fsum(epsilon for epsilon, _ in private),
                "delta": math.fsum(delta for _, delta in private),
                "account": None if view is None else view.account.document(),
            }
        )
    return found


def refusal(plan: SuitePlan, cells: tuple[Cell, ...]) -> str | None:
    """Why a ledger has not enough left for cells that have reserved nothing yet; None: it has."""
    from harness.privacy.ledger.amounts import rounded

    for (_, data_set), plans in _by_account(plan, cells).items():
        view = plans[0].ledger
        left = None if view is None else view.account.left()
        if left is None:
            continue
        costs = [needs(one.guarantee) for one in plans]
        epsilon, delta = math.fsum(e for e, _ in costs), math.fsum(d for _, d in costs)
        rdp = None if left.order is None else math.fsum(rdp_of(one.guarantee, left.order) for one in plans)
        if math.isinf(epsilon):
            names = ", ".join(dict.fromkeys(one.spec.name for one in plans if not one.mechanism.private))
            return (
                f'"{data_set}" has a budget (uudp ledger budget), which no cell without noise keeps: leave out {names} '
                "(baselines), or give those runs no ledger (privacy.ledger: null)"
            )
        if not left.holds(epsilon, delta, rdp):
            has = f"ε = {rounded(left.epsilon, up=False):g} and δ = {rounded(left.delta, up=False):g}"
            asks = f"ε = {epsilon:g} and δ = {delta:g}"
            return (
                f'the budget of "{data_set}" has {has} left, and {len(plans)} cells ask for {asks} in sum (each is a '
                "run of its own); take fewer budgets, seeds or policies, or a larger budget (uudp ledger budget)"
            )
    return None


def most_at_a_time(plan: SuitePlan, cells: tuple[Cell, ...]) -> int | None:
    """So many cells fit into memory side by side; None: unknown.

    Raises:
        MachineError: Not even one does.
    """
    found: list[int] = []
    for cell in cells:
        room = plan.plans[cell.name].memory
        if room is None:
            continue
        if room.refusal is not None:
            raise MachineError(f"{cell.variant.words}: {room.refusal}")
        if not room.gpu and room.footprint is not None and room.available is not None:
            found.append(max(1, (room.available - RAY) // (room.workers * room.footprint.total)))
    return min(found, default=None)


def _by_account(plan: SuitePlan, cells: tuple[Cell, ...]) -> Mapping[tuple[str | None, str], list[Plan]]:
    found: dict[tuple[str | None, str], list[Plan]] = {}
    for one in _plans(plan, cells):
        url = None if one.ledger is None else one.ledger.url
        found.setdefault((url, one.guarantee.data_name), []).append(one)
    return found


def _plans(plan: SuitePlan, cells: tuple[Cell, ...]) -> Iterator[Plan]:
    return (plan.plans[cell.name] for cell in cells)
