"""The one object from which cohorts, clipping, noise *and* the accounted events are derived.

Nothing that changes privacy reaches training in any other way, so what is accounted can't differ from what is
executed. What only changes speed (micro-batch size, workers, ZeRO stage) is not here and not in the digest.

One step t releases, once: ``(Σ_{i in cohort} clip(g_i, C_p(i)) + N(0, s² I)) / D_t``, with the public constant
``D_t = Σ_p N_p q_p`` over the groups p that take part in the step. Never the realised cohort size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

Relation = Literal["zero_out", "add_or_remove"]


@dataclass(frozen=True)
class GroupMechanism:
    """What one privacy group does in every step that it takes part in. Everything here is public.

    Attributes:
        name: The group.
        users: N_p, the public number of training users of the group (a declared constant; it may be fractional).
        sampling_rate: q_p, the probability with which each of its users is in a step's cohort, independently.
        clip_norm: C_p, the l2 norm that a sampled user's mean gradient is clipped to.
        steps: T_p, the number of steps in which the group takes part.
        examples_per_user: At most so many of a sampled user's examples enter the user's mean gradient.
    """

    name: str
    users: float
    sampling_rate: float
    clip_norm: float
    steps: int
    examples_per_user: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"group {self.name}: expected 0 < sampling_rate={self.sampling_rate} <= 1")
        if not self.clip_norm > 0:
            raise ValueError(f"group {self.name}: expected clip_norm={self.clip_norm} > 0")
        if not (math.isfinite(self.users) and self.users > 0):
            raise ValueError(f"group {self.name}: expected users={self.users} > 0")
        if self.steps < 1 or self.examples_per_user < 1:
            raise ValueError(f"group {self.name}: steps and examples_per_user must be at least 1")


@dataclass(frozen=True)
class Mechanism:
    """A whole training run as a privacy mechanism. Public, immutable, complete.

    Attributes:
        steps: T, the number of noisy steps.
        noise_std: s, the standard deviation of the noise on the sum of clipped gradients; 0 means no privacy.
        groups: The privacy groups, in a fixed order; a group's index is its place here.
        relation: What neighbouring data sets differ in: a user added or removed, or (where counts are public) a
            user's records emptied while the user stays counted.
        sampling_unit: What is sampled and clipped.
    """

    steps: int
    noise_std: float
    groups: tuple[GroupMechanism, ...]
    relation: Relation
    sampling_unit: Literal["user"] = "user"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Expected steps={self.steps} >= 1")
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(f"Expected finite noise_std={self.noise_std} >= 0")
        if self.relation not in ("zero_out", "add_or_remove") or self.sampling_unit != "user":
            raise ValueError(f"Unknown relation={self.relation} or sampling_unit={self.sampling_unit}")
        if not self.groups:
            raise ValueError("a mechanism needs at least one group")
        if len({g.name for g in self.groups}) != len(self.groups):
            raise ValueError("two groups of the same name")
        for g in self.groups:
            if g.steps > self.steps:
                raise ValueError(f"group {g.name}: steps={g.steps} exceeds the run's {self.steps}")
            if self.noise_std > 0 and not math.isfinite(g.clip_norm):
                raise ValueError(f"group {g.name}: noise without a clip norm protects nobody")

    @property
    def private(self) -> bool:
        """Whether noise is added at all."""
        return self.noise_std > 0

    def takes_part(self, group: int, step: int) -> bool:
        """Whether the group at this index takes part in step 0 ≤ `step` < T: the steps {⌊kT/T_p⌋ : 0 ≤ k < T_p}."""
        t, t_p = self.steps, self.groups[group].steps
        # ⌊kT/T_p⌋ = step has a solution k iff the least k with kT ≥ step·T_p also has kT < (step+1)·T_p.
        k = -(-step * t_p // t)
        return k < t_p and k * t < (step + 1) * t_p

    def denominator(self, step: int) -> float:
        """D_t, the public constant that the noisy sum of a step is divided by: the expected cohort, from constants."""
        return sum(g.users * g.sampling_rate for i, g in enumerate(self.groups) if self.takes_part(i, step))

    def noise_multiplier(self, group: int) -> float:
        """σ_p = s / C_p of the group at this index: what its protection depends on, besides q_p and T_p."""
        return self.noise_std / self.groups[group].clip_norm

    def event(self, group: int, steps: int | None = None) -> DpEvent:
        """What a user of this group is exposed to, as dp-accounting's event, from the fields above and nothing else.

        Args:
            group: Index of the group.
            steps: Only the first so many steps of the run; None: all.

        Returns:
            T_p self-composed Poisson-sampled Gaussian releases; `NonPrivateDpEvent` without noise.
        """
        from dp_accounting import dp_event

        g = self.groups[group]
        # Of the steps ⌊kT/T_p⌋, as many lie before step t as there are k with kT < t·T_p.
        count = g.steps if steps is None else -(-min(steps, self.steps) * g.steps // self.steps)
        if count == 0:
            return dp_event.NoOpDpEvent()
        if not self.private:
            return dp_event.NonPrivateDpEvent()
        gaussian = dp_event.GaussianDpEvent(self.noise_multiplier(group))
        return dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(g.sampling_rate, gaussian), count)

    def without_privacy(self) -> Mechanism:
        """Ordinary training with the same cohorts and steps: neither clipping nor noise."""
        groups = tuple(dataclasses.replace(g, clip_norm=math.inf) for g in self.groups)
        return dataclasses.replace(self, noise_std=0.0, groups=groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an infinite clip norm is None."""
        document = dataclasses.asdict(self)
        for g in document["groups"]:
            g["clip_norm"] = g["clip_norm"] if math.isfinite(g["clip_norm"]) else None
        document["groups"] = list(document["groups"])
        return document

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Mechanism:
        """The inverse of `to_dict`."""
        groups = tuple(
            GroupMechanism(**{**g, "clip_norm": math.inf if g["clip_norm"] is None else g["clip_norm"]})
            for g in document["groups"]
        )
        return cls(**{**document, "groups": groups})

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all fields. Two mechanisms with equal digests execute and account the same."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()
