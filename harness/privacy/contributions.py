"""What one user adds to the exact answer of a query, clipped to its l2 sensitivity; and what is read off the noise.

Contributions are whole multiples of a public grain, rounded towards zero, so that their sum is exact in any order, and
the noisy sum lies on the grid as well. A user without records adds nothing, whatever a statistic says: so removing a
user and emptying a user move the exact answer alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from harness.queries import Answer, Query, bucket_of

Grains = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_NUMBERS = (bool, np.bool_, int, float, np.integer, np.floating)

GRAINS = 2**40
"""In the sensitivity of a query."""
_AT_ONCE = 2**20
"""So many users' grains surely fit into 64 bits."""
_BELOW_ONE = 1 - 2.0**-45
"""Leaves room for the rounding of a norm."""


def size_of(query: Query) -> int:
    """How many numbers are summed up for a query."""
    if query.kind in ("histogram", "top_k"):
        return query.buckets or len(query.domain)
    if query.kind == "quantile":
        return len(query.edges) + 1
    return query.dimension + (query.kind == "mean")


def unit_of(query: Query) -> float:
    """What 1 means in the summed numbers: in the unit of the data for a sum, in users otherwise."""
    if query.kind == "sum":
        return _reach(query)
    return 1.0


def sensitivity_of(query: Query) -> float:
    """By how much one user can move the summed numbers, in l2 norm and in their own unit (see `unit_of`)."""
    if query.kind == "mean":
        return math.sqrt(2)  # the scaled value and the count, each at most 1
    if query.kind in ("histogram", "top_k"):
        return math.sqrt(query.most)
    return 1.0


def grain_of(query: Query) -> float:
    """The step of the grid, in the same unit."""
    return sensitivity_of(query) / GRAINS


def contribution(query: Query, value: object) -> Grains:
    """What one user adds, in grains, shape [`size_of`]: never more than the sensitivity, whatever `value` is.

    Args:
        query: Gives the bounds.
        value: What a statistic returned: of any type. What doesn't fit the query adds nothing.
    """
    found = _clipped(query, value)
    if found is None:
        return np.zeros(size_of(query), dtype=np.int64)
    return np.trunc(found / grain_of(query)).astype(np.int64)  # towards zero: no norm grows


def _clipped(query: Query, value: object) -> Floats | None:
    if query.kind in ("histogram", "top_k"):
        return _keys(query, value)
    numbers = _numbers(value, 1 if query.kind in ("count", "quantile") else query.dimension)
    if numbers is None:
        return None
    if query.kind == "count":
        return np.clip(numbers, 0.0, 1.0)
    if query.kind == "quantile":
        found = np.zeros(size_of(query))
        found[np.searchsorted(query.edges, numbers[0], side="right")] = 1.0
        return found
    scaled = _scaled(query, numbers)
    return scaled if query.kind == "sum" else np.append(scaled, 1.0)


def _scaled(query: Query, numbers: Floats) -> Floats:
    """The numbers of a sum or mean, so that their l2 norm is at most 1."""
    if query.norm is not None:
        largest = float(np.max(np.abs(numbers)))
        if largest == 0.0:
            return numbers
        direction = numbers / largest  # first, so that no square overflows
        length = float(np.sqrt(np.sum(direction**2)))
        factor = largest / query.norm
        return direction * (factor if factor * length < _BELOW_ONE else _BELOW_ONE / length)
    assert query.low is not None
    assert query.high is not None
    clipped = np.clip(numbers, query.low, query.high)
    if query.kind == "sum":
        return clipped / _reach(query)
    return np.clip((clipped - _middle(query)) / _half(query), -1.0, 1.0)


def _numbers(value: object, dimension: int) -> Floats | None:
    """`value` as finite numbers of shape [dimension]; None where it is anything else."""
    if isinstance(value, _NUMBERS):
        value = [value]
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif" or value.ndim > 1 or value.size != dimension:
            return None
    elif (
        not isinstance(value, list | tuple)
        or len(value) != dimension
        or not all(isinstance(v, _NUMBERS) for v in value)
    ):
        return None
    try:
        found = np.asarray(value, dtype=np.float64).reshape(-1)
    except (OverflowError, ValueError, TypeError):  # a whole number beyond all floats
        return None
    return found if bool(np.isfinite(found).all()) else None


