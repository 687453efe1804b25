"""Amounts that add exactly: ten times 0.1 is 1, and fits a budget of 1.0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

from harness.errors import ArgumentError

Exact = Fraction | float
"""A finite amount is a fraction; the float is infinity alone."""
SMALLEST_ORDER, LARGEST_ORDER = 1.1, 1024.0


def text_of(amount: float) -> str:
    """An amount as it is stored: the shortest decimal that is this float; ``inf`` for infinity.

    Raises:
        ValueError: It is negative or no number.
    """
    if not amount >= 0:
        raise ValueError(f"Expected amount={amount} >= 0")
    return repr(float(amount))


def exact(text: str) -> Exact:
    """The inverse of `text_of`, as a number that adds without rounding."""
    return math.inf if text == "inf" else Fraction(Decimal(text))


def add(amounts: list[Exact]) -> Exact:
    """Their exact sum."""
    return math.inf if math.inf in amounts else sum(amounts, Fraction(0))


def rounded(amount: Exact, *, up: bool) -> float:
    """A float of at most six digits that is not below (or not above) an amount: for people, never for sums."""
    if amount == math.inf:
        return math.inf
    whole = exact(repr(amount)) if isinstance(amount, float) else amount
    assert isinstance(whole, Fraction)
    context = Context(prec=6, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return float(context.divide(Decimal(whole.numerator), Decimal(whole.denominator)))


@dataclass(frozen=True)
class Budget:
    """What all runs on one data set may spend together. Public.

    Attributes:
        epsilon: ε.
        delta: δ.
        order: The one Rényi order at which the RDP of runs adds; None: their ε and δ add.
        capacity: With an order: how much RDP (nats) fits.
    """

    epsilon: float
    delta: float
    order: float | None = None
    capacity: float | None = None

    @classmethod
    def of(cls, epsilon: float, delta: float, order: float | None = None) -> Budget:
        """A budget, checked.

        Raises:
            ArgumentError: A number lies outside its range, or this order can't hold any run.
        """
        if not (math.isfinite(epsilon) and 0 < epsilon <= 1e6):
            raise ArgumentError(f"--epsilon: must be above 0 and at most 1e6, found {epsilon:g}")
        if not 0 < delta < 1:
            raise ArgumentError(f"--delta: must be above 0 and below 1, found {delta:g}")
        if order is None:
            return cls(epsilon, delta)
        if not SMALLEST_ORDER <= order <= LARGEST_ORDER:
            raise ArgumentError(f"--order: must be from {SMALLEST_ORDER:g} to {LARGEST_ORDER:g}, found {order:g}")
        capacity = capacity_of(epsilon, delta, order)
        if capacity <= 0:
            raise ArgumentError(
                f"--order: at order {order:g}, ε = {epsilon:g} and δ = {delta:g} leave no room for any run; "
                "give a larger order, or leave it out"
            )
        return cls(epsilon, delta, order, capacity)


def converted(rdp: float, delta: float, order: float) -> float:
    """ε at `delta` of so much RDP at one order (Canonne, Kamath & Steinke 2020, Proposition 12), at least 0."""
    if rdp == 0:
        return 0.0
    return max(0.0, rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


def capacity_of(epsilon: float, delta: float, order: float) -> float:
    """The largest RDP (nats) at one order that converts to at most (ε, δ); not positive where there is none."""
    overhead = math.log(delta * order) / (order - 1)
    capacity = epsilon - math.log1p(-1 / order) + overhead
    # Rounding is in proportion to what was added, not to what is left of it.
    rounding = 1e-15 * (epsilon + abs(overhead) + 1)
    while capacity > 0 and converted(capacity, delta, order) > epsilon:
        capacity -= rounding
        rounding *= 2
    return capacity
