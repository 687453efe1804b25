"""A sweep's space → candidates: drawn from the public prior, or all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.spec.conditions import Space, by_key, holds, ordered
from harness.spec.overriding import override
from harness.spec.sweep_block import PriorBlock

MOST_WHOLE_NUMBERS = 10_000
MOST_CANDIDATES = 100_000


@dataclass(frozen=True)
class Candidate:
    """One point of a space. Which one a trial has is as secret as the trial; the prior that it is drawn from is public.

    Attributes:
        values: The keys that it sets, in the space's order, each with its value.
    """

    values: tuple[tuple[str, Any], ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """``key=value`` arguments for `load_spec`, which reads back exactly these values."""
        return tuple(override(key, value) for key, value in self.values)

    def document(self) -> dict[str, Any]:
        """Its values by dotted key, as plain data."""
        return dict(self.values)


def base_values(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a resolved spec by dotted key: what conditions on keys outside the candidate are held against."""
    return dict(by_key({name: value for name, value in resolved.items() if name != "sweep"}))


def draw(space: Space, uniform: Callable[[str], float], base: Mapping[str, Any]) -> Candidate:
    """One candidate, each key drawn from its prior independently of the others.

    Args:
        space: Priors by dotted key, as in a spec that was loaded.
        uniform: A uniform draw from (0, 1] for each key; asked once, and only for keys that the candidate has.
        base: The resolved spec's values (`base_values`).
    """
    drawn: dict[str, Any] = {}
    for key in ordered(space):
        if holds(space[key], drawn, space, base):
            drawn[key] = _value_at(space[key], uniform(key))
    return _candidate(space, drawn)


def finite(space: Space, base: Mapping[str, Any]) -> tuple[Candidate, ...] | None:
    """All candidates, where every prior has finitely many values.

    Returns:
        The first keys change slowest, each in the order of its values; None where a prior is a range of numbers or of
        more than 10,000 whole ones, or where there are more than 100,000 candidates.
    """
    values = {key: _all(prior) for key, prior in space.items()}
    if any(found is None for found in values.values()):
        return None
    listed = {key: found for key, found in values.items() if found is not None}
    candidates: list[Candidate] = []
    for drawn in _combinations(space, ordered(space), listed, base, {}):
        if len(candidates) == MOST_CANDIDATES:
            return None
        candidates.append(_candidate(space, drawn))
    return tuple(candidates)


def values_of(prior: PriorBlock) -> tuple[Any, ...]:
    """The values that bound a prior: all values of ``choice`` and ``grid``, the two ends of the others."""
    if prior.values is not None:
        return prior.values
    assert prior.ends is not None
    return prior.ends


def _candidate(space: Space, drawn: Mapping[str, Any]) -> Candidate:
    return Candidate(tuple((key, drawn[key]) for key in space if key in drawn))


def _all(prior: PriorBlock) -> tuple[Any, ...] | range | None:
    if prior.values is not None:
        return prior.values
    if prior.int is None or prior.int[1] - prior.int[0] >= MOST_WHOLE_NUMBERS:
        return None
    return range(prior.int[0], prior.int[1] + 1)


def _combinations(
    space: Space,
    keys: tuple[str, ...],
    values: Mapping[str, tuple[Any, ...] | range],
    base: Mapping[str, Any],
    drawn: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Every way to set `keys`, of which each comes after those that its condition names."""
    if not keys:
        yield drawn
        return
    key, *rest = keys
    if not holds(space[key], drawn, space, base):
        yield from _combinations(space, tuple(rest), values, base, drawn)
        return
    for value in values[key]:
        yield from _combinations(space, tuple(rest), values, base, {**drawn, key: value})


def _value_at(prior: PriorBlock, u: float) -> Any:
    """The value of a prior at a quantile, 0 < u ≤ 1."""
    if prior.values is not None:
        return prior.values[_index(u, len(prior.values))]
    if prior.int is not None:
        return prior.int[0] + _index(u, prior.int[1] - prior.int[0] + 1)
    assert prior.ends is not None
    low, high = prior.ends
    if prior.loguniform is not None:
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    return float(min(max(value, low), high))


def _index(u: float, count: int) -> int:
    """Which of `count` equal parts of (0, 1] holds u."""
    return min(max(math.ceil(u * count) - 1, 0), count - 1)
