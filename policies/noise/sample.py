"""More protection for some groups, through a lower sampling rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, FiniteFloat

from harness.plugins import Group, Lever, NoisePolicy, PluginError, PluginParameters, Proposal, resolve_by_group


class SampleParameters(PluginParameters):
    """Parameters of `sample`."""

    epsilon: dict[str, Annotated[FiniteFloat, Field(ge=0.01, le=1000)]] = Field(
        min_length=1, description='target ε by segment, by tier or by "segment/tier"; at most privacy.epsilon'
    )


class Sample(NoisePolicy):
    """Each group gets its own target ε by its own sampling rate; the noise and the clip norm are the same for all.

    A stricter group's users take part in fewer steps, and each time count as much as anybody else. The rates are
    solved so that their mean over the population is the spec's. Users who take part rarely but fully have another
    trade-off between ε and δ than users who take part often and are clipped harder: the same (ε, δ) hides that, so
    the plan shows each group's δ at every ε. The "Sample" variant of individualised DP-SGD (Boenisch et al., 2023).
    """

    Parameters = SampleParameters
    parameters: SampleParameters

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The targets of the spec, to be reached by sampling rates."""
        for name, target in self.parameters.epsilon.items():
            if target > epsilon:
                raise PluginError(f"{target:g} is above privacy.epsilon ({epsilon:g})", ("epsilon", name))
        return Proposal(resolve_by_group(self.parameters.epsilon, groups, "epsilon"), Lever.SAMPLING_RATE)
