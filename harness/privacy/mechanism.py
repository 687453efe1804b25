"""The one object from which cohorts, clipping, noise, session *and* the accounted events are derived.

Nothing that changes privacy reaches training in any other way, so what is accounted can't differ from what is
executed. What only changes speed (micro-batch size, workers, ZeRO stage) is not here and not in the digest.

One step t releases, once: ``(Σ_{i in cohort} clip(g_i, C_p(i),t) + N(0, s_t² I)) / D_t``. The unit i that is drawn,
clipped and summed is a user (the mean gradient of some of their examples) or one of a user's at most G_p kept
examples. D_t is the public constant ``Σ_p N_p q_p`` (of examples: ``Σ_p N_p G_p q_p``) over the groups p that take part
in the step, where N_p counts planted canaries as well. Never the realised cohort size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

Relation = Literal["zero_out", "add_or_remove"]
Unit = Literal["user", "example"]


@dataclass(frozen=True)
class GroupMechanism:
    """What one privacy group does in every step that it takes part in. Everything here is public.

    Attributes:
        name: The group.
        users: N_p, the public number of training users of the group (a declared constant; it may be fractional).
        sampling_rate: q_p, the probability with which each of its users (or each of their kept examples) is in a step's
            cohort, independently.
        clip_norm: C_p, the l2 norm that a unit's gradient is clipped to in the first step.
        steps: T_p, the number of steps in which the group takes part.
        examples_per_user: Of sampled users, at most so many examples enter a user's mean gradient. Of sampled examples,
            G_p: each user keeps at most so many for the whole run.
        canaries: Made users that are planted for an audit, who take the same levers and count in the denominator.
    """

    name: str
    users: float
    sampling_rate: float
    clip_norm: float
    steps: int
    examples_per_user: int
    canaries: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"group {self.name}: expected 0 < sampling_rate={self.sampling_rate} <= 1")
        if not self.clip_norm > 0:
            raise ValueError(f"group {self.name}: expected clip_norm={self.clip_norm} > 0")
        if not (math.isfinite(self.users) and self.users > 0):
            raise ValueError(f"group {self.name}: expected users={self.users} > 0")
        if self.steps < 1 or self.examples_per_user < 1 or self.canaries < 0:
            raise ValueError(f"group {self.name}: steps and examples_per_user must be at least 1, canaries 0")


@dataclass(frozen=True)
class Stretch:
    """Neighbouring steps of a public schedule with the same noise and clip norms, as multiples of the first step's.

    Attributes:
        steps: How many.
        noise: s_t / s_0.
        clip: C_{p,t} / C_{p,0}, for every group.
    """

    steps: int
    noise: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not all(math.isfinite(x) and x > 0 for x in (self.noise, self.clip)):
            raise ValueError(f"a stretch needs steps and positive multiples, not {self}")


@dataclass(frozen=True)
class AdaptiveClip:
    """Clip norms and noise follow a private quantile of the units' norms (Andrew et al., 2021), by one factor c_t.

    Each sampled unit adds the bit ``1[norm ≤ C_{p,t}] − ½`` to a second noisy sum of the same step. Afterwards
    ``c_{t+1} = c_t · exp(−learning_rate · (noisy share − quantile))``, with C_{p,t} = c_t·C_p and s_t = c_t·s.

    Attributes:
        quantile: The share of units that should lie below their clip norm.
        learning_rate: Of the factor's logarithm.
        bit_noise_std: σ_b, the standard deviation of the noise on the sum of bits.
    """

    quantile: float
    learning_rate: float
    bit_noise_std: float

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"Expected 0 < quantile={self.quantile} < 1")
        if not all(math.isfinite(x) and x > 0 for x in (self.learning_rate, self.bit_noise_std)):
            raise ValueError(f"the learning rate and the noise of {self} must be positive")


@dataclass(frozen=True)
class Charge:
    """Noisy answers that cost every user who is asked about: `count` Gaussian releases of one noise multiplier.

    Attributes:
        what: What is asked, for the plan.
        noise_multiplier: Noise std of an answer / its l2 sensitivity to one user.
        count: How many answers.
    """

    what: str
    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0 and self.count >= 1):
            raise ValueError(f"{self.what}: expected a positive noise_multiplier and count, found {self}")

    def event(self) -> DpEvent:
        """As dp-accounting's event."""
        from dp_accounting import dp_event

        return dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(self.noise_multiplier), self.count)


