"""The privacy groups of a spec: its segments × its risk tiers, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.plugins import Group


def groups_of(
    segments: Sequence[str], tiers: Sequence[str] = (), weights: Mapping[str, float] | None = None
) -> tuple[Group, ...]:
    """All groups: of every segment, every tier.

    A group is called by what distinguishes it: ``segment`` where there are no tiers, ``tier`` where there is one
    segment, else ``segment/tier``. A tier's name holds no ``/`` (its model sees to that), so no two are called alike.

    Args:
        segments: Names of all segments.
        tiers: Names of all tiers; empty without a sensitivity assessment.
        weights: Declared fraction of the population, by group name; None before they are known.
    """
    found = []
    for segment in segments:
        for tier in tiers or (None,):
            name = segment if tier is None else tier if len(segments) == 1 else f"{segment}/{tier}"
            found.append(Group(name, segment, tier, None if weights is None else weights[name]))
    return tuple(found)
