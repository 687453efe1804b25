"""dp-accounting's privacy loss distributions of sampled Gaussians and of mixtures, for all losses at once.

Its own search for the points where the privacy loss takes given values calls Python once per point: with 16 examples
per user, a plan would take a minute. The same formulas over whole arrays give the same points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution, privacy_loss_mechanism
from numpy.typing import NDArray

from harness.privacy.quiet import quiet

_Adjacency = privacy_loss_mechanism.AdjacencyType


class MixtureLoss(privacy_loss_mechanism.MixtureGaussianPrivacyLoss):  # type: ignore[misc]
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


class SampledGaussianLoss(privacy_loss_mechanism.GaussianPrivacyLoss):  # type: ignore[misc]
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
        losses = self._losses(event)
        if losses is None:
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            once = privacy_loss_distribution.PrivacyLossDistribution(*map(self._discretised, losses))
            self._pld = self._pld.compose(once.self_compose(count))
        return None

    def _losses(self, event: dp_event.DpEvent) -> tuple[Any, ...] | None:
        """The loss of one release, for users removed and for users added; None: dp-accounting's own will do."""
        both = (_Adjacency.REMOVE, _Adjacency.ADD)
        if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
            if event.standard_deviation == 0 or max(event.sensitivities) == 0:
                return None
            numbers = (event.standard_deviation, event.sensitivities, event.sampling_probs)
            return tuple(MixtureLoss(*numbers, adjacency_type=adjacency) for adjacency in both)
        if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
            sigma, rate = event.event.noise_multiplier, event.sampling_probability
            if sigma == 0 or not 0 < rate < 1:
                return None
            return tuple(SampledGaussianLoss(sigma, sampling_prob=rate, adjacency_type=adjacency) for adjacency in both)
        return None

    def _discretised(self, loss: Any) -> Any:
        return privacy_loss_distribution._create_pld_pmf_from_monotone_privacy_loss(
            loss, value_discretization_interval=self._value_discretization_interval, use_connect_dots=True
        )


def accountant(grid: float) -> MixturePldAccountant:
    """A fresh accountant for users added or removed, discretised at `grid` (nats) to the pessimistic side."""
    quiet()
    return MixturePldAccountant(value_discretization_interval=grid)
