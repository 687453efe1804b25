"""dp-accounting's privacy loss distributions of sampled Gaussians and of mixtures, for all losses at once.

Its own search for the points where the privacy loss takes given values calls Python once per point: with 16 examples
per user, a plan would take a minute. The same formulas over whole arrays give the same points. Composing a step with
itself spends most of its time on forty bounds of the tails; here they come from one exponential, with the same values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, pld_pmf, privacy_loss_distribution, privacy_loss_mechanism
from numpy.typing import NDArray
from scipy import fft, special

from harness.privacy.quiet import quiet

_Adjacency = privacy_loss_mechanism.AdjacencyType
TAIL = 1e-15
"""Of a composition, in all: counted as an infinite loss, as dp-accounting does."""
MOST_KEPT = 50_000
"""Values of one step's loss that are kept for the next composition: a few megabytes in all."""


class _Normal:
    """Gaussian probabilities by `scipy.special`: those of `scipy.stats`, without its care for every argument."""

    _standard_deviation: float

    def noise_cdf(self, x: Any) -> Any:
        """Of the noise."""
        return special.ndtr(np.asarray(x, dtype=np.float64) / self._standard_deviation)

    def noise_log_cdf(self, x: Any) -> Any:
        """Its logarithm."""
        return special.log_ndtr(np.asarray(x, dtype=np.float64) / self._standard_deviation)


class MixtureLoss(_Normal, privacy_loss_mechanism.MixtureGaussianPrivacyLoss):  # type: ignore[misc]
    """The privacy loss of a mixture of Gaussians."""

    def _inverse_privacy_losses_with_range(
        self, privacy_losses: NDArray[np.float64], bounds: tuple[float, float], precision: float = 1e-6
    ) -> Iterable[float]:
        """For each loss, the smallest multiple of `precision` within `bounds` at which the loss is at most that."""
        losses = np.asarray(privacy_losses, dtype=np.float64)
        low: Any = np.full(losses.shape, round(bounds[0] / precision), dtype=np.int64)
        high: Any = np.full(losses.shape, round(bounds[1] / precision), dtype=np.int64)
        while bool((high - low > 1).any()):
            middle = (low + high) // 2
            above = self._losses(middle * precision) > losses
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        found: NDArray[np.float64] = high * precision
        return found

    def _losses(self, x: Any) -> NDArray[np.float64]:
        """The privacy loss at every point, shape [points]."""
        sign = 1.0 if self.adjacency_type == _Adjacency.ADD else -1.0
        slopes = sign * np.asarray(self.sensitivities)[:, None] / self._variance
        terms: Any = np.asarray(self._precompute_privacy_loss_constants)[:, None] + slopes * x
        largest = terms.max(axis=0)
        terms -= largest
        np.exp(terms, out=terms)
        found: NDArray[np.float64] = -sign * (largest + np.log(terms.sum(axis=0)))
        return found


class SampledGaussianLoss(_Normal, privacy_loss_mechanism.GaussianPrivacyLoss):  # type: ignore[misc]
    """The privacy loss of a Gaussian under Poisson sampling at a rate below 1."""

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        """δ at every ε, shape [losses]."""
        losses = np.asarray(epsilon, dtype=np.float64)
        if losses.ndim == 0:
            return super().get_delta_for_epsilon(epsilon)
        edge = math.log1p(-self.sampling_prob)
        add = self.adjacency_type == _Adjacency.ADD
        # Beyond the edge, the loss is never (added users), or always (removed ones) as large.
        inside = losses < -edge if add else losses > edge
        deltas: Any = np.zeros_like(losses) if add else -np.expm1(np.minimum(losses, 0.0))
        points = self._points(losses[inside], edge, add)
        above = self.mu_upper_cdf(points) - np.exp(losses[inside] + self.mu_lower_log_cdf(points))
        deltas[inside] = above
        return np.clip(deltas, 0, 1)

    def _points(self, losses: NDArray[np.float64], edge: float, add: bool) -> NDArray[np.float64]:
        """The largest x at which the loss is at least that: log(1 + (e^loss − 1) / q) without sampling."""
        sign = -1.0 if add else 1.0
        inverse = 1 / self.sampling_prob
        shifted = sign * losses + math.log(inverse)
        with np.errstate(all="ignore"):
            unsampled = sign * (shifted + np.log1p(-np.exp(math.log(inverse - 1) - shifted)))
        at_edge = np.isclose(losses, sign * edge, rtol=1e-9, atol=0.0)
        unsampled = np.where(at_edge, -sign * math.inf, unsampled)
        found: NDArray[np.float64] = (
            -0.5 * self.sensitivity - unsampled * self._standard_deviation**2 / self.sensitivity
        )
        return self.sensitivity + found if add else found


class MixturePldAccountant(PLDAccountant):  # type: ignore[misc]
    """dp-accounting's PLD accountant with these losses."""

    _pld: Any

    def _maybe_compose(self, event: dp_event.DpEvent, count: int, do_compose: bool) -> Any:
        if not _known(event):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            once = _discretised(event, self._value_discretization_interval)
            self._pld = self._pld.compose(
                privacy_loss_distribution.PrivacyLossDistribution(*(self_composed(pmf, count) for pmf in once))
            )
        return None


