"""Noise in proportion to risk: one knob in place of a target per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from harness.plugins import Group, Lever, NoisePolicy, Page, PluginError, PluginParameters, Proposal, resolve_by_group

Risk = Annotated[FiniteFloat, Field(ge=0, le=1)]
LEAST_EPSILON = 0.01
LEVERS = {
    "clip_norm": Lever.CLIP_NORM,
    "sampling_rate": Lever.SAMPLING_RATE,
    "both": Lever.CLIP_NORM_AND_SAMPLING_RATE,
}


class RiskProportionalParameters(PluginParameters):
    """Parameters of `risk_proportional`."""

    risk: dict[str, Risk] = Field(
        min_length=1, description='risk from 0 to 1 by segment, by tier or by "segment/tier"; constants of the spec'
    )
    strength: Annotated[FiniteFloat, Field(ge=0, le=1000)] = Field(
        default=1.0, description="how much more noise the largest risk gets: 1 is about twice as much, 0 is `uniform`"
    )
    lever: Literal["clip_norm", "sampling_rate", "both"] = Field(
        default="clip_norm", description="what reaches the targets, as `scale`, as `sample`, or as `product` does"
    )
    clip_share: Annotated[FiniteFloat, Field(ge=0, le=1)] = Field(
        default=0.5, description="with `lever: both`: how much of it clip norms do"
    )


class RiskProportional(NoisePolicy):
    """Each group's noise grows with its risk: its target is ε / (1 + strength · risk), by the lever of your choice.

    A Gaussian noise multiplier is about inversely proportional to ε, so a group's noise, relative to what one user
    contributes, is about 1 + strength · risk times that of a group without risk, which gets the whole budget. The
    mean clip norm and the mean sampling rate over the population stay the spec's. Use it where risk is known better
    than the ε that it should have. Noise whose size depends on who happens to be drawn would say who was: it is not
    offered.
    """

    Parameters = RiskProportionalParameters
    parameters: RiskProportionalParameters
    page = Page(
        formula=(
            "ε_p = ε / (1 + strength · risk_p),  then as `scale`, `sample` or `product`\n"
            "noise multiplier of group p ≈ (1 + strength · risk_p) × that of a group without risk"
        ),
        when=(
            "You know how risky groups are, not the ε that each should have. `uudp plan` shows the targets that follow."
        ),
        costs="As the policy that `lever` stands for. The loosest group gets the whole budget.",
        example="{type: risk_proportional, risk: {free: 0, team: 0.4, firm: 1}}",
    )

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The targets that follow from the risks."""
        chosen = self.parameters
        risks = resolve_by_group(chosen.risk, groups, "risk")
        found = {name: epsilon / (1 + chosen.strength * risk) for name, risk in risks.items()}
        strictest = min(found, key=lambda name: found[name])
        if found[strictest] < LEAST_EPSILON:
            raise PluginError(
                f"{strictest} would have ε = {found[strictest]:.3g}, below {LEAST_EPSILON}; take a smaller strength",
                ("strength",),
            )
        return Proposal(found, LEVERS[chosen.lever], chosen.clip_share if chosen.lever == "both" else 1.0)
