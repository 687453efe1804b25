"""The same noise for everybody: the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from harness.plugins import Group, NoisePolicy, Page, Proposal


class Uniform(NoisePolicy):
    """Every group at the whole budget, with one clip norm and one sampling rate.

    This is ordinary user-level DP-SGD. Every other policy gives this one back when its targets are all the budget.
    """

    page = Page(
        formula=(
            "σ = the smallest with ε(q, σ, T, δ) ≤ ε;  C_p = C,  s = σ C\n"
            "q: sampling rate, T: steps, C: clipping.norm, s: std of the noise on a step's sum"
        ),
        when=("Everybody is promised the same, or you want to know what groups with their own ε would have to beat."),
        costs=("Where some users need a stricter ε, everybody pays for it: the whole run must keep the strictest one."),
    )

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """The budget for everyone."""
        return Proposal({g.name: epsilon for g in groups})
