"""Leaves whole privacy groups out of training: the baseline that every noise policy has to beat.

Which groups is a constant of the spec, and how many they are follows from public or declared weights. Nobody in them
is ever drawn, so that training says nothing of them; held out, they are evaluated like everybody else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import ArgumentError
from harness.planning.basis import Population
from harness.plugins import Group, Proposal
from harness.spec import Spec


@dataclass(frozen=True)
class Kept:
    """What is left to train on.

    Attributes:
        groups: Those that are trained on.
        dropped: The others, in the order in which the spec names them.
        proposal: The policy's, for those that are trained on.
        population: Their users alone, with weights that sum to 1: what rates and denominators follow from.
    """

    groups: tuple[Group, ...]
    dropped: tuple[Group, ...]
    proposal: Proposal
    population: Population


def without_dropped(
    groups: Sequence[Group],
    proposal: Proposal,
    population: Population,
    spec: Spec,
    counts: Mapping[str, int] | None = None,
) -> Kept:
    """Takes the groups out that the spec drops.

    Args:
        groups: Those that hold anybody.
        proposal: What the noise policy asks for.
        population: Of all users.
        spec: Says which groups.
        counts: Training users per group, where the weights are public counts.

    Raises:
        ArgumentError: A name is no group, nobody would be left, or numbers are not fixed beforehand.
    """
    names = spec.groups.drop if spec.groups is not None else ()
    if not names:
        return Kept(tuple(groups), (), proposal, population)
    by_name = {group.name: group for group in groups}
    for name in names:
        if name not in by_name:
            raise ArgumentError(
                f'groups.drop: "{name}" is no group that holds anybody (there are: {", ".join(by_name)})'
            )
    left = tuple(group for group in groups if group.name not in names)
    if not left:
        raise ArgumentError("groups.drop: nobody would be left to train on")
    share = math.fsum(population.weights[group.name] for group in left)
    users = population.users * share
    weights = {group.name: population.weights[group.name] / share for group in left}
    if counts is not None:
        total = sum(counts[group.name] for group in left)
        users, weights = float(total), {group.name: counts[group.name] / total for group in left}
    left = tuple(replace(group, weight=weights[group.name]) for group in left)
    if proposal.epsilon is not None:
        proposal = replace(proposal, epsilon={group.name: proposal.epsilon[group.name] for group in left})
    kept = replace(population, users=users, weights=weights)
    return Kept(left, tuple(by_name[name] for name in names), proposal, kept)
