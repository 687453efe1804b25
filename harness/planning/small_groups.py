"""Makes one privacy group of those that are too small, before anything is calibrated.

What is merged follows from weights that were fixed before any private record was read: declared ones, or public
counts. Everything afterwards (levers, noisy counts, assignment, evaluation) knows the merged groups alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import ArgumentError
from harness.planning.basis import Population
from harness.plugins import Group, Proposal
from harness.spec.models import GroupsBlock


@dataclass(frozen=True)
class Grouping:
    """The privacy groups of a run.

    Attributes:
        groups: In the order of the mechanism's; a merged group stands where the first that it holds stood.
        holds: Of each group, the segments × tiers that it is made of: itself, where nothing was merged.
        proposal: The policy's, for these groups.
        population: With the weights of these groups.
    """

    groups: tuple[Group, ...]
    holds: tuple[tuple[Group, ...], ...]
    proposal: Proposal
    population: Population


def merge_small(
    groups: Sequence[Group],
    proposal: Proposal,
    population: Population,
    block: GroupsBlock | None,
    counts: Mapping[str, int] | None = None,
) -> Grouping:
    """Merges the groups below the public minimum into one.

    Where the merged group is still below it, or holds one group alone, the next smallest joins, and so on. Its target
    is the strictest of those that it holds.

    Args:
        groups: Those that hold anybody, with the policy's targets in `proposal`.
        proposal: What the noise policy asks for.
        population: Weights of these groups.
        block: What the spec says; None: nothing is merged.
        counts: Training users per group, where the weights are public counts.

    Raises:
        ArgumentError: A group is called as the merged one should be, or the weights are not fixed beforehand.
    """
    alone = Grouping(tuple(groups), tuple((g,) for g in groups), proposal, population)
    if block is None or block.smallest is None:
        return alone
    if population.weights_source == "noisy":
        raise ArgumentError("groups.smallest: needs weights that are known beforehand, and data.weights is noisy")
    if any(block.merged in (g.name, g.segment, g.tier) for g in groups):
        raise ArgumentError(f'groups.merged: "{block.merged}" is a segment, tier or group itself; choose another name')
    small = _small([population.weights[g.name] for g in groups], block.smallest)
    if not small:
        return alone
    held = tuple(g for i, g in enumerate(groups) if i in small)
    weight = math.fsum(population.weights[g.name] for g in held)
    if counts is not None:
        weight = sum(counts[g.name] for g in held) / sum(counts.values())
    merged = Group(block.merged, block.merged, None, weight)
    made: list[Group] = []
    holds: list[tuple[Group, ...]] = []
    for i, group in enumerate(groups):
        if i not in small:
            made.append(group)
            holds.append((group,))
        elif i == min(small):
            made.append(merged)
            holds.append(held)
    weights = {g.name: weight if g is merged else population.weights[g.name] for g in made}
    if proposal.epsilon is not None:
        targets = proposal.epsilon
        epsilon = {g.name: min(targets[one.name] for one in ones) for g, ones in zip(made, holds, strict=True)}
        proposal = replace(proposal, epsilon=epsilon)
    return Grouping(tuple(made), tuple(holds), proposal, replace(population, weights=weights))


def _small(weights: Sequence[float], smallest: float) -> frozenset[int]:
    """The places of the groups that are merged: none, or at least two, since one alone is below by itself."""
    rising = sorted(range(len(weights)), key=lambda i: (weights[i], i))
    count = sum(weight < smallest for weight in weights)
    if not count or len(weights) < 2:
        return frozenset()
    while count < len(weights) and math.fsum(weights[i] for i in rising[:count]) < smallest:
        count += 1
    return frozenset(rising[:count])
