"""ε of a whole search: the accountant of plans that are trials of one.

Before any trial, one curve is fixed: the Rényi DP that a trial may have, at the few orders that decide the price (at
all others it may have any). Every candidate is calibrated so that its own curve lies under it at every order, whatever
its sampling rate or number of steps. Then the price of the search follows from that curve alone, and does not depend on
which candidate wins:

- of the best of a random number of trials, all others of which stay secret, by Papernot and Steinke (2022);
- of a fixed number of trials, each of which may depend on the ones before, by composition: as many times the curve.

A trial whose candidate can't be planned, or whose score is no number, counts as one with the worst score: for that it
needs no more than that its candidate was drawn like all others. Ties go to the first trial; of trials that are alike
and independent, that is the same as to any of them, and its number is not released.

Noisy answers that every trial asks for are in the curve of each. That is an upper bound where each trial has answers of
its own, and where all of them share the same ones: with ρ their Rényi DP and R − ρ what a trial adds given them, they
compose with the search over trials under R − ρ, and at every order

    ρ(λ) + price(R − ρ)(λ) ≤ price(R)(λ),

since each law's price is a trial's curve plus terms that do not fall with it. It does not follow where trials ask
different questions and only those that ask the same share an answer: then trials are not independent given the answers
that all of them share, and of the others each counts once, not once per trial. So that is nothing to rely on: where the
questions differ between candidates, every trial must be answered with noise of its own.

The curves that a trial may be held under form one family, from most to least exposed: those of one reference, which is
a sampled Gaussian run (of the spec as it is written), at every noise multiplier. ε of a candidate is the price of the
member of that family that lies above it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ArgumentError, BudgetError
from harness.privacy.mechanism import Charge, GroupMechanism, Mechanism, Stretch, Unit
from harness.privacy.remembering import remembered
from harness.privacy.roots import falling_root
from harness.privacy.selection import LARGEST_MEAN, Law, selection_event

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

ORDERS: tuple[float, ...] = (
    *(1.1, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0),
    *(5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0),
    *(22.0, 24.0, 26.0, 28.0, 30.0, 32.0, 36.0, 40.0, 44.0, 48.0, 56.0, 64.0, 80.0, 96.0),
    *(128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
)
"""Of Rényi DP: those that are looked at. Against three times as many, a price loses a tenth of a percent."""
TOLERANCE = 3e-7
"""Of the logarithm of a noise multiplier."""
_LOWEST, _HIGHEST = math.log(0.02), math.log(1e6)
_ROUNDING = 1e-12
"""Relative: by so much a curve may lie above another, through rounding alone, and still count as equal."""
Curve = tuple[float, ...]
"""Rényi DP (nats) at each of a search's orders."""
_NO_WORSE = 1e-9
"""Relative: an order that lowers the price by less is not needed."""


@dataclass(frozen=True)
class Trials:
    """How many trials a search has, as far as its price depends on it. Public; the number drawn from a law is not.

    Attributes:
        law: Of the random number of trials, of which only the best is released; ``fixed``: a number that is known, and
            all of them are charged.
        mean: The mean of the law; of ``fixed``, the number itself.
        shape: Of ``negative_binomial`` alone.
    """

    law: Law | Literal["fixed"]
    mean: float
    shape: float | None = None

    def __post_init__(self) -> None:
        if self.law == "fixed" and not (1 <= self.mean <= LARGEST_MEAN and self.mean == int(self.mean)):
            raise ArgumentError(f"the number of trials must be a whole number from 1 to {LARGEST_MEAN:g}")

    def event(self, trial: DpEvent) -> DpEvent:
        """What a user is exposed to by all trials together, each of which exposes them at most to `trial`."""
        if self.law == "fixed":
            from dp_accounting import dp_event

            return dp_event.SelfComposedDpEvent(trial, int(self.mean))
        return selection_event(trial, self.law, self.mean, self.shape)

    def in_words(self) -> str:
        """For a reader."""
        if self.law == "fixed":
            return f"{int(self.mean)} trials, all of them charged"
        shape = "" if self.shape is None else f", shape {self.shape:g}"
        return f"the best of a secret random number of trials ({self.law.replace('_', ' ')}, mean {self.mean:g}{shape})"


