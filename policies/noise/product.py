"""More protection for some groups, partly through a smaller clip norm and partly through a lower sampling rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, FiniteFloat

from harness.plugins import Group, Lever, NoisePolicy, Page, Proposal
from policies.noise.targets import TargetParameters, targets


class ProductParameters(TargetParameters):
    """Parameters of `product`."""

    clip_share: Annotated[FiniteFloat, Field(ge=0, le=1)] = Field(
        default=0.5, description="how much of it clip norms do: 1 is `scale`, 0 is `sample`"
    )


class Product(NoisePolicy):
    """Each group gets its own target ε by its clip norm and its sampling rate together.

    Between `scale` and `sample`: with λ = ``clip_share``, a group's noise multiplier is σ_scale^λ · σ_sample^(1−λ),
    and its sampling rate is what then gives its ε. Noise multipliers share one factor, so that the mean rate over the
    population stays the spec's; the mean clip norm is ``clipping.norm``. A stricter group is clipped less hard than by
    `scale` and drawn more often than by `sample`, so that neither of the two has to be extreme. Use it where targets
    lie far apart. As with `sample`, the same (ε, δ) hides different trade-offs, which the plan shows.
    """

    Parameters = ProductParameters
    parameters: ProductParameters
    page = Page(
        formula=(
            "σ_p ∝ σ_p,scale^λ · σ^(1−λ),  q_p with ε(q_p, σ_p, T, δ) = ε_p,  Σ r_p q_p = q\n"
            "λ: clip_share; σ_p,scale: of `scale`; one common factor of all σ_p is solved for\n"
            "λ = 1 is `scale`, λ = 0 is `sample`"
        ),
        when="Targets lie far apart, so that clip norms or rates alone would become extreme.",
        costs="As `sample`, in part: trade-offs differ between groups, and weights must be public or given.",
    )

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The targets of the spec, to be reached by both levers."""
        found = targets(self.parameters.epsilon, groups, epsilon)
        return Proposal(found, Lever.CLIP_NORM_AND_SAMPLING_RATE, self.parameters.clip_share)
