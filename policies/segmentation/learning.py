"""What segmentations that learn have in common: one knob for their noise, and features on a learned scale.

Everything in here that becomes a `Statistic`'s or a rule's attribute is public: constants of the spec, or what noisy
answers led to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat

from harness.plugins import PrivateSession, Query, SessionSegmenter, Statistic, UserRecords
from policies.segmentation import features
from policies.segmentation.features import FeatureParameters, Floats, only_features

Noise = Annotated[FiniteFloat, Field(ge=0.1, le=10**6)]

RANGES = "feature ranges"
BINS = 32
"""Of each number, over its public bounds."""
SPREADS = 2.0
"""A scaled number is 1 so many spreads away from the centre, and no more beyond."""
_LOW, _HIGH = 0.16, 0.84
"""Half the distance between these quantiles is the spread: a standard deviation, where numbers are normal."""


def split(noise_multiplier: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Noise multipliers of queries that cost together as much as one Gaussian of `noise_multiplier`.

    Args:
        noise_multiplier: Of the whole session.
        shares: What part of the session's cost (the sum of 1 / noise multiplier²) each query gets; any positive
            numbers, of which only the ratios count.

    Returns:
        noise_multiplier · √(sum of shares / share), by name.
    """
    whole = math.fsum(shares.values())
    return {name: noise_multiplier * math.sqrt(whole / share) for name, share in shares.items()}


class FeatureSegmenter(SessionSegmenter):
    """Learns from features of users' own records."""

    parameters: FeatureParameters

    @property
    def uses_times(self) -> bool:
        """Where a feature does."""
        return features.uses_times(self.parameters)

    @property
    def uses_model(self) -> bool:
        """Where a feature does."""
        return features.uses_model(self.parameters)


# --- the scale of features ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Where features lie and how far they spread, by noisy quantiles: public.

    Attributes:
        centre: [size] medians.
        spread: [size] half the distance from the 16th to the 84th percentile, at least half a bin.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]

    def distances(self, measured: Floats) -> Floats:
        """How many spreads each number lies above its centre."""
        found: Floats = (measured - np.array(self.centre)) / np.array(self.spread)
        return found

    def scaled(self, measured: Floats) -> Floats:
        """[size] numbers from -1 to 1, of an l2 norm of at most `scaled_reach`; ±1 is two spreads away."""
        numbers = np.clip(self.distances(measured) / SPREADS, -1.0, 1.0)
        return within(numbers, scaled_reach(len(numbers)))


def within(numbers: Floats, longest: float) -> Floats:
    """The numbers, cut to an l2 norm of at most `longest`."""
    length = float(np.sqrt(np.sum(numbers**2)))
    return numbers if length <= longest else numbers * (longest / length)


def scaled_reach(size: int) -> float:
    """The largest l2 norm of a user's scaled features: who is a spread away in every number is not cut."""
    return max(1.0, math.sqrt(size) / 2)


class Bins(Statistic):
    """The bin of each of a user's numbers."""

    Parameters = FeatureParameters

    def __init__(self, parameters: FeatureParameters) -> None:
        self.parameters = only_features(parameters)

    def value(self, user: UserRecords) -> tuple[str, ...]:
        """One key per number."""
        places = np.floor((features.vector(user, self.parameters) + 0.5) * BINS).astype(int)
        return tuple(f"{i}:{min(max(int(b), 0), BINS - 1)}" for i, b in enumerate(places))


def ranges_query(parameters: FeatureParameters, noise_multiplier: float) -> Query:
    """A histogram of every number at once: a user is in one bin of each, so its l2 sensitivity is √size."""
    size = features.size_of(parameters)
    domain = tuple(f"{i}:{b}" for i in range(size) for b in range(BINS))
    return Query(RANGES, "histogram", noise_multiplier, domain=domain, most=size)


def ask_scale(session: PrivateSession, parameters: FeatureParameters) -> Scale:
    """Asks `ranges_query`."""
    answer = session.ask(RANGES, Bins(parameters))
    counts = np.array(answer.noisy).reshape(-1, BINS)
    users = max(1.0, float(np.sum(counts)) / len(counts))  # every number has as many: their mean is less noisy
    found = [_quantiles(row, users) for row in counts]
    centre = tuple(middle for _, middle, _ in found)
    spread = tuple(max((high - low) / 2, 0.5 / BINS) for low, _, high in found)
    return Scale(centre, spread)


def _quantiles(counts: Floats, users: float) -> tuple[float, float, float]:
    """The low quantile, the median and the high quantile of noisy counts per bin."""
    rising = rising_fit(np.cumsum(counts))
    edges = np.linspace(-0.5, 0.5, BINS + 1)
    shares = np.concatenate([[0.0], np.clip(rising / users, 0.0, 1.0)])
    # Rising strictly, for an inverse; a share that noise keeps below a quantile is past the last edge.
    shares = shares + np.arange(BINS + 1) * 1e-12
    low, middle, high = (float(v) for v in np.interp((_LOW, 0.5, _HIGH), shares, edges))
    return low, middle, high


def rising_fit(numbers: Floats) -> Floats:
    """The nearest numbers, by least squares, that never fall (pool adjacent violators)."""
    means: list[float] = []
    widths: list[int] = []
    for number in numbers:
        means.append(float(number))
        widths.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            width = widths[-2] + widths[-1]
            means[-2] = (means[-2] * widths[-2] + means[-1] * widths[-1]) / width
            widths[-2] = width
            del means[-1], widths[-1]
    return np.repeat(means, widths)