@dataclass(frozen=True)
class Mechanism:
    """A whole training run as a privacy mechanism. Public, immutable, complete.

    Attributes:
        steps: T, the number of noisy steps.
        noise_std: s, the standard deviation of the first step's noise on the sum of clipped gradients; 0: no privacy.
        groups: The privacy groups, in a fixed order; a group's index is its place here.
        relation: What neighbouring data sets differ in: a user added or removed, or (where counts are public) a
            user's records emptied while the user stays counted.
        sampling_unit: What is sampled and clipped.
        schedule: Constant stretches that fill the T steps, the first with multiples of 1; empty: one stretch.
        adaptive: How the clip norms follow the data, if they do.
        charges: What a private session asks about all training users, before the first step.
        choice: Of these, answers that decide levers. What follows then is not known when they are asked, so (ε, δ) of
            both add up, whatever is chosen.
        choice_delta: δ that is set aside for `choice`.
        holdout: What private hold-out users are exposed to: the noisy evaluations. None: there are none.
    """

    steps: int
    noise_std: float
    groups: tuple[GroupMechanism, ...]
    relation: Relation
    sampling_unit: Unit = "user"
    schedule: tuple[Stretch, ...] = ()
    adaptive: AdaptiveClip | None = None
    charges: tuple[Charge, ...] = ()
    choice: tuple[Charge, ...] = ()
    choice_delta: float = 0.0
    holdout: Charge | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Expected steps={self.steps} >= 1")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(f"Expected finite noise_std={self.noise_std} >= 0")
        if self.relation not in ("zero_out", "add_or_remove") or self.sampling_unit not in ("user", "example"):
            raise ValueError(f"Unknown relation={self.relation} or sampling_unit={self.sampling_unit}")
        self._check_groups()
        self._check_levers()

    def _check_groups(self) -> None:
        if not self.groups:
            raise ValueError("a mechanism needs at least one group")
        if len({g.name for g in self.groups}) != len(self.groups):
            raise ValueError("two groups of the same name")
        for g in self.groups:
            if g.steps > self.steps:
                raise ValueError(f"group {g.name}: steps={g.steps} exceeds the run's {self.steps}")
            if self.noise_std > 0 and not math.isfinite(g.clip_norm):
                raise ValueError(f"group {g.name}: noise without a clip norm protects nobody")

    def _check_levers(self) -> None:
        if self.schedule:
            first = self.schedule[0]
            if sum(s.steps for s in self.schedule) != self.steps or (first.noise, first.clip) != (1.0, 1.0):
                raise ValueError("a schedule fills all steps, and begins with multiples of 1")
        if bool(self.choice) != (self.choice_delta > 0):
            raise ValueError("answers that decide levers need a δ of their own")
        if self.adaptive is not None and (self.schedule or not self.private):
            raise ValueError("clip norms that follow the data need noise, and have no schedule")

    # --- what is executed ---------------------------------------------------------------------------------------

    @property
    def private(self) -> bool:
        """Whether noise is added at all."""
        return self.noise_std > 0

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """The schedule; one stretch where there is none."""
        return self.schedule or (Stretch(self.steps),)

    def _stretch(self, step: int) -> Stretch:
        if not 0 <= step < self.steps:
            raise ValueError(f"there is no step {step} of {self.steps}")
        ends = accumulate(s.steps for s in self.stretches)
        return next(s for s, end in zip(self.stretches, ends, strict=True) if step < end)

    def noise_std_at(self, step: int, factor: float = 1.0) -> float:
        """s_t of step 0 ≤ `step` < T; `factor` is c_t of an adaptive clip."""
        return self.noise_std * self._stretch(step).noise * factor

    def clip_norms_at(self, step: int, factor: float = 1.0) -> tuple[float, ...]:
        """C_{p,t} of every group; `factor` is c_t of an adaptive clip."""
        clip = self._stretch(step).clip * factor
        return tuple(g.clip_norm * clip for g in self.groups)

    def takes_part(self, group: int, step: int) -> bool:
        """Whether the group at this index takes part in step 0 ≤ `step` < T: the steps {⌊kT/T_p⌋ : 0 ≤ k < T_p}."""
        return self._count(group, 0, step + 1) > self._count(group, 0, step)

    def _count(self, group: int, first: int, last: int) -> int:
        """In how many of the steps first ≤ t < last the group takes part."""
        # Of the steps ⌊kT/T_p⌋, as many lie before step t as there are k with kT < t·T_p.
        t_p = self.groups[group].steps
        return -(-last * t_p // self.steps) + (-first * t_p // self.steps)

    def units(self, group: int) -> float:
        """Units that the group at this index has: its users and canaries, or the examples that they may keep."""
        g = self.groups[group]
        return (g.users + g.canaries) * (g.examples_per_user if self.sampling_unit == "example" else 1)

    def denominator(self, step: int) -> float:
        """D_t, the public constant that the noisy sum of a step is divided by: the expected cohort, from constants."""
        return sum(self.units(i) * g.sampling_rate for i, g in enumerate(self.groups) if self.takes_part(i, step))

    def noise_multiplier(self, group: int) -> float:
        """The group's noise std over its clip norm (s / C_p) in the first step."""
        return self.noise_std / self.groups[group].clip_norm

    # --- what is accounted --------------------------------------------------------------------------------------

    def event(self, group: int, steps: int | None = None) -> DpEvent:
        """What a user of this group is exposed to, as dp-accounting's event, from the fields above and nothing else.

        Args:
            group: Index of the group.
            steps: Only the first so many steps of the run; None: all.

        Returns:
            The charges and the steps, composed; `NonPrivateDpEvent` without noise. Without `choice`.
        """
        return self._event((group,), self.steps if steps is None else steps)

    def dominating_event(self) -> DpEvent:
        """At least what a user of any group is exposed to, even where the group itself depends on noisy answers.

        In every stretch the least noise, the largest sampling rate, the most steps and the most examples of all groups.
        """
        return self._event(tuple(range(len(self.groups))), self.steps)

    def _event(self, groups: tuple[int, ...], steps: int) -> DpEvent:
        from dp_accounting import dp_event

        parts: list[DpEvent] = [charge.event() for charge in self.charges]
        begin = 0
        for stretch in self.stretches:
            end = min(begin + stretch.steps, steps)
            count = max(self._count(g, begin, end) for g in groups) if end > begin else 0
            begin += stretch.steps
            if count and not self.private:
                return dp_event.NonPrivateDpEvent()
            if count:
                parts.append(dp_event.SelfComposedDpEvent(self._release(groups, stretch), count))
        if not parts:
            return dp_event.NoOpDpEvent()
        return parts[0] if len(parts) == 1 else dp_event.ComposedDpEvent(tuple(parts))

    def _release(self, groups: tuple[int, ...], stretch: Stretch) -> DpEvent:
        """One step in which these groups take part, as whoever is exposed most sees it."""
        from dp_accounting import dp_event

        chosen = [self.groups[g] for g in groups]
        sigma = _cut(min(self.accounted_multiplier(g) for g in groups) * stretch.noise / stretch.clip)
        rate, most = max(g.sampling_rate for g in chosen), max(g.examples_per_user for g in chosen)
        if self.sampling_unit == "user" or most == 1:
            return dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
        drawn = binomial(most, rate)
        return dp_event.MixtureOfGaussiansDpEvent(sigma, tuple(map(float, range(len(drawn)))), drawn)

    def accounted_multiplier(self, group: int) -> float:
        """σ_p of the group at this index in the first step: of the gradient and, where there is one, the bit together.

        The bit of a unit moves its own sum by ½, so that it counts like a second coordinate with multiplier 2σ_b.
        """
        z = self.noise_multiplier(group)
        if self.adaptive is None:
            return z
        return float((z**-2 + (2 * self.adaptive.bit_noise_std) ** -2) ** -0.5)

    def choice_event(self) -> DpEvent:
        """What every training user is exposed to by the answers that decide levers."""
        from dp_accounting import dp_event

        return dp_event.ComposedDpEvent(tuple(charge.event() for charge in self.choice))

    def holdout_event(self) -> DpEvent:
        """What a private hold-out user is exposed to."""
        from dp_accounting import dp_event

        return dp_event.NoOpDpEvent() if self.holdout is None else self.holdout.event()

    def without_privacy(self) -> Mechanism:
        """Ordinary training with the same rates and steps: neither clipping nor noise, and no canaries."""
        groups = tuple(dataclasses.replace(g, clip_norm=math.inf, canaries=0) for g in self.groups)
        return dataclasses.replace(
            self,
            noise_std=0.0,
            groups=groups,
            schedule=(),
            adaptive=None,
            charges=(),
            choice=(),
            choice_delta=0.0,
            holdout=None,
        )

    def planted(self, canaries: Sequence[int]) -> Mechanism:
        """The same for all users, with so many canaries in each group."""
        groups = zip(self.groups, canaries, strict=True)
        return dataclasses.replace(self, groups=tuple(dataclasses.replace(g, canaries=n) for g, n in groups))

    # --- as data ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an infinite clip norm is None."""
        document = dataclasses.asdict(self)
        for g in document["groups"]:
            g["clip_norm"] = g["clip_norm"] if math.isfinite(g["clip_norm"]) else None
        return document | {name: list(document[name]) for name in ("groups", "schedule", "charges", "choice")}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Mechanism:
        """The inverse of `to_dict`."""
        groups = tuple(
            GroupMechanism(**{**g, "clip_norm": math.inf if g["clip_norm"] is None else g["clip_norm"]})
            for g in document["groups"]
        )
        adaptive, holdout = document["adaptive"], document["holdout"]
        parts: dict[str, Any] = {
            "groups": groups,
            "schedule": tuple(Stretch(**s) for s in document["schedule"]),
            "adaptive": None if adaptive is None else AdaptiveClip(**adaptive),
            "charges": tuple(Charge(**c) for c in document["charges"]),
            "choice": tuple(Charge(**c) for c in document["choice"]),
            "holdout": None if holdout is None else Charge(**holdout),
        }
        return cls(**{**document, **parts})

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all fields. Two mechanisms with equal digests execute and account the same."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _cut(sigma: float) -> float:
    """A noise multiplier without the last bits, never more than it is: what rounding alone tells apart is one event."""
    mantissa, exponent = math.frexp(sigma)
    return math.ldexp(math.floor(math.ldexp(mantissa, 40)), exponent - 40)


def binomial(count: int, rate: float) -> tuple[float, ...]:
    """Probabilities of 0, 1, … of `count` independent draws with probability `rate`; never less than true at the end.

    What lies beyond any number (below 1e-30 in all) is counted as the largest number that is kept.
    """
    from scipy import stats

    last = count
    while last > 1 and stats.binom.sf(last - 1, count, rate) < 1e-30:
        last -= 1
    below = [float(p) for p in stats.binom.pmf(range(last), count, rate)]
    # The mass of all that is cut off goes to the top: more sensitivity than there is, never less.
    return (*below, float(stats.binom.sf(last - 1, count, rate)))
