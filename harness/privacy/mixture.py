"""dp-accounting's privacy loss distribution of mixtures of Gaussians, with its slow part done for all losses at once.

Its own search for the points where the privacy loss takes given values calls Python once per point: with 16 examples
per user, a plan would take a minute. The same search over whole arrays gives the same points.
"""

from __future__ import annotations

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


class MixturePldAccountant(PLDAccountant):  # type: ignore[misc]
    """dp-accounting's PLD accountant with that loss."""

    _pld: Any

    def _maybe_compose(self, event: dp_event.DpEvent, count: int, do_compose: bool) -> Any:
        plain = not isinstance(event, dp_event.MixtureOfGaussiansDpEvent)
        if plain or event.standard_deviation == 0 or max(event.sensitivities) == 0:
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            both = (self._one_way(event, adjacency) for adjacency in (_Adjacency.REMOVE, _Adjacency.ADD))
            once = privacy_loss_distribution.PrivacyLossDistribution(*both)
            self._pld = self._pld.compose(once.self_compose(count))
        return None

    def _one_way(self, event: dp_event.MixtureOfGaussiansDpEvent, adjacency: Any) -> Any:
        loss = MixtureLoss(
            event.standard_deviation, event.sensitivities, event.sampling_probs, adjacency_type=adjacency
        )
        return privacy_loss_distribution._create_pld_pmf_from_monotone_privacy_loss(
            loss, value_discretization_interval=self._value_discretization_interval, use_connect_dots=True
        )


def accountant(grid: float) -> MixturePldAccountant:
    """A fresh accountant for users added or removed, discretised at `grid` (nats) to the pessimistic side."""
    quiet()
    return MixturePldAccountant(value_discretization_interval=grid)
