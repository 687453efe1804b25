"""More protection for some groups, through fewer steps in which they take part."""

from __future__ import annotations

from harness.plugins import Lever, Page
from policies.noise.targets import TargetedPolicy, TargetParameters


class ParticipationParameters(TargetParameters):
    """Parameters of `participation`."""


class Participation(TargetedPolicy):
    """Each group gets its own target ε by the number of steps it takes part in; all else is the same for all.

    The loosest group takes part in all steps, and its target sets the noise. A stricter group takes part in a
    public set of steps, evenly spread over the run, as many as its target allows; in between, none of its users is
    drawn, and the denominator follows: with T_p of T steps it is there at ⌊kT / T_p⌋, k = 0, 1, 2, … A number of
    steps is whole, so a group's ε lies at its target or below. Unlike with `sample`, everybody knows in which steps
    a group was there: protection rests on the number of steps alone. Use it where many steps are taken; a group
    that stays away costs the model what it would have said then.
    """

    Parameters = ParticipationParameters
    parameters: ParticipationParameters
    page = Page(
        formula=(
            "σ = the smallest with ε(q, σ, T, δ) ≤ max ε_p\n"
            "T_p = the largest with ε(q, σ, T_p, δ) ≤ ε_p;  the group is there at ⌊k T / T_p⌋, k = 0, 1, …\n"
            "C_p = C,  s = σ C"
        ),
        when=(
            "There are many steps, and rates and clip norms should be alike. With few steps one alone may "
            "cost more than a target, which is refused."
        ),
        costs=(
            "A stricter group says nothing in most steps, and T_p falls faster than the square of its ε. Which"
            " steps these are is public."
        ),
    )
    lever = Lever.STEPS
