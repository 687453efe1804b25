"""What a suite asks for, cell by cell: the spec of each, and where in the suite each of its values was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.benchmarking.reading import SHARE, LoadedSuite
from harness.benchmarking.suite import DROPPING, NON_PRIVATE, STRICTEST
from harness.errors import ArgumentError
from harness.spec import LoadedSpec, Problem, SpecErrors, load_spec
from harness.spec.overriding import override
from harness.spec.problems import COMMAND_LINE, KeyPath, Place, dotted

LONGEST_NAME = 100
"""Of a run."""


@dataclass(frozen=True)
class Setting:
    """One key of the spec that a cell sets.

    Attributes:
        key: Dotted, as on the command line.
        value: Plain data.
        at: Where in the suite it was written.
    """

    key: str
    value: Any
    at: KeyPath


@dataclass(frozen=True)
class Variant:
    """What all seeds of a cell have in common.

    Attributes:
        data: Short name of the data set; "" where the suite has one alone.
        policy: Name of the policy, or of a baseline.
        baseline: Whether it is one.
        budget: ε of the suite; None of a baseline that keeps none.
        settings: What it sets, the weakest first.
        at: Where in the suite it was asked for.
    """

    data: str
    policy: str
    baseline: bool
    budget: float | None
    settings: tuple[Setting, ...]
    at: KeyPath

    @property
    def words(self) -> str:
        """For an error."""
        of = f" on {self.data}" if self.data else ""
        return f"{self.policy}{of}" + ("" if self.budget is None else f" at ε = {self.budget:g}")


@dataclass(frozen=True)
class Cell:
    """One whole run.

    Attributes:
        name: Of its runs, and of their folder.
        variant: What it is.
        seed: Its seed.
        loaded: Its spec.
        digest: Identifies everything in that spec that decides a result.
    """

    name: str
    variant: Variant
    seed: int
    loaded: LoadedSpec
    digest: str

    def document(self) -> dict[str, Any]:
        """What it is, for records."""
        one = self.variant
        return {
            "name": self.name,
            "data": one.data or self.loaded.spec.data.name,
            "policy": one.policy,
            "baseline": one.baseline,
            "budget": one.budget,
            "seed": self.seed,
            "spec_digest": self.digest,
        }


def policies(loaded: LoadedSuite, data: str) -> list[Variant]:
    """The suite's own policies at each budget."""
    common = _settings(("set",), loaded.suite.set)
    found = []
    for name, block in loaded.suite.policies.items():
        own = _settings(("policies", name), block or {})
        kept = [one for one in common if one.key not in {mine.key for mine in own}]
        for index, budget in enumerate(loaded.suite.budgets):
            settings = [replace(one, value=_of_budget(one, budget)) for one in (*kept, *own)]
            settings.append(Setting("privacy.epsilon", budget, ("budgets", index)))
            found.append(Variant(data, name, False, budget, tuple(settings), ("policies", name)))
    return found


@dataclass(frozen=True)
class Promised:
    """What the suite's own policies promise at one budget.

    Attributes:
        strictest: The strictest ε that one of them gives any group.
        strict: Groups that one of them gives less than the budget.
        dropped: Groups that none of them trains on.
    """

    strictest: float
    strict: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def baselines(loaded: LoadedSuite, data: str, promised: Mapping[float, Promised]) -> list[Variant]:
    """The suite's baselines.

    Args:
        loaded: The suite.
        data: Short name of the data set.
        promised: By budget.
    """
    common = _settings(("set",), loaded.suite.set)
    found = []
    for index, name in enumerate(loaded.suite.baselines):
        at: KeyPath = ("baselines", index)
        if name == NON_PRIVATE:
            none = Setting("noise", {"type": "none"}, at)
            found.append(Variant(data, name, True, None, (*common, none), at))
            continue
        for place, budget in enumerate(loaded.suite.budgets):
            own = promised.get(budget, Promised(budget, ()))
            epsilon = own.strictest if name == STRICTEST else budget
            noise = Setting("noise", {"type": "uniform"}, at)
            keep = Setting("privacy.epsilon", epsilon, at if name == STRICTEST else ("budgets", place))
            left_out = list(dict.fromkeys([*own.dropped, *own.strict]))
            drop = [Setting("groups.drop", left_out, at)] if name == DROPPING else []
            found.append(Variant(data, name, True, budget, (*common, noise, keep, *drop), at))
    return found


def load_cell(loaded: LoadedSuite, variant: Variant, seed: int) -> LoadedSpec:
    """The spec of a cell.

    Raises:
        SpecErrors: It has problems; each lies in the suite where that is what it comes from.
    """
    settings = (
        *variant.settings,
        Setting("seed", seed, ("seeds", loaded.suite.seeds.index(seed))),
        Setting("name", name_of(loaded, variant, seed), ("suite",)),
    )
    try:
        return load_spec(loaded.specs[variant.data], [override(one.key, one.value) for one in settings])
    except SpecErrors as errors:
        raise SpecErrors([_translated(p, variant, settings, loaded) for p in errors.problems]) from None


