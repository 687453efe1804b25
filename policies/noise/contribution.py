"""More protection for some groups, through fewer examples that each of their users may keep."""

from __future__ import annotations

from harness.plugins import Lever, Page
from policies.noise.targets import TargetedPolicy, TargetParameters


class ContributionParameters(TargetParameters):
    """Parameters of `contribution`."""


class Contribution(TargetedPolicy):
    """Each group gets its own target ε by the number of examples its users keep; needs ``sampling.unit: example``.

    The loosest group's users keep ``sampling.examples_per_user`` examples, and its target sets the noise, which is
    the same for all. A stricter group's users keep as many as their target allows, chosen once for the whole run.
    All else is equal, so a group's ε lies at its target or below: a number of examples is whole. A user with G kept
    examples puts Binomial(G, q) of them into a step, and a step's ε follows from that mixture at noise / clip norm.
    Use it where a few users wrote much. It costs the examples that are not kept, and the noise that the largest G
    asks for.
    """

    Parameters = ContributionParameters
    parameters: ContributionParameters
    page = Page(
        formula=(
            "σ = the smallest with ε(q, σ, T, δ, G) ≤ max ε_p, G: sampling.examples_per_user\n"
            "G_p = the largest with ε(q, σ, T, δ, G_p) ≤ ε_p\n"
            "a step of such a user: N(0, σ²) around 0 … G_p with the weights of Binomial(G_p, q)"
        ),
        when="A few users wrote much, and examples are sampled (`sampling: {unit: example}`).",
        costs=(
            "What is not kept is never seen. The noise is what the largest G asks for, and G_p is whole, so "
            "that a group may stay below its target."
        ),
    )
    lever = Lever.EXAMPLES
