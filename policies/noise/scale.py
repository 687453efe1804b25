"""More noise for some groups, through a smaller clip norm."""

from __future__ import annotations

from harness.plugins import Lever, Page
from policies.noise.targets import TargetedPolicy, TargetParameters

_REFUSED = (
    "Not offered: extra noise for whoever is present",
    'Read literally, "more noise for sensitive users" would add noise of its own to each sensitive user\'s gradient.'
    " The sum of a step would then have a larger variance whenever such a user is drawn, and whoever sees the sum "
    "can measure its variance over all d parameters, so that even a small change shows. Between N(0, s² I) and N(0,"
    " r s² I) there are KL = d / 2 · (r − 1 − ln r) nats. With d = 10⁶ parameters and r = 1.01, a hundredth more "
    "variance, that is 24.8 nats in one step: one look tells whether such a user was drawn. An account of the shift"
    " of the mean alone does not see it. So every step has one noise, whoever is drawn, and more noise for a group "
    "is less influence of its users on that one noisy sum: a smaller clip norm, a lower rate, fewer steps or fewer "
    "examples. A spec that asks for `per_user`, `additive` or `individual` noise is refused.",
)


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
    page = Page(
        formula=(
            "σ_p = the smallest with ε(q, σ_p, T, δ) ≤ ε_p\n"
            "σ_h = 1 / Σ (r_p / σ_p);  C_p = C σ_h / σ_p;  s = σ_h C\n"
            "r_p: share of the users in group p, C: clipping.norm, s: std of the noise on a step's sum\n"
            "so s / C_p = σ_p exactly, and Σ r_p C_p = C"
        ),
        when=(
            "The usual choice: everybody is drawn equally often, and the groups' trade-offs between ε and δ "
            "are much alike. It works at any number of steps."
        ),
        costs=(
            "A stricter group's users count for less in every step. The noise relative to the mean clip norm "
            "is σ_h, a harmonic mean: it grows when targets move apart."
        ),
        more=(_REFUSED,),
    )
    lever = Lever.CLIP_NORM
