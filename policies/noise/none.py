"""No privacy at all."""

from __future__ import annotations

from collections.abc import Sequence

from harness.plugins import Group, NoisePolicy, Page, Proposal


class NoNoise(NoisePolicy):
    """Trains without noise. Needs `uudp run --not-private`, and every output says that it is not private."""

    private = False
    page = Page(
        formula="s = 0, ε = ∞",
        when="To debug, or to measure on public data what privacy costs. Never on data that matter.",
        costs="All protection: what anybody wrote may come out word for word.",
    )

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """Nothing is promised to anyone."""
        return Proposal(None)