def name_of(loaded: LoadedSuite, variant: Variant, seed: int) -> str:
    """Name of a cell's runs.

    Raises:
        SpecErrors: It is too long.
    """
    budget = [] if variant.budget is None else [f"e{variant.budget:g}".replace("+", "")]
    parts = [loaded.suite.suite, *([variant.data] if variant.data else []), variant.policy, *budget, f"s{seed}"]
    name = "-".join(parts)
    if len(name) > LONGEST_NAME:
        message = f'makes the name of a run longer than {LONGEST_NAME} characters ("{name}"); shorten it'
        raise SpecErrors([Problem(loaded.merged.place_of_value(("suite",)), "suite", message)])
    return name


# --- values of the suite ------------------------------------------------------------------------------------


def _settings(at: KeyPath, block: Mapping[str, Any]) -> list[Setting]:
    return [Setting(key, value, (*at, key)) for key, value in block.items()]


def _of_budget(setting: Setting, budget: float) -> Any:
    """The value of a setting in a cell of this budget."""
    return _replaced(setting.value, budget) if setting.key.partition(".")[0] == "noise" else setting.value


def _replaced(value: Any, budget: float) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, budget) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, budget) for inner in value]
    share = SHARE.fullmatch(value) if isinstance(value, str) else None
    # Rounding must not lift the whole of a budget above it.
    return value if share is None else min(budget, budget * float(share[1]) / 100)


# --- problems -------------------------------------------------------------------------------------------------


def _translated(problem: Problem, variant: Variant, settings: Sequence[Setting], loaded: LoadedSuite) -> Problem:
    """A problem of a cell's spec, at the place of the suite where its value was written."""
    if problem.place != COMMAND_LINE:
        return replace(problem, message=f"{problem.message} (in {variant.words})")
    at = _place_of(problem.key, settings)
    if at is None:
        return replace(problem, place=loaded.merged.place_of_key(variant.at))
    unknown = problem.message.startswith("unknown")
    where = loaded.merged.place_of_key(at) if unknown else loaded.merged.place_of_value(at)
    return replace(problem, place=where, key=dotted(at))


def _place_of(key: str, settings: Sequence[Setting]) -> KeyPath | None:
    """Where in the suite a key of the spec was set, or the block above it."""
    holding = [one for one in settings if key == one.key or key.startswith(f"{one.key}.")]
    if not holding:
        return next((one.at for one in settings if one.key.startswith(f"{key}.")), None)
    # The last one wins, and the closest says most.
    setting = max(reversed(holding), key=lambda one: len(one.key))
    return (*setting.at, *_below(key[len(setting.key) + 1 :], setting.value))


def _below(rest: str, value: Any) -> Iterator[str | int]:
    """The parts of a dotted key below a value; names may hold dots themselves."""
    while rest:
        names: Iterable[str | int] = value if isinstance(value, dict) else ()
        if isinstance(value, list):
            names = range(len(value))
        hits = [name for name in names if rest == str(name) or rest.startswith(f"{name}.")]
        if not hits:
            yield rest
            return
        name = max(hits, key=lambda one: len(str(one)))
        yield name
        value, rest = value[name], rest[len(str(name)) + 1 :]


_LINE = re.compile(r"(?:(?P<place>\S+:\d+:\d+|<command line>) )?(?P<key>[A-Za-z_][^\s:]*): (?P<message>.*)", re.DOTALL)


def problems_of(error: ArgumentError, variant: Variant, loaded: LoadedSuite, spec: LoadedSpec) -> list[Problem]:
    """What a plan refuses, each at its place: in the suite, in the spec, or at what asked for the cell."""
    if isinstance(error, SpecErrors):
        return list(error.problems)
    found = []
    for line in str(error).splitlines():
        parts = _LINE.fullmatch(line)
        if parts is None:
            message = f"{line} (in {variant.words})"
            found.append(Problem(loaded.merged.place_of_key(variant.at), dotted(variant.at), message))
            continue
        key, message = parts["key"], parts["message"]
        at, origin = _place_of(key, variant.settings), parts["place"] or spec.origins.get(key, "")
        by_spec = re.fullmatch(r"(.+):(\d+):(\d+)", origin)
        if by_spec is not None:
            place = Place(by_spec[1], int(by_spec[2]), int(by_spec[3]))
        elif at is not None:
            place, key = loaded.merged.place_of_value(at), dotted(at)
        else:
            place = loaded.merged.place_of_key(variant.at)
        found.append(Problem(place, key, f"{message} (in {variant.words})"))
    return found
