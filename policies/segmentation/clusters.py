"""What segmentations by clusters have in common: their parameters, the public places where they start, the first round.

The first round looks at four times as many places as there will be clusters, and makes clusters of their noisy counts
and sums. So it finds clusters wherever they are, which fewer places, chosen without the data, often do not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from harness.plugins import PluginParameters, PrivateSession, Query, Statistic, UserRecords
from policies.segmentation import features, learning
from policies.segmentation.features import FeatureParameters, Floats
from policies.segmentation.learning import Noise, Scale

Name = Annotated[str, Field(min_length=1, max_length=200)]

RANGES_SHARE = 0.25
"""Of the session's cost; all rounds, the first one too, share the rest alike."""
_COUNT_SHARE = 0.2
"""Of a round's cost: a count's noise moves a centroid along one direction, that of the sums along all."""
_PLACES = 4
"""In the first round, for each cluster."""
_TURNS = 10
FIRST = "start"

Bools = npt.NDArray[np.bool_]


class ClusterParameters(FeatureParameters):
    """Of segmentations that learn clusters."""

    k: int = Field(default=3, ge=2, le=20, description="number of clusters, each a segment; a public constant")
    names: tuple[Name, ...] | None = Field(
        default=None,
        description="one name per cluster, from the lowest to the highest value of the first feature; "
        "left out: cluster-1, cluster-2, …",
    )
    iterations: int = Field(default=3, ge=1, le=50, description="rounds after the first one; they share the cost")
    noise_multiplier: Noise = Field(
        default=5.0, description="of everything asked, taken together: what learning costs each user's ε"
    )

    @model_validator(mode="after")
    def _one_name_each(self) -> ClusterParameters:
        if self.names is not None and len(self.names) != self.k:
            raise ValueError(f"names: {self.k} clusters need as many names")
        if self.names is not None and len(set(self.names)) != self.k:
            raise ValueError("names: the same name twice")
        return self


def names_of(parameters: ClusterParameters) -> tuple[str, ...]:
    """The names of all segments, from the lowest to the highest first feature."""
    return parameters.names or tuple(f"cluster-{j + 1}" for j in range(parameters.k))


def in_order(places: Sequence[Sequence[float]]) -> list[int]:
    """The centres from the lowest to the highest first feature: what a cluster is called follows from where it is."""
    return sorted(range(len(places)), key=lambda j: (*places[j], j))


# --- one user among some centroids --------------------------------------------------------------------------


class Scaled:
    """Features on their learned scale: what statistics and rules are made of."""

    Parameters: ClassVar[type[PluginParameters]] = FeatureParameters
    parameters: FeatureParameters

    def __init__(self, parameters: FeatureParameters, scale: Scale) -> None:
        self.parameters = features.only_features(parameters)
        self.centre, self.spread = scale.centre, scale.spread

    def scaled(self, user: UserRecords) -> Floats:
        """[size] of one user. Private."""
        return Scale(self.centre, self.spread).scaled(features.vector(user, self.parameters))

    @property
    def uses_times(self) -> bool:
        """Where a feature does."""
        return features.uses_times(self.parameters)

    @property
    def uses_model(self) -> bool:
        """Where a feature does."""
        return features.uses_model(self.parameters)


class Nearest(Scaled):
    """The nearest of some centroids."""

    def __init__(self, parameters: FeatureParameters, scale: Scale, centroids: Floats) -> None:
        super().__init__(parameters, scale)
        self.centroids = centroids

    def nearest(self, scaled: Floats) -> int:
        """Its number; of equally near ones the first."""
        return int(np.argmin(np.sum((self.centroids - scaled) ** 2, axis=1)))


class NearestKey(Nearest, Statistic):
    """Which centroid a user is nearest to."""

    def value(self, user: UserRecords) -> str:
        """Its key."""
        return str(self.nearest(self.scaled(user)))


class NearestSum(Nearest, Statistic):
    """A user's scaled features, in the block of the nearest centroid: an l2 norm of at most `scaled_reach`."""

    def value(self, user: UserRecords) -> Floats:
        """[centroids · size] zeros but for one block."""
        scaled = self.scaled(user)
        found = np.zeros_like(self.centroids)
        found[self.nearest(scaled)] = scaled
        return found.reshape(-1)


# --- a round ------------------------------------------------------------------------------------------------


def round_shares(name: str, share: float) -> dict[str, float]:
    """The cost of a round, by query."""
    users, sums = _names(name)
    return {users: share * _COUNT_SHARE, sums: share * (1 - _COUNT_SHARE)}


def round_queries(name: str, centroids: int, size: int, noise: dict[str, float]) -> tuple[Query, Query]:
    """How many users are nearest to each centroid, and the sums of their scaled features."""
    users, sums = _names(name)
    domain = tuple(str(j) for j in range(centroids))
    reach = learning.scaled_reach(size)
    return (
        Query(users, "histogram", noise[users], domain=domain),
        Query(sums, "sum", noise[sums], dimension=centroids * size, norm=reach),
    )