@dataclass(frozen=True)
class Searched:
    """The accountant of a search. Public.

    Attributes:
        trials: How many.
        rate: q of the reference.
        steps: T of the reference.
        unit: What the reference samples.
        examples: G of the reference, of sampled examples.
        schedule: Of the reference.
        charges: Noisy answers that every trial asks for, as the reference does.
        orders: At which a trial is held.
        apart: Whether each target is held at no more than the orders that it needs itself: only where a group has the
            same target in every trial.
        always: Orders at which every target is held, whether its price needs them or not: that of a ledger which adds
            up Rényi DP at one.
    """

    trials: Trials
    rate: float
    steps: int
    unit: Unit = "user"
    examples: int = 1
    schedule: tuple[Stretch, ...] = ()
    charges: tuple[Charge, ...] = ()
    orders: tuple[float, ...] = ORDERS
    apart: bool = False
    always: tuple[float, ...] = ()

    def answers(self) -> Searched:
        """The same search over noisy answers alone, whose reference is one Gaussian."""
        return Searched(self.trials, rate=1.0, steps=1)

    def held_at(self, targets: Sequence[float], delta: float, *, apart: bool) -> Searched:
        """The same search with trials held at no more orders than these totals need.

        A run with another sampling rate or number of steps has another curve: the fewer orders it is held at, the less
        noise it needs to lie under the reference's.

        Args:
            targets: ε of the whole search, of every group.
            delta: δ.
            apart: Whether no group has another target in another trial.

        Raises:
            BudgetError: No noise is enough for one of them.
        """
        found = {order for target in dict.fromkeys(targets) for order in _needed(self, target, delta)}
        found.update(self.always)
        return dataclasses.replace(self, orders=tuple(sorted(found)), apart=apart)

    def curve_of(self, event: DpEvent) -> Curve:
        """The Rényi DP of an event at the orders at which trials are held."""
        return curve_of(event, self.orders)

    # --- the family of references -------------------------------------------------------------------------------

    def reference(self, sigma: float) -> Curve:
        """The reference's curve at one noise multiplier."""
        group = GroupMechanism("reference", 1.0, self.rate, 1.0, self.steps, self.examples)
        mechanism = Mechanism(
            self.steps, sigma, (group,), "add_or_remove", self.unit, schedule=self.schedule, charges=self.charges
        )
        return self.curve_of(mechanism.event(0))

    def allowed(self, target: float, delta: float) -> Curve:
        """The reference curve R: what a trial may have at most, for the whole search to cost `target` at `delta`.

        Infinite at orders at which it may have anything.

        Raises:
            BudgetError: No noise is enough.
        """
        curve = tuple(_allowed(self, target, delta))
        if not self.apart:
            return curve
        needed = {*_needed(dataclasses.replace(self, apart=False), target, delta), *self.always}
        return tuple(v if order in needed else math.inf for order, v in zip(self.orders, curve, strict=True))

    def excess(self, event: DpEvent, allowed: Curve) -> float:
        """The log of the largest ratio of an event's curve to the allowed one: at most 0 where it lies under it."""
        return _clipped(largest_log_ratio(self.curve_of(event), allowed))

    def above(self, curve: Curve) -> Curve:
        """The member of the family with the most noise that lies above a curve at every order.

        Raises:
            BudgetError: There is none: the curve is beyond all reason.
        """
        # The family falls with log σ: looked for is the largest one at which it is still above.
        found = falling_root(
            lambda y: _clipped(largest_log_ratio(curve, self.reference(math.exp(-y)))),
            _start(curve, self),
            -2.0,
            TOLERANCE,
            -_HIGHEST,
            -_LOWEST,
        )
        if found is None:
            raise BudgetError("a trial is exposed more than any reference of this search")
        return self.reference(math.exp(-found[0]))

    # --- prices -------------------------------------------------------------------------------------------------

    def epsilon(self, event: DpEvent, delta: float) -> float:
        """ε of the whole search where no trial exposes a user more than the reference that lies above this event."""
        curve = self.curve_of(event)
        if max(curve) == 0:
            return 0.0
        return self.price(self.above(curve), delta) if math.isfinite(min(curve)) else math.inf

    def price(self, curve: Curve, delta: float) -> float:
        """ε at `delta` of the whole search, from the curve that trials are held under and from nothing else."""
        return float(self._composed(curve).get_epsilon(delta))

    def rdp(self, curve: Curve, order: float) -> float:
        """Rényi DP of the whole search at one order, as a ledger with a fixed order adds it up; infinite if unknown."""
        values = self._composed(curve).rdp
        # It never falls with the order: that of the next one above holds as well.
        return min((float(v) for o, v in zip(self.orders, values, strict=True) if o >= order), default=math.inf)

    def _composed(self, curve: Curve) -> Any:
        from harness.privacy.renyi import CurveDpEvent, accountant

        return accountant(self.orders).compose(self.trials.event(CurveDpEvent(self.orders, curve)))


