"""More protection for some groups, through fewer steps in which they take part."""

from __future__ import annotations

from harness.plugins import Lever
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
    lever = Lever.STEPS
