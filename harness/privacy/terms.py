"""What a mechanism is calibrated under: everything that all levers share, and how it becomes a Mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.errors import ArgumentError
from harness.privacy.accounting import Accountant
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import AdaptiveClip, Charge, GroupMechanism, Mechanism, Relation, Stretch, Unit


@dataclass(frozen=True)
class Following:
    """How clip norms are to follow the data.

    Attributes:
        quantile: The share of units that should lie below their clip norm.
        learning_rate: Of the clip norms' logarithm.
        bit_noise_std: σ_b; None: chosen, as a twentieth of the expected cohort, though no less than the largest σ_p.
    """

    quantile: float
    learning_rate: float
    bit_noise_std: float | None = None


@dataclass(frozen=True)
class Terms:
    """Everything but the groups' targets. Public.

    Attributes:
        weights: r_p per group, public fractions of the population that sum to 1; the order of the groups is its order.
        users: N, the public number of training users.
        rate: q, of a user or of a kept example.
        steps: T.
        delta: δ.
        clip_norm: C, the mean clip norm over the population (of the first step, where it changes).
        examples_per_user: Of each group.
        relation: Of neighbouring data sets.
        accountant: With which ε is computed.
        unit: What is sampled.
        schedule: Of noise and clip norms.
        following: How clip norms follow the data; None: they don't.
        charges: Of a private session before the first step.
        choice: Of answers that decide levers; targets are totals, `exposure` is what is left of δ.
        choice_delta: δ set aside for them.
        holdout: Of private hold-out users.
    """

    weights: Mapping[str, float]
    users: float
    rate: float
    steps: int
    delta: float
    clip_norm: float
    examples_per_user: int = 1
    relation: Relation = "add_or_remove"
    accountant: Accountant = "pld"
    unit: Unit = "user"
    schedule: tuple[Stretch, ...] = ()
    following: Following | None = None
    charges: tuple[Charge, ...] = ()
    choice: tuple[Charge, ...] = ()
    choice_delta: float = 0.0
    holdout: Charge | None = None

    @property
    def exposure(self) -> Exposure:
        """Of a group with no lever of its own."""
        return Exposure(
            self.rate,
            self.steps,
            self.delta - self.choice_delta,
            self.accountant,
            self.unit,
            self.examples_per_user if self.unit == "example" else 1,
            None,
            self.schedule,
            self.charges,
        )

    def build(self, levers: Mapping[str, Levers]) -> Mechanism:
        """The mechanism with these levers: clip norms whose ratios give each group its noise multiplier.

        With σ_h = (Σ r_p/σ_p)⁻¹: C_p = C·σ_h/σ_p and s = σ_h·C, so s/C_p = σ_p exactly and the mean of C_p over the
        population is C. Where clip norms follow the data, the gradient's part z_p = (σ_p⁻² − (2σ_b)⁻²)^(−1/2) of the
        multiplier takes the place of σ_p, so that gradient and bit together come to σ_p.

        Args:
            levers: Of every group, in the order that the mechanism's groups will have.

        Returns:
            The mechanism, not yet verified.

        Raises:
            ArgumentError: The noise on the bits is too small for these multipliers.
        """
        adaptive = self._adaptive(levers)
        sigma = {p: _gradient_part(lever.sigma, adaptive) for p, lever in levers.items()}
        sigma_h = 1.0 / sum(self.weights[p] / sigma[p] for p in levers)
        groups = tuple(
            GroupMechanism(
                p,
                self.weights[p] * self.users,
                self.rate if lever.rate is None else lever.rate,
                self.clip_norm * sigma_h / sigma[p],
                lever.steps or self.steps,
                lever.examples or self.examples_per_user,
            )
            for p, lever in levers.items()
        )
        return Mechanism(
            self.steps,
            # A little more, so that rounding never takes s / C_p below σ_p.
            sigma_h * self.clip_norm * (1 + 1e-14),
            groups,
            self.relation,
            self.unit,
            self.schedule,
            adaptive,
            self.charges,
            self.choice,
            self.choice_delta,
            self.holdout,
        )

    def _adaptive(self, levers: Mapping[str, Levers]) -> AdaptiveClip | None:
        if self.following is None:
            return None
        largest = max(lever.sigma for lever in levers.values())
        std = self.following.bit_noise_std
        if std is None:
            units = self.users * (self.examples_per_user if self.unit == "example" else 1)
            std = max(units * self.rate / 20, largest)
        if 2 * std <= largest:
            raise ArgumentError(
                f"clipping.bit_noise: {std:g} is too little noise for the share of clipped users; it must be above "
                f"{largest / 2:.4g} here (half the largest noise multiplier)"
            )
        return AdaptiveClip(self.following.quantile, self.following.learning_rate, std)


@dataclass(frozen=True)
class Levers:
    """What brings one group to its target. None: what the terms say for all.

    Attributes:
        sigma: σ_p, the accounted noise multiplier.
        rate: q_p.
        steps: T_p.
        examples: G_p.
    """

    sigma: float
    rate: float | None = None
    steps: int | None = field(default=None)
    examples: int | None = field(default=None)


def _gradient_part(sigma: float, adaptive: AdaptiveClip | None) -> float:
    """z_p: the multiplier of the gradient beside the bit's, so that both come to σ_p."""
    if adaptive is None:
        return sigma
    return float((sigma**-2 - (2 * adaptive.bit_noise_std) ** -2) ** -0.5)
