"""No privacy at all."""

from __future__ import annotations

from collections.abc import Sequence

from harness.plugins import Group, NoisePolicy, Proposal


class NoNoise(NoisePolicy):
    """Trains without noise. Needs `uudp run --not-private`, and every output says that it is not private."""

    private = False

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """Nothing is promised to anyone."""
        return Proposal(None)
