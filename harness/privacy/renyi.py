"""Rényi DP of everything that a `Mechanism` can do, the sampled examples of a user included.

dp-accounting has the Rényi DP of Poisson-sampled Gaussians, of their compositions and of selection among a random
number of runs. For mixtures of Gaussians, which sampling examples leads to, it has none: it is integrated here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray

from harness.privacy.quiet import quiet


@dataclass(frozen=True)
class CurveDpEvent(dp_event.DpEvent):  # type: ignore[misc]
    """Anything with this Rényi DP at these orders: what a trial of a search is held under.

    Attributes:
        orders: Each above 1.
        rdp: Its Rényi DP (nats) at each of them.
    """

    orders: tuple[float, ...]
    rdp: tuple[float, ...]


MUCH_SAMPLED = 0.05
"""From this sampling rate on, Rényi DP at fractional orders is integrated."""
_ROUNDING = 1e-12
"""Of the log of an integral about 1: more than it can be."""
MOST_POINTS = 2_000_000
"""Of the integral at one order; an order that needs more is left out (its value is infinite, a valid bound)."""


class MixtureRdpAccountant(RdpAccountant):  # type: ignore[misc]
    """dp-accounting's Rényi accountant, which also composes mixtures of Gaussians, and each kind of step once."""

    def _maybe_compose(self, event: dp_event.DpEvent, count: int, do_compose: bool) -> Any:
        orders = tuple(self._orders.tolist())
        if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
            if do_compose:
                numbers = (event.standard_deviation, tuple(event.sensitivities), tuple(event.sampling_probs))
                self._rdp += count * np.array(mixture_rdp(*numbers, orders))
        elif isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
            if do_compose:
                self._rdp += count * np.array(_sampled_rdp(event, orders))
        elif isinstance(event, CurveDpEvent):
            if event.orders != orders:
                raise ValueError("a curve is composed at its own orders")
            if do_compose:
                self._rdp += count * np.array(event.rdp)
        else:
            return super()._maybe_compose(event, count, do_compose)
        return None


@functools.lru_cache(maxsize=256)
def _sampled_rdp(event: dp_event.DpEvent, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Of one sampled Gaussian: a curve and a search for steps ask for it again and again.

    At whole orders dp-accounting's. At others its series is too large by orders of magnitude where much is sampled
    under much noise, or gives up; what bounds it there as well is that (α − 1) times Rényi DP is convex in α, and the
    integral.
    """
    rate, sigma = float(event.sampling_probability), float(event.event.noise_multiplier)
    fractional = tuple(order for order in orders if order != int(order))
    if not fractional or not 0 < rate < 1 or not sigma > 0:
        return _theirs(event, orders)
    whole = sorted({float(n) for order in orders for n in (math.floor(order), math.ceil(order)) if n > 1})
    found = dict(zip(whole, _theirs(event, tuple(whole)), strict=True))
    if rate < MUCH_SAMPLED:
        other = _theirs(event, fractional)
    else:
        integral = mixture_rdp(sigma, (0.0, 1.0), (1 - rate, rate), fractional)
        other = tuple(v + _ROUNDING * (v + 1 / (a - 1)) for a, v in zip(fractional, integral, strict=True))
    for order, value in zip(fractional, other, strict=True):
        low, high = math.floor(order), math.ceil(order)
        below = (low - 1) * found[low] if low > 1 else 0.0
        convex = ((high - order) * below + (order - low) * (high - 1) * found[high]) / (order - 1)
        found[order] = min(value, convex)
    return tuple(found[order] for order in orders)


def _theirs(event: dp_event.DpEvent, orders: tuple[float, ...]) -> tuple[float, ...]:
    found: Any = RdpAccountant(orders=list(orders)).compose(event).rdp
    return tuple(found.tolist())


def accountant(orders: Sequence[float] | None = None) -> MixtureRdpAccountant:
    """A fresh accountant for users added or removed; `orders` None: dp-accounting's own."""
    quiet()
    return MixtureRdpAccountant() if orders is None else MixtureRdpAccountant(orders=list(orders))


def rdp_at(event: dp_event.DpEvent, order: float) -> float:
    """The Rényi DP of an event at one order above 1: what a Rényi filter adds up."""
    composed = accountant([order]).compose(event)
    return float(composed.rdp[0])


@functools.lru_cache(maxsize=256)
def mixture_rdp(
    sigma: float, sensitivities: tuple[float, ...], probabilities: tuple[float, ...], orders: tuple[float, ...]
) -> tuple[float, ...]:
    """Rényi DP of ``Σ_k p_k N(c_k, σ²)`` against ``N(0, σ²)``, the larger of both directions.

    With L the log of the ratio of both densities, it is ``log E[e^(αL)] / (α − 1)`` in one direction and
    ``log E[e^((1−α)L)] / (α − 1)`` in the other, both expectations under ``N(0, σ²)``. The integrals are taken by the
    trapezoidal rule, whose error for such integrands falls exponentially: in the complex plane L is analytic in a strip
    of half width πσ² (its argument has negative real roots only), and ten widths below the step nothing is left.

    Args:
        sigma: Standard deviation.
        sensitivities: c_k ≥ 0.
        probabilities: p_k, which sum to 1.
        orders: α > 1.

    Returns:
        One value per order; infinite where the integral is beyond reach.
    """
    step = min(sigma / 5, sigma**2 / 2)
    top = max(c for c, p in zip(sensitivities, probabilities, strict=True) if p > 0)
    return tuple(_one_order(sigma, sensitivities, probabilities, order, step, top) for order in orders)


def _one_order(
    sigma: float, sensitivities: Sequence[float], probabilities: Sequence[float], order: float, step: float, top: float
) -> float:
    reach = order * top + 14 * sigma
    if order <= 1 or 2 * reach / step > MOST_POINTS:
        return math.inf
    x: NDArray[np.float64] = np.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1).astype(np.float64) * step
    ratio = _log_ratio(x, sigma, sensitivities, probabilities)
    density = -0.5 * (x / sigma) ** 2 + math.log(step / sigma) - 0.5 * math.log(2 * math.pi)
    largest = max(_log_sum(density + order * ratio), _log_sum(density + (1 - order) * ratio))
    return max(0.0, largest) / (order - 1)


def _log_ratio(
    x: NDArray[np.float64], sigma: float, sensitivities: Sequence[float], probabilities: Sequence[float]
) -> NDArray[np.float64]:
    pairs = [(c, p) for c, p in zip(sensitivities, probabilities, strict=True) if p > 0]
    # A block at a time, so that the terms of all sensitivities stay in the cache.
    found = np.empty_like(x)
    c = np.array([c for c, _ in pairs])[:, None]
    constants = np.log([p for _, p in pairs])[:, None] - c * c / (2 * sigma**2)
    for begin in range(0, len(x), 4096):
        terms = constants + c * (x[begin : begin + 4096] / sigma**2)
        largest = terms.max(axis=0)
        terms -= largest
        found[begin : begin + 4096] = largest + np.log(np.exp(terms, out=terms).sum(axis=0))
    return found


def _log_sum(values: NDArray[np.float64]) -> float:
    largest = float(values.max())
    return largest + math.log(float(np.exp(values - largest).sum()))
