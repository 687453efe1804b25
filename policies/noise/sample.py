"""More protection for some groups, through a lower sampling rate."""

from __future__ import annotations

from harness.plugins import Lever, Page
from policies.noise.targets import TargetedPolicy, TargetParameters


class SampleParameters(TargetParameters):
    """Parameters of `sample`."""


class Sample(TargetedPolicy):
    """Each group gets its own target ε by its own sampling rate; the noise and the clip norm are the same for all.

    A stricter group's users take part in fewer steps, and each time count as much as anybody else. The rates are
    solved so that their mean over the population is the spec's. Users who take part rarely but fully have another
    trade-off between ε and δ than users who take part often and are clipped harder: the same (ε, δ) hides that, so
    the plan shows each group's δ at every ε. The "Sample" variant of individualised DP-SGD (Boenisch et al., 2023).
    """

    Parameters = SampleParameters
    parameters: SampleParameters
    page = Page(
        formula=(
            "one σ for all, and q_p with ε(q_p, σ, T, δ) = ε_p, so that Σ r_p q_p = q\n"
            "C_p = C,  s = σ C\n"
            "r_p: share of the users in group p, q: the mean rate, which is the spec's"
        ),
        when=(
            "Users should count fully whenever they are drawn, and weights of the groups are public or given:"
            " rates depend on them, so noisy weights are refused."
        ),
        costs=(
            "A stricter group is seen less often. The same (ε, δ) hides different trade-offs, which the plan "
            "shows; a loose group may have to be drawn more than once a step, which is refused."
        ),
    )
    lever = Lever.SAMPLING_RATE