def accountant(grid: float) -> MixturePldAccountant:
    """A fresh accountant for users added or removed, discretised at `grid` (nats) to the pessimistic side."""
    quiet()
    return MixturePldAccountant(value_discretization_interval=grid)


def _known(event: dp_event.DpEvent) -> bool:
    """Whether one release has a loss of ours; for all others dp-accounting's own will do."""
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        return bool(event.standard_deviation != 0 and max(event.sensitivities) != 0)
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        return bool(event.event.noise_multiplier != 0 and 0 < event.sampling_probability < 1)
    return False


def _discretised(event: dp_event.DpEvent, grid: float) -> tuple[Any, ...]:
    """The loss of one release on a grid, for users removed and for users added: kept, where it is not too large."""
    losses = _losses(event)
    bounds = losses[0].connect_dots_bounds()
    if (bounds.epsilon_upper - bounds.epsilon_lower) / grid < MOST_KEPT:
        return _kept(event, grid)
    return tuple(_on_grid(loss, grid) for loss in losses)


@functools.lru_cache(maxsize=128)
def _kept(event: dp_event.DpEvent, grid: float) -> tuple[Any, ...]:
    return tuple(_on_grid(loss, grid) for loss in _losses(event))


@functools.lru_cache(maxsize=128)
def _losses(event: dp_event.DpEvent) -> tuple[Any, ...]:
    both = (_Adjacency.REMOVE, _Adjacency.ADD)
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        numbers = (event.standard_deviation, event.sensitivities, event.sampling_probs)
        return tuple(MixtureLoss(*numbers, adjacency_type=adjacency) for adjacency in both)
    sigma, rate = event.event.noise_multiplier, event.sampling_probability
    return tuple(SampledGaussianLoss(sigma, sampling_prob=rate, adjacency_type=adjacency) for adjacency in both)


def _on_grid(loss: Any, grid: float) -> Any:
    return privacy_loss_distribution._create_pld_pmf_from_monotone_privacy_loss(
        loss, value_discretization_interval=grid, use_connect_dots=True
    )


def self_composed(pmf: Any, count: int) -> Any:
    """What dp-accounting's ``pmf.self_compose(count)`` gives, in less time and with a truer upper tail.

    The same bounds of the tails, and the mass beyond them counted as an infinite loss. Rounding in a Fourier transform
    is of one size everywhere, 1e-17 or so per value: of thousands of values it comes to more than a small δ, and would
    bring ε below the true one. So the upper tail is taken from the transform of tilted probabilities (each times
    e^(θ·place)), whose bulk lies there. Small distributions go dp-accounting's own way.

    Args:
        pmf: dp-accounting's distribution of one step's losses.
        count: How many steps.
    """
    if count == 1 or count * math.log(pmf.size) <= math.log(pld_pmf._MAX_PMF_SPARSE_SIZE):
        return pmf.self_compose(count)
    dense = pmf.to_dense_pmf()
    probs: NDArray[np.float64] = np.asarray(dense._probs, dtype=np.float64)
    low, high, order = tail_bounds(probs, count, TAIL)
    length = fft.next_fast_len(max(high - low + 1, len(probs)), real=True)
    composed = _powered(probs, count, length, low)[: high - low + 1]
    if order > 0:
        tilted = probs * np.exp(order / 2 * np.arange(len(probs)))
        mass = float(tilted.sum())
        back = count * math.log(mass) - order / 2 * np.arange(low, high + 1)
        # Where `back` is below 0, the tilted transform's rounding is the smaller one.
        upper = _powered(tilted / mass, count, length, low)[: high - low + 1] * np.exp(np.minimum(back, 0.0))
        composed = np.where(back < 0, upper, composed)
    infinite = TAIL - math.expm1(count * math.log1p(-dense._infinity_mass))
    return pld_pmf.DensePLDPmf(
        dense._discretization, dense._lower_loss * count + low, composed, infinite, dense._pessimistic_estimate
    )


def _powered(probs: NDArray[np.float64], count: int, length: int, first: int) -> NDArray[np.float64]:
    """Of the sum of `count` draws, around a circle of `length` places, beginning with place `first`."""
    found: NDArray[np.float64] = fft.irfft(fft.rfft(probs, length) ** count, length)
    return np.roll(found, -first)


def tail_bounds(probs: NDArray[np.float64], count: int, tail: float) -> tuple[int, int, float]:
    """Places outside of which `count` draws in sum lie with a probability of at most `tail`, by Chernoff's bound.

    Args:
        probs: Of the places 0, 1, … of one draw.
        count: How many draws.
        tail: In (0, 1).

    Returns:
        The lowest and the highest place, and the order that gave the highest; 0 where none did.
    """
    size = len(probs)
    low, high, best = 0, (size - 1) * count, 0.0
    rising = np.exp(np.arange(size) / size)
    for base, sign in ((rising, 1), (1 / rising, -1)):
        weighted = np.maximum(probs, 0.0)
        for k in range(1, 21):
            weighted = weighted * base
            order, mass = sign * k / size, float(weighted.sum())
            if mass <= 0:
                continue
            bound = (count * math.log(mass) - math.log(tail / 2)) / order
            if sign < 0:
                low = max(low, math.floor(bound))
            elif math.ceil(bound) < high:
                high, best = math.ceil(bound), order
    return low, high, best
