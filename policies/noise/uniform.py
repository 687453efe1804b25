"""The same noise for everybody: the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from harness.plugins import Group, NoisePolicy, Proposal


class Uniform(NoisePolicy):
    """Every group at the whole budget, with one clip norm and one sampling rate.

    This is ordinary user-level DP-SGD. Every other policy gives this one back when its targets are all the budget.
    """

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The budget for everyone."""
        return Proposal({g.name: epsilon for g in groups})
