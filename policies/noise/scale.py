"""More noise for some groups, through a smaller clip norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, FiniteFloat

from harness.plugins import Group, Lever, NoisePolicy, PluginError, PluginParameters, Proposal, resolve_by_group


class ScaleParameters(PluginParameters):
    """Parameters of `scale`."""

    epsilon: dict[str, Annotated[FiniteFloat, Field(ge=0.01, le=1000)]] = Field(
        min_length=1, description='target ε by segment, by tier or by "segment/tier"; at most privacy.epsilon'
    )


class Scale(NoisePolicy):
    """Each group gets its own target ε by its own clip norm; the noise and the sampling rate are the same for all.

    A group's protection depends on noise / clip norm. So a stricter group is clipped harder: its users count for
    less in the sum that the same noise covers. The clip norms are scaled so that their mean over the population is
    ``clipping.norm``. Close to the "Scale" variant of individualised DP-SGD (Boenisch et al., 2023), with the
    harmonic mean of the noise multipliers, which keeps the mean clip norm exact.
    """

    Parameters = ScaleParameters
    parameters: ScaleParameters

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The targets of the spec, to be reached by clip norms."""
        for name, target in self.parameters.epsilon.items():
            if target > epsilon:
                raise PluginError(f"{target:g} is above privacy.epsilon ({epsilon:g})", ("epsilon", name))
        return Proposal(resolve_by_group(self.parameters.epsilon, groups, "epsilon"), Lever.CLIP_NORM)
