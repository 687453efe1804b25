"""Noise or clip norms that change during the run, by a public plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import Group, NoisePolicy, Page, Plateau, PluginParameters, Proposal
from policies.noise.targets import Epsilon, targets


class ScheduleParameters(PluginParameters):
    """Parameters of `schedule`."""

    over: Literal["noise", "clip"] = Field(
        default="noise",
        description="what changes: the noise, at the same clip norms, or the clip norms, at the same noise",
    )
    shape: Literal["linear", "cosine", "exponential", "step"] = Field(
        default="cosine", description="how it changes from 1 at the first step to `end` at the last"
    )
    end: Annotated[FiniteFloat, Field(ge=0.05, le=20)] = Field(
        default=0.5, description="of the first step's noise (or clip norm) at the last step"
    )
    at: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = Field(
        default=None, description="of shape step: after which share of the steps (default 0.5)"
    )
    plateaus: Annotated[int, Field(ge=2, le=32, strict=True)] = Field(
        default=8, description="constant parts that the shape is cut into, rounded to the protective side"
    )
    epsilon: dict[str, Epsilon] | None = Field(
        default=None, min_length=1, description="target ε by group, by clip norms; left out: privacy.epsilon for all"
    )

    @model_validator(mode="after")
    def _fits(self) -> ScheduleParameters:
        if self.at is not None and self.shape != "step":
            raise ValueError("at: only shape: step has it")
        return self


class Schedule(NoisePolicy):
    """Noise, or clip norms, that change during the run by a public plan; every step is accounted at its own noise.

    At a share x of the run the value is, as a multiple of the first step's: linear 1 + (e − 1)x, cosine e + (1 −
    e)(1 + cos πx)/2, exponential eˣ; step jumps to e at ``at``; e is ``end``. Early steps are far from the goal and
    bear more noise; late ones gain from less. With ``over: noise`` and ``end`` below 1 the noise falls at the same
    clip norms, with ``over: clip`` and ``end`` above 1 the clip norms grow at the same noise, which changes the
    size of late updates as well. Nothing is free: the whole run keeps its ε, so that less noise at the end is more
    at the beginning. The plan depends on no data. Targets per group are reached by clip norms.
    """

    Parameters = ScheduleParameters
    parameters: ScheduleParameters
    page = Page(
        formula=(
            "s_t = s₀ f(t / T) or C_p,t = C_p,0 f(t / T), in at most 32 constant parts\n"
            "f: 1 + (e − 1) x, or e + (1 − e)(1 + cos πx) / 2, or eˣ, or a jump to e; e: end\n"
            "σ_p: of the whole run, every part accounted at its own s_t / C_p,t"
        ),
        when=(
            "Late steps decide the result, as with a learning rate that falls; or clip norms should grow "
            "while gradients do."
        ),
        costs=(
            "Less noise at the end is more at the beginning. At a constant learning rate the sum of all "
            "updates gets noisier than with one noise for all steps; `uudp plan --compare` shows by how much."
        ),
    )

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The spec's targets, or the budget for everyone; and the plan."""
        wanted = self.parameters.epsilon
        found = {g.name: epsilon for g in groups} if wanted is None else targets(wanted, groups, epsilon)
        return Proposal(found, schedule=self._plateaus())

    def _plateaus(self) -> tuple[Plateau, ...]:
        given = self.parameters
        if given.shape == "step":
            at = given.at or 0.5
            pairs = [(at, 1.0), (1 - at, given.end)]
        else:
            edges = [self._value(i / given.plateaus) for i in range(given.plateaus + 1)]
            # Of each part the end with more noise, or with the smaller clip norm, counts.
            safe = max if given.over == "noise" else min
            pairs = [(1 / given.plateaus, safe(a, b)) for a, b in pairwise(edges)]
        if given.over == "noise":
            return tuple(Plateau(share, noise=value) for share, value in pairs)
        return tuple(Plateau(share, clip=value) for share, value in pairs)

    def _value(self, x: float) -> float:
        """At a share 0 ≤ x ≤ 1 of the run."""
        end = self.parameters.end
        if self.parameters.shape == "linear":
            return 1 + (end - 1) * x
        if self.parameters.shape == "exponential":
            return float(end**x)
        return end + (1 - end) * (1 + math.cos(math.pi * x)) / 2
