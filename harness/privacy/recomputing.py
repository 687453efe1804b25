"""ε of a run that somebody else published, from the mechanism that its ``privacy.json`` states and nothing else.

What is read here may be damaged, or written to deceive: every value has its type and its range checked before the
accountant sees it. That ε follows from the stated mechanism is all that this shows: not that it was executed.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from harness.errors import ArgumentError, BudgetError
from harness.privacy.accounting import (
    OneRun,
    answering_group,
    charges_epsilon,
    group_epsilon,
    largest_epsilon,
)
from harness.privacy.mechanism import Mechanism
from harness.privacy.remembering import remembered
from harness.privacy.search import ORDERS, Curve, Searched, Trials, largest_log_ratio
from harness.spec.models import LARGEST_DELTA, MOST_PLD_STEPS, MOST_STEPS, MOST_USERS, SMALLEST_DELTA, SMALLEST_RATE

MOST_ITEMS = 1000
"""Of a list in a mechanism: groups, parts of a schedule, questions."""
MOST_KEPT = 10_000
"""Examples of a user, where examples are sampled: computing their distribution would take too long beyond."""
LONGEST = 1000
"""Of a name, in characters."""
HELD = 2e-6
"""Of the log of Rényi DP over a published curve: by so much rounding and the search for the curve may differ."""
T = TypeVar("T")


@dataclass(frozen=True)
class PublishedSearch:
    """What the price of a search follows from, as `SearchCost.document` writes it.

    Attributes:
        trials: How many.
        orders: Rényi orders at which trials were held.
        curves: Per group, the Rényi DP at these orders; infinite where anything was allowed.
        holdout: The same of private hold-out users, at all orders of a search; None: there are none.
    """

    trials: Trials
    orders: tuple[float, ...]
    curves: tuple[Curve, ...]
    holdout: Curve | None


@dataclass(frozen=True)
class Recomputed:
    """Every ε that a run may claim at its δ. Infinite where the mechanism gives nothing.

    Attributes:
        groups: Of each group's users, in the mechanism's order.
        largest: Of any training user: the maximum over groups, or, where groups were learnt, of the dominating event.
        holdout: Of private hold-out users; None: there are none.
        accountant: The one that answered: RDP where a privacy loss distribution is beyond reach.
    """

    groups: tuple[float, ...]
    largest: float
    holdout: float | None
    accountant: Literal["pld", "rdp"]

    @property
    def total(self) -> float:
        """The run's ε."""
        return max(self.largest, self.holdout or 0.0)


# --- reading ------------------------------------------------------------------------------------------------


def mechanism_of(document: object) -> Mechanism:
    """The mechanism that a document holds, with every type and range checked.

    Raises:
        ArgumentError: It holds none.
    """
    _check(Mechanism, document, "mechanism")
    try:
        found = Mechanism.from_dict(typing.cast(dict[str, Any], document))
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise ArgumentError(f"the mechanism is none: {error}") from None
    beyond = found.steps > MOST_STEPS or any(
        not SMALLEST_RATE <= g.sampling_rate <= 1
        or g.users > MOST_USERS
        or (found.sampling_unit == "example" and g.examples_per_user > MOST_KEPT)
        for g in found.groups
    )
    if beyond:
        raise ArgumentError("the mechanism is beyond what a spec can ask for")
    return found


def search_of(document: object, groups: int) -> PublishedSearch:
    """The search that a document holds.

    Args:
        document: ``search`` of a ``privacy.json``.
        groups: How many groups the mechanism has: each has a curve.

    Raises:
        ArgumentError: It holds none.
    """
    names = {"law", "mean", "shape", "orders", "curves", "holdout"}
    if not isinstance(document, dict) or set(document) != names:
        raise ArgumentError(f"search: expected exactly {', '.join(sorted(names))}")
    trials = _trials(document)
    orders = document["orders"]
    known = isinstance(orders, list) and all(_is_number(o) and o in ORDERS for o in orders)
    if not known or not orders or sorted(set(orders)) != orders:
        raise ArgumentError("search.orders: expected orders of a search, in ascending order")
    curves = document["curves"]
    if not isinstance(curves, list) or len(curves) != groups:
        raise ArgumentError(f"search.curves: expected one for each of {groups} groups")
    holdout = document["holdout"]
    if holdout is not None:
        if not isinstance(holdout, dict) or holdout.get("orders") != list(ORDERS):
            raise ArgumentError("search.holdout: expected all orders of a search")
        holdout = _curve(holdout.get("curve"), len(ORDERS))
    return PublishedSearch(trials, tuple(map(float, orders)), tuple(_curve(c, len(orders)) for c in curves), holdout)


def _trials(document: Mapping[str, Any]) -> Trials:
    law, mean, shape = document["law"], document["mean"], document["shape"]
    laws = ("geometric", "logarithmic", "negative_binomial", "poisson", "fixed")
    if law not in laws or not _is_number(mean) or not (shape is None or _is_number(shape)):
        raise ArgumentError("search: expected a law of the number of trials, with its mean and shape")
    return Trials(law, float(mean), None if shape is None else float(shape))


def _curve(values: object, length: int) -> Curve:
    """A curve, null for infinity; with one finite value at least, or it would allow anything."""
    if not isinstance(values, list) or len(values) != length:
        raise ArgumentError("search: a curve must have one value for each order")
    if not all(v is None or (_is_number(v) and v >= 0) for v in values) or all(v is None for v in values):
        raise ArgumentError("search: a curve must have numbers that are not negative, or null")
    return tuple(math.inf if v is None else float(v) for v in values)


