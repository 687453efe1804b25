"""Segments by how unusual a user is among all, by private robust statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import (
    OwnRecordsSegmenter,
    Page,
    PluginParameters,
    PrivateSession,
    Query,
    Statistic,
    UserRecords,
)
from policies.segmentation import features, learning
from policies.segmentation.features import FeatureParameters
from policies.segmentation.learning import RANGES, Noise, Scale

TYPICAL, OUTLIER = "typical", "outlier"
DISTANCES = "distances"
Distance = Literal["largest", "mean"]

_DISTANCES_SHARE = 0.5
"""Of the session's cost, where the threshold is asked for."""
_EDGES = tuple(float(edge) for edge in np.round(np.geomspace(1, 16, 13), 6))
"""Of distances, between which a share of users is looked for: half an octave is two steps."""


class AnomalyParameters(FeatureParameters):
    """Parameters of `anomaly`."""

    distance: Distance = Field(
        default="largest",
        description="of a user's distances from the medians, in spreads: the largest, or their quadratic mean",
    )
    threshold: FiniteFloat | None = Field(
        default=None, gt=0, le=1000, description="distance from which a user is an outlier: a public constant"
    )
    outliers: FiniteFloat | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="in place of a threshold: the share of users that are to be outliers, asked with noise; "
        "with neither, 0.05",
    )
    noise_multiplier: Noise = Field(
        default=5.0, description="of everything asked, taken together: what learning costs each user's ε"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> AnomalyParameters:
        if self.threshold is not None and self.outliers is not None:
            raise ValueError("outliers: give either a threshold or outliers")
        return self


class Anomaly(learning.FeatureSegmenter):
    """Two segments: users like most others, and users far from them in features of their own records.

    Use it where some users stand out in what they write: a model remembers those best, so that they are more exposed
    than the rest, and should get the stricter ε. It asks one noisy histogram of all features, for their medians and
    spreads; a user's distance is in spreads. Where no `threshold` is given, it asks a histogram of distances as well,
    for the one that a share of `outliers` lies beyond; both take half of the cost.

    `noise_multiplier` is that of both together: the default costs ε = 0.73 by itself (δ = 1e-5). With it, among 1,000
    users the share that is found lies within some 0.03 of what was wanted; four times as many users quarter that, or
    let you double the noise. It finds what is unusual in its features alone. Who is an outlier is private.
    """

    Parameters = AnomalyParameters
    parameters: AnomalyParameters
    page = Page(
        formula="distance = largest (or mean) over features of |feature − noisy median| / noisy spread",
        sees="Features of each user's own records, through noisy answers alone; then one user at a time.",
        when="Some users stand out in what they write: a model remembers those best; they should get the stricter ε.",
        costs=(
            "Privacy: every answer is a charge (ε = 0.73 alone with the defaults at δ = 1e-5). Only the largest ε over "
            "groups is claimed. Weights of the groups must be given or noisy."
        ),
        example=("type: anomaly\nfeatures: [records, capitals, punctuation]\noutliers: 0.05"),
    )
    segments = (TYPICAL, OUTLIER)

    @property
    def queries(self) -> tuple[Query, ...]:
        """One for the features' ranges; one for the distances, unless there is a threshold."""
        parameters = self.parameters
        if parameters.threshold is not None:
            return (learning.ranges_query(parameters, parameters.noise_multiplier),)
        shares = {RANGES: 1 - _DISTANCES_SHARE, DISTANCES: _DISTANCES_SHARE}
        noise = learning.split(parameters.noise_multiplier, shares)
        domain = tuple(str(i) for i in range(len(_EDGES) + 1))
        return (
            learning.ranges_query(parameters, noise[RANGES]),
            Query(DISTANCES, "histogram", noise[DISTANCES], domain=domain),
        )

    def fit(self, session: PrivateSession) -> FarFromMost:
        """Asks for medians and spreads, then for the distance that so few users lie beyond."""
        parameters = self.parameters
        scale = learning.ask_scale(session, parameters)
        threshold = parameters.threshold
        if threshold is None:
            answer = session.ask(DISTANCES, DistanceKey(parameters, scale, parameters.distance))
            threshold = threshold_of(answer.noisy, parameters.outliers or 0.05)
        return FarFromMost(parameters, scale, parameters.distance, threshold)


class _Distant:
    """How far a user lies from most others."""

    Parameters: ClassVar[type[PluginParameters]] = FeatureParameters
    parameters: FeatureParameters

    def __init__(self, parameters: FeatureParameters, scale: Scale, how: Distance) -> None:
        self.parameters = features.only_features(parameters)
        self.centre, self.spread = scale.centre, scale.spread
        self.how: Distance = how

    def _distance(self, user: UserRecords) -> float:
        scale = Scale(self.centre, self.spread)
        distances = np.abs(scale.distances(features.vector(user, self.parameters)))
        return float(np.max(distances) if self.how == "largest" else np.sqrt(np.mean(distances**2)))


class DistanceKey(_Distant, Statistic):
    """Between which public edges a user's distance lies."""

    def value(self, user: UserRecords) -> str:
        """Its key; a distance equal to an edge lies above it."""
        return str(int(np.searchsorted(_EDGES, self._distance(user), side="right")))


class FarFromMost(_Distant, OwnRecordsSegmenter):
    """What `anomaly` learns: medians, spreads and a threshold."""

    parameters: FeatureParameters
    segments = (TYPICAL, OUTLIER)

    def __init__(self, parameters: FeatureParameters, scale: Scale, how: Distance, threshold: float) -> None:
        super().__init__(parameters, scale, how)
        self.threshold = threshold

    def assign(self, user: UserRecords) -> str:
        """An outlier from the threshold on."""
        return OUTLIER if self._distance(user) >= self.threshold else TYPICAL


def threshold_of(noisy: Sequence[float], share: float) -> float:
    """The distance beyond which a share of users lies, by noisy counts between edges; at most the last edge.

    Args:
        noisy: [edges + 1] users below the first edge, between the first two, …, above the last.
        share: Of all users, those wanted beyond.
    """
    counts = np.array(noisy)
    # Summed from the far end, where few users are: less noise is added up.
    beyond = learning.rising_fit(np.cumsum(counts[::-1]))[::-1]
    wanted = share * max(1.0, float(np.sum(counts)))
    # beyond[i + 1] users lie from edge i on.
    rising = beyond[1:][::-1] + np.arange(len(_EDGES)) * 1e-9
    return float(np.interp(wanted, rising, _EDGES[::-1]))
