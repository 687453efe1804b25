"""What policies have in common that give each group a target ε of the spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, FiniteFloat

from harness.plugins import Group, Lever, NoisePolicy, PluginError, PluginParameters, Proposal, resolve_by_group

Epsilon = Annotated[FiniteFloat, Field(ge=0.01, le=1000)]


class TargetParameters(PluginParameters):
    """A target per group."""

    epsilon: dict[str, Epsilon] = Field(
        min_length=1, description='target ε by segment, by tier or by "segment/tier"; at most privacy.epsilon'
    )


class TargetedPolicy(NoisePolicy):
    """Each group gets its own target ε, by one lever."""

    Parameters = TargetParameters
    parameters: TargetParameters
    lever: ClassVar[Lever]

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The targets of the spec, to be reached by the lever."""
        return Proposal(targets(self.parameters.epsilon, groups, epsilon), self.lever)


def targets(wanted: dict[str, float], groups: Sequence[Group], epsilon: float) -> dict[str, float]:
    """The spec's targets, one per group.

    Raises:
        PluginError: One is above the budget, or they don't name the groups.
    """
    for name, target in wanted.items():
        if target > epsilon:
            raise PluginError(f"{target:g} is above privacy.epsilon ({epsilon:g})", ("epsilon", name))
    return resolve_by_group(wanted, groups, "epsilon")