def typed(kind: type[T], document: object, where: str) -> T:
    """A frozen dataclass of plain values from a document, with the type of every value checked.

    Raises:
        ArgumentError: It does not fit.
    """
    _check(kind, document, where)
    try:
        return kind(**typing.cast(dict[str, Any], document))
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"{where}: {error}") from None


def _check(kind: Any, document: object, where: str) -> None:
    """That a document has exactly the fields of a dataclass, each of its type."""
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(document, dict):
        raise ArgumentError(f"{where}: expected an object")
    if set(document) != set(names):
        missing = [name for name in names if name not in document]
        what = f"{missing[0]} is missing" if missing else "there are keys that it does not have"
        raise ArgumentError(f"{where}: {what}")
    hints = typing.get_type_hints(kind)
    for name in names:
        # An infinite clip norm is written as null.
        if document[name] is not None or name != "clip_norm":
            _check_value(hints[name], document[name], f"{where}.{name}")


def _check_value(hint: Any, value: object, where: str) -> None:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _check_value(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    elif origin is tuple:
        if not isinstance(value, list) or len(value) > MOST_ITEMS:
            raise ArgumentError(f"{where}: expected a list of at most {MOST_ITEMS}")
        for index, each in enumerate(value):
            _check_value(typing.get_args(hint)[0], each, f"{where}[{index}]")
    elif origin is Literal:
        known = typing.get_args(hint)
        _require(isinstance(value, str) and value in known, f"{where}: expected one of {', '.join(known)}")
    elif dataclasses.is_dataclass(hint):
        _check(hint, value, where)
    elif hint is str:
        fits = isinstance(value, str) and len(value) <= LONGEST
        _require(fits, f"{where}: expected a text of at most {LONGEST} characters")
    elif hint is bool:
        _require(isinstance(value, bool), f"{where}: expected true or false")
    elif not _is_number(value) or (hint is int and not isinstance(value, int)):
        raise ArgumentError(f"{where}: expected a finite {'whole ' if hint is int else ''}number")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ArgumentError(problem)


def _is_number(value: object) -> bool:
    """Whether this is a finite number of ordinary size, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e15 if isinstance(value, int) else math.isfinite(value)


# --- computing ----------------------------------------------------------------------------------------------


def recompute(
    mechanism: Mechanism, delta: float, accountant: OneRun, *, any_group: bool, search: PublishedSearch | None = None
) -> Recomputed:
    """Every ε that follows from a mechanism.

    Args:
        mechanism: With noise.
        delta: δ.
        accountant: The spec's; of a search it is RDP.
        any_group: Whether which group a user is in follows from noisy answers.
        search: Of the trial that a search released: the search.

    Raises:
        ArgumentError: δ is none, or the accountant can't say.
    """
    if not SMALLEST_DELTA <= delta <= LARGEST_DELTA:
        raise ArgumentError(f"δ = {delta:g} is not from {SMALLEST_DELTA:g} to {LARGEST_DELTA:g}")
    if not mechanism.choice_delta < delta:
        raise ArgumentError("the δ of answers that decide levers is not below the run's")
    if search is None and accountant == "pld" and mechanism.steps > MOST_PLD_STEPS:
        raise ArgumentError(f"more than {MOST_PLD_STEPS} steps take the PLD accountant too long")
    try:
        if search is None:
            found = _of_run(mechanism, delta, accountant, any_group)
        else:
            found = _of_search(mechanism, delta, search, any_group)
    except (ArithmeticError, ValueError, MemoryError, BudgetError):
        raise ArgumentError("the accountant can't settle on the mechanism's numbers") from None
    answered: Literal["pld", "rdp"] = "pld" if found["accountant"] == "pld" else "rdp"
    return Recomputed(tuple(found["groups"]), found["largest"], found["holdout"], answered)


@remembered
def _of_run(mechanism: Mechanism, delta: float, accountant: OneRun, any_group: bool) -> dict[str, Any]:
    groups = [group_epsilon(mechanism, i, delta, accountant) for i in range(len(mechanism.groups))]
    holdout = None if mechanism.holdout is None else charges_epsilon((mechanism.holdout,), delta, accountant)
    return {
        "groups": groups,
        "largest": largest_epsilon(mechanism, delta, accountant) if any_group else max(groups),
        "holdout": holdout,
        "accountant": answering_group(mechanism, groups.index(max(groups)), delta, accountant),
    }


@remembered
def _of_search(mechanism: Mechanism, delta: float, search: PublishedSearch, any_group: bool) -> dict[str, Any]:
    """The price of the curves that trials were held under; infinite where this trial is not under its own."""
    # What the reference was does not matter once there are curves.
    searched = Searched(search.trials, rate=1.0, steps=1, orders=search.orders)
    answers, groups = searched.answers(), []
    for i, curve in enumerate(search.curves):
        event = mechanism.dominating_event() if any_group else mechanism.event(i)
        under = not mechanism.choice and largest_log_ratio(searched.curve_of(event), curve) <= HELD
        groups.append(searched.price(curve, delta) if under else math.inf)
    holdout = None
    if mechanism.holdout is not None:
        allowed = search.holdout
        under = allowed is not None and (
            largest_log_ratio(answers.curve_of(mechanism.holdout_event()), allowed) <= HELD
        )
        holdout = answers.price(allowed, delta) if allowed is not None and under else math.inf
    return {"groups": groups, "largest": max(groups), "holdout": holdout, "accountant": "rdp"}
