"""More protection for some groups, through fewer examples that each of their users may keep."""

from __future__ import annotations

from harness.plugins import Lever
from policies.noise.targets import TargetedPolicy, TargetParameters


class ContributionParameters(TargetParameters):
    """Parameters of `contribution`."""


class Contribution(TargetedPolicy):
    """Each group gets its own target ε by the number of examples its users keep; needs ``sampling.unit: example``.

    The loosest group's users keep ``sampling.examples_per_user`` examples, and its target sets the noise, which is the
    same for all. A stricter group's users keep as many as their target allows, chosen once for the whole run. All else
    is equal, so a group's ε lies at its target or below: a number of examples is whole. Use it where a few users
    wrote much: what they wrote most of protects them least.
    """

    Parameters = ContributionParameters
    parameters: ContributionParameters
    lever = Lever.EXAMPLES