def curve_of(event: DpEvent, orders: tuple[float, ...] = ORDERS) -> Curve:
    """The Rényi DP of an event at these orders."""
    from harness.privacy.renyi import accountant

    return tuple(float(value) for value in accountant(orders).compose(event).rdp)


def largest_log_ratio(curve: Sequence[float], allowed: Sequence[float]) -> float:
    """The log of the largest curve / allowed over all orders but those at which anything is allowed (infinity).

    What is no number, on either side, counts as too much.
    """
    ratios = [-math.inf]
    for value, limit in zip(curve, allowed, strict=True):
        if value <= 0 or limit == math.inf:
            continue
        ratio = value / limit if limit > 0 else math.nan
        ratios.append(math.log(ratio) if 0 < ratio < math.inf else math.inf)
    return max(ratios)


def lies_under(curve: Sequence[float], allowed: Sequence[float]) -> bool:
    """Whether a trial with this curve may be run in a search whose price was computed of `allowed`."""
    return largest_log_ratio(curve, allowed) <= _ROUNDING


@remembered
def _allowed(searched: Searched, target: float, delta: float) -> list[float]:
    found = falling_root(
        lambda x: _clipped(math.log(max(searched.price(searched.reference(math.exp(x)), delta), 1e-300) / target)),
        0.0,
        -1.5,
        TOLERANCE,
        _LOWEST,
        _HIGHEST,
    )
    if found is None:
        raise BudgetError(
            f"no noise brings the whole search ({searched.trials.in_words()}) to ε = {target:g} at δ = {delta:g}; "
            "search less, or raise privacy.epsilon"
        )
    return list(searched.reference(math.exp(found[0])))


@remembered
def _needed(searched: Searched, target: float, delta: float) -> list[float]:
    """The orders without which the price of what `target` allows would be higher."""
    curve = list(searched.allowed(target, delta))
    least = searched.price(tuple(curve), delta)
    for place in range(len(curve)):
        value, curve[place] = curve[place], math.inf
        if not searched.price(tuple(curve), delta) <= least * (1 + _NO_WORSE):
            curve[place] = value
    return [order for order, value in zip(searched.orders, curve, strict=True) if math.isfinite(value)]


def _start(curve: Curve, searched: Searched) -> float:
    """−log σ to begin with: as for many small losses, whose Rényi DP falls with σ²."""
    place = 0
    one = searched.reference(1.0)[place]
    ratio = curve[place] / one if one > 0 and math.isfinite(one) and math.isfinite(curve[place]) else 1.0
    return min(max(0.5 * math.log(max(ratio, 1e-9)), -_HIGHEST), -_LOWEST)


def _clipped(value: float) -> float:
    return min(max(value, -50.0), 50.0)