def _keys(query: Query, value: object) -> Floats | None:
    """One for each of the first `most` different keys that the query knows."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return None
    places: dict[int, None] = {}
    index = _index(query.domain) if query.buckets is None else None
    for key in value:
        if len(places) == query.most:
            break
        if isinstance(key, str):
            place = index.get(key) if index is not None else bucket_of(key, query.buckets or 1)
            if place is not None:
                places[place] = None
    found = np.zeros(size_of(query))
    found[list(places)] = 1.0
    return found


@functools.lru_cache(maxsize=4)
def _index(domain: tuple[str, ...]) -> dict[str, int]:
    return {key: place for place, key in enumerate(domain)}


def total(query: Query, values: Iterable[object]) -> list[int]:
    """The exact sum of all users' contributions, in grains: of length `size_of`. Private."""
    whole = [0] * size_of(query)
    part, users = np.zeros(size_of(query), dtype=np.int64), 0
    for value in values:
        part += contribution(query, value)
        users += 1
        if users == _AT_ONCE:
            whole = [a + int(b) for a, b in zip(whole, part, strict=True)]
            part[:], users = 0, 0
    return [a + int(b) for a, b in zip(whole, part, strict=True)]


def answer(query: Query, noisy: Floats) -> Answer:
    """The answer that noisy sums lead to.

    Args:
        query: What was asked.
        noisy: [`size_of`] the sums with their noise, in their own unit.
    """
    numbers = noisy * unit_of(query)
    std = query.noise_multiplier * sensitivity_of(query) * unit_of(query)
    shown = tuple(float(n) for n in numbers)
    if query.kind == "mean":
        return _mean(query, noisy, shown, std)
    if query.kind == "quantile":
        return Answer(query.name, _quantile(query, shown), std, shown)
    if query.kind == "top_k":
        order = np.argsort(-numbers, kind="stable")[: query.top]  # of equals, the first of the domain
        return Answer(query.name, tuple(query.domain[i] for i in order), std, shown)
    if query.kind == "histogram" or query.dimension > 1:
        return Answer(query.name, shown, std, shown)
    return Answer(query.name, shown[0], std, shown)


def _mean(query: Query, noisy: Floats, shown: tuple[float, ...], std: float) -> Answer:
    users = max(1.0, float(noisy[-1]))
    ratio = noisy[:-1] / users
    half = query.norm if query.norm is not None else _half(query)
    # The noise of both, to first order.
    spread = half * std / users * math.sqrt(1 + min(1.0, float(np.sum(ratio**2))))
    if query.norm is None:
        value = _middle(query) + half * float(np.clip(ratio[0], -1, 1))
        return Answer(query.name, value, spread, shown)
    length = float(np.sqrt(np.sum(ratio**2)))
    vector = ratio * half / max(1.0, length)
    if query.dimension == 1:
        return Answer(query.name, float(vector[0]), spread, shown)
    return Answer(query.name, tuple(float(v) for v in vector), spread, shown)


def _quantile(query: Query, counts: Sequence[float]) -> float:
    """Where the noisy counts below reach the wanted share, between two edges; beyond them, the outermost edge."""
    kept = np.maximum(counts, 0.0)
    rising = np.cumsum(kept)
    if rising[-1] <= 0:
        return float(query.edges[0])
    assert query.quantile is not None
    wanted = query.quantile * rising[-1]
    place = min(int(np.searchsorted(rising, wanted)), len(kept) - 1)
    if place == 0:
        return float(query.edges[0])
    if place == len(query.edges):
        return float(query.edges[-1])
    low, high = query.edges[place - 1], query.edges[place]
    within = (wanted - rising[place - 1]) / kept[place] if kept[place] > 0 else 0.0
    return float(low + (high - low) * within)


def _reach(query: Query) -> float:
    """The largest number, or norm, that a user adds to a sum."""
    if query.norm is not None:
        return query.norm
    return max(abs(query.low or 0.0), abs(query.high or 0.0))


def _middle(query: Query) -> float:
    return ((query.low or 0.0) + (query.high or 0.0)) / 2


def _half(query: Query) -> float:
    return ((query.high or 0.0) - (query.low or 0.0)) / 2
