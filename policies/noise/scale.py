"""More noise for some groups, through a smaller clip norm."""

from __future__ import annotations

from harness.plugins import Lever
from policies.noise.targets import TargetedPolicy, TargetParameters


class ScaleParameters(TargetParameters):
    """Parameters of `scale`."""


class Scale(TargetedPolicy):
    """Each group gets its own target ε by its own clip norm; the noise and the sampling rate are the same for all.

    A group's protection depends on noise / clip norm. So a stricter group is clipped harder: its users count for
    less in the sum that the same noise covers. The clip norms are scaled so that their mean over the population is
    ``clipping.norm``. Close to the "Scale" variant of individualised DP-SGD (Boenisch et al., 2023), with the
    harmonic mean of the noise multipliers, which keeps the mean clip norm exact.
    """

    Parameters = ScaleParameters
    parameters: ScaleParameters
    lever = Lever.CLIP_NORM