def ask_round(
    session: PrivateSession, name: str, parameters: FeatureParameters, scale: Scale, centroids: Floats
) -> tuple[Floats, Floats, Bools]:
    """Asks `round_queries`.

    Returns:
        [centroids, size] the means, within the public bounds of scaled features; where fewer users are nearest than
        noise could make seem so, the centroid where it was. [centroids] noisy counts. [centroids] whether it moved.
    """
    users, sums = _names(name)
    counted = session.ask(users, NearestKey(parameters, scale, centroids))
    summed = session.ask(sums, NearestSum(parameters, scale, centroids))
    counts = np.array(counted.noisy)
    enough = counts >= max(1.0, counted.std + summed.std / 4)
    return means(centroids, counts, np.array(summed.noisy).reshape(centroids.shape), enough), counts, enough


def means(before: Floats, counts: Floats, sums: Floats, enough: Bools) -> Floats:
    """Noisy sums over noisy counts, within the public bounds; where there are not enough users, what was `before`."""
    found = before.copy()
    for j in np.flatnonzero(enough):
        mean = np.clip(sums[j] / counts[j], -1.0, 1.0)
        found[j] = learning.within(mean, learning.scaled_reach(len(mean)))
    return found


def _names(name: str) -> tuple[str, str]:
    return f"{name}: users", f"{name}: sums"


# --- the first round ----------------------------------------------------------------------------------------


def first_shares(share: float) -> dict[str, float]:
    """As `round_shares`."""
    return round_shares(FIRST, share)


def first_queries(parameters: ClusterParameters, noise: dict[str, float]) -> tuple[Query, Query]:
    """As `round_queries`, of the public places."""
    return round_queries(FIRST, _PLACES * parameters.k, features.size_of(parameters), noise)


def ask_first(session: PrivateSession, parameters: ClusterParameters, scale: Scale) -> tuple[Floats, Floats]:
    """Asks `first_queries`.

    Returns:
        [k, size] centroids. [k] what share of users is nearest to each, roughly.
    """
    places = first_places(_PLACES * parameters.k, features.size_of(parameters))
    moved, counts, enough = ask_round(session, FIRST, parameters, scale, places)
    if np.sum(enough) < parameters.k:
        enough = np.isin(np.arange(len(counts)), np.argsort(-counts, kind="stable")[: parameters.k])
    kept = np.maximum(counts[enough], 1.0)
    centroids, shares = merged(moved[enough], kept, parameters.k)
    return centroids, shares


def first_places(count: int, size: int) -> Floats:
    """[count, size] points far apart on a sphere: a public choice, which no data has a part in."""
    candidates = _public_normals(16 * count, size)
    candidates /= np.sqrt(np.sum(candidates**2, axis=1, keepdims=True))
    chosen = [candidates[0]]
    while len(chosen) < count:
        gaps = np.min([np.sum((candidates - c) ** 2, axis=1) for c in chosen], axis=0)
        chosen.append(candidates[int(np.argmax(gaps))])
    # Somewhat nearer than most users, of whom each number is about a spread away.
    return 0.8 * np.array(chosen) * math.sqrt(size) / learning.SPREADS


def _public_normals(rows: int, columns: int) -> Floats:
    """Normal numbers by a hash of their place: the same in every process and version."""
    hashed = (hashlib.blake2b(str(i).encode(), digest_size=16, person=b"places") for i in range(rows * columns))
    content = b"".join(one.digest() for one in hashed)
    whole = np.frombuffer(content, dtype=">u4").reshape(-1, 4)[:, :2].astype(np.float64)
    uniform = (whole + 0.5) / 2.0**32
    normals: Floats = np.sqrt(-2 * np.log(uniform[:, 0])) * np.cos(2 * math.pi * uniform[:, 1])
    return normals.reshape(rows, columns)


def merged(places: Floats, weights: Floats, k: int) -> tuple[Floats, Floats]:
    """The k clusters of weighted places: k-means from each place in turn, the best of all. No noise, no data: answers.

    Args:
        places: [places, size], at least k.
        weights: [places] above 0.
        k: How many.

    Returns:
        [k, size] their centroids, and [k] their shares of the weight.
    """
    best: tuple[float, Floats, Floats] | None = None
    for first in range(len(places)):
        centroids = places[_spread_out(places, weights, first, k)]
        for _ in range(_TURNS):
            own = np.argmin(_squares(places, centroids), axis=1)
            for j in range(k):
                if np.any(own == j):
                    centroids[j] = np.average(places[own == j], axis=0, weights=weights[own == j])
        squares = _squares(places, centroids)
        cost = float(np.sum(weights * np.min(squares, axis=1)))
        if best is None or cost < best[0] - 1e-12:
            shares = np.bincount(np.argmin(squares, axis=1), weights=weights, minlength=k) / np.sum(weights)
            best = cost, centroids, shares
    assert best is not None
    return best[1], best[2]


def _spread_out(places: Floats, weights: Floats, first: int, k: int) -> list[int]:
    """A place, and k − 1 that are heavy and far from those before."""
    chosen = [first]
    while len(chosen) < k:
        gaps = weights * np.min(_squares(places, places[chosen]), axis=1)
        gaps[chosen] = -1.0
        chosen.append(int(np.argmax(gaps)))
    return chosen


def _squares(points: Floats, centroids: Floats) -> Floats:
    """[points, centroids] squared distances."""
    found: Floats = np.sum((points[:, None, :] - centroids[None, :, :]) ** 2, axis=2)
    return found
