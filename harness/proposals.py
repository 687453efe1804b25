"""What a noise policy proposes, and of what: groups, targets and a lever. `harness.plugins` passes all of it on."""

from __future__ import annotations

import enum
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.registry import Plugin, PluginError


@dataclass(frozen=True)
class Group:
    """A privacy group: a segment × a risk tier. Its name and weight are public.

    Attributes:
        name: ``segment``, ``tier`` or ``segment/tier``, whichever distinguishes the groups of this spec.
        segment: Name of its segment.
        tier: Name of its risk tier; None where the spec has no sensitivity assessment.
        weight: The declared fraction of the population that it holds; None before `plan` has read it.
    """

    name: str
    segment: str
    tier: str | None = None
    weight: float | None = None


class Lever(enum.Enum):
    """What the harness turns to bring each group to its target."""

    CLIP_NORM = "clip_norm"
    SAMPLING_RATE = "sampling_rate"
    CLIP_NORM_AND_SAMPLING_RATE = "clip_norm_and_sampling_rate"
    STEPS = "steps"
    EXAMPLES = "examples_per_user"


MOST_PLATEAUS = 32


@dataclass(frozen=True)
class Plateau:
    """A part of the run with constant noise and clip norms, which a public schedule consists of.

    Attributes:
        share: Of the steps, in proportion to the other plateaus' shares.
        noise: Of the noise std, in proportion to the other plateaus'.
        clip: Of every clip norm, in proportion to the other plateaus'.
    """

    share: float
    noise: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x > 0 for x in (self.share, self.noise, self.clip)):
            raise ValueError(f"expected positive numbers, found {self}")


@dataclass(frozen=True)
class Proposal:
    """What a noise policy asks for. It states targets and a lever; ε is always the harness's own computation.

    Attributes:
        epsilon: Target ε per group name: the user's total, at most ``privacy.epsilon``. None: no protection at all.
        lever: What reaches the targets.
        clip_share: Of ``CLIP_NORM_AND_SAMPLING_RATE``: how much of it the clip norms do, from 0 to 1.
        schedule: How noise and clip norms change during the run, at most `MOST_PLATEAUS`; empty: not at all.
    """

    epsilon: Mapping[str, float] | None
    lever: Lever = Lever.CLIP_NORM
    clip_share: float = 1.0
    schedule: tuple[Plateau, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.clip_share <= 1:
            raise ValueError(f"expected 0 <= clip_share={self.clip_share} <= 1")
        if len(self.schedule) > MOST_PLATEAUS:
            raise ValueError(f"a schedule has at most {MOST_PLATEAUS} plateaus, not {len(self.schedule)}")


class NoisePolicy(Plugin):
    """Sets, per privacy group, the target ε and the lever that reaches it."""

    private: ClassVar[bool] = True
    """False only for the policy that trains without noise; it needs ``--not-private``."""

    @abstractmethod
    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        """Proposes targets for `groups` under the budget `epsilon`.

        Raises:
            PluginError: The parameters don't fit these groups or this budget.
        """


def resolve_by_group(values: Mapping[str, float], groups: Sequence[Group], key: str) -> dict[str, float]:
    """Expands values keyed by tier, by segment or by ``segment/tier`` to one per group; the most specific key wins.

    A group that is known to hold nobody may be left out.

    Args:
        values: What the spec says.
        groups: The groups to cover.
        key: The parameter's name, for errors.

    Raises:
        PluginError: A key names nothing, or names both a segment and a tier; or a group is left without a value.
    """
    segments = {g.segment for g in groups}
    tiers = {g.tier for g in groups if g.tier is not None}
    exact = {f"{g.segment}/{g.tier}" for g in groups if g.tier is not None}
    known = sorted(segments | tiers | exact)
    for name in values:
        if name in segments and name in tiers:
            raise PluginError(f'"{name}" is both a segment and a tier; write "segment/tier"', (key, name))
        if name not in known:
            raise PluginError(f'"{name}" is no group of this spec (there are: {", ".join(known)})', (key, name), known)
    resolved: dict[str, float] = {}
    for g in groups:
        options = [f"{g.segment}/{g.tier}", g.segment, g.tier]
        hits = [values[o] for o in options if o is not None and o in values]
        if not hits and g.weight == 0:
            continue  # nobody is in it
        if not hits:
            raise PluginError(f'nothing is given for the group "{g.name}"', (key,))
        resolved[g.name] = hits[0]
    return resolved
