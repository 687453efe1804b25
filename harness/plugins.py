"""What a policy is: registries, and the few types that a policy implements.

This is all that `policies` (and anybody's own package) may import of the harness.

A policy *proposes*; the harness calibrates, accounts and executes. What a policy may see is its access tier,
and each tier is a type of its own, so that the harness can hand over that and nothing else:

- `PublicSegmenter`: the declared public columns of one user;
- `OwnRecordsSegmenter`: the records of one user, one user at a time, keeping nothing between users;
- `SessionSegmenter`: no records at all; it asks a metered `PrivateSession`, whose noisy answers are charged.
"""

from __future__ import annotations

import difflib
import enum
import functools
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from harness import packages
from harness.errors import ArgumentError

T = TypeVar("T", bound="Plugin")


class PluginError(Exception):
    """A plugin can't be found or used, or refuses its parameters: something the author of a spec can mend.

    Attributes:
        message: One line, without private data.
        key: The path of the parameter at fault below the plugin's block, as in ``("epsilon", "high")``.
        candidates: Names that would have been right, for "did you mean".
        not_built: The name is reserved for a feature that this version does not have.
    """

    def __init__(
        self, message: str, key: tuple[str | int, ...] = (), candidates: Iterable[str] = (), *, not_built: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.candidates = tuple(candidates)
        self.not_built = not_built


class PluginParameters(BaseModel):
    """The parameters of a plugin, as the spec writes them beside ``type``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Plugin(ABC):
    """Anything that a spec names by ``type``. Built from its validated parameters."""

    Parameters: ClassVar[type[PluginParameters]] = PluginParameters

    def __init__(self, parameters: PluginParameters) -> None:
        self.parameters = parameters


# --- what each access tier sees -----------------------------------------------------------------------------


class Access(enum.Enum):
    """What a segmenter sees of the data (and so what using it costs)."""

    PUBLIC = "public attributes"
    OWN_RECORDS = "one user's records at a time"
    SESSION = "noisy, charged answers"


@dataclass(frozen=True)
class UserRecords:
    """One user's own records, as an own-records rule sees them. Private.

    Attributes:
        texts: The user's texts, in the order of the source.
        token_counts: Tokens of each text, of the same length as `texts`.
        examples: Number of training examples that the texts were packed into.
    """

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    examples: int


class PrivateSession(Protocol):
    """The only door to statistics across users: bounded contributions, Gaussian answers, each one charged."""

    def count(self, query: str) -> float:
        """Answers a declared counting query with noise."""
        ...


class Segmenter(Plugin):
    """Puts every user into one of a few public segments."""

    access: ClassVar[Access]

    @property
    @abstractmethod
    def segments(self) -> tuple[str, ...] | None:
        """The public names of all segments; None while they depend on the public columns' values (`bind`)."""


class PublicSegmenter(Segmenter):
    """Decides by declared public columns alone. Costs no privacy."""

    access = Access.PUBLIC

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The public columns it reads; each must be among ``data.attributes``."""

    def bind(self, domain: Mapping[str, Sequence[str]]) -> PublicSegmenter:
        """The same rule with its segments fixed to the values that occur in the public columns (sorted)."""
        return self

    @abstractmethod
    def assign(self, attributes: Mapping[str, str | None]) -> str:
        """The segment of a user with these public attributes; unknown values go to a fallback segment."""


class OwnRecordsSegmenter(Segmenter):
    """Decides by one user's own records, with constants of the spec. Costs no privacy, but the group is private.

    `assign` must be a function of its argument alone: the harness hands it a fresh copy of the rule for every user.
    """

    access = Access.OWN_RECORDS

    @abstractmethod
    def assign(self, user: UserRecords) -> str:
        """The segment of the user with these records."""


class SessionSegmenter(Segmenter):
    """Learns an own-records rule from noisy answers, which are charged to every user."""

    access = Access.SESSION

    @abstractmethod
    def fit(self, session: PrivateSession) -> OwnRecordsSegmenter:
        """Asks its declared queries and returns the rule that they lead to."""


# --- sensitivity --------------------------------------------------------------------------------------------


class SensitivityScore(Plugin):
    """Says how much is at stake for a user: from 0 (little) to 1 (much). Public edges cut scores into risk tiers."""

    access: ClassVar[Access]


class OwnRecordsScore(SensitivityScore):
    """Scores one user by that user's own records, with constants of the spec. Costs no privacy; scores are private.

    `score` must be a function of its argument alone: the harness hands it a fresh copy of the plugin for every user.
    """

    access = Access.OWN_RECORDS

    @abstractmethod
    def score(self, user: UserRecords) -> float:
        """A finite number in [0, 1] for the user with these records."""


# --- noise policies -----------------------------------------------------------------------------------------


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


# --- registries ---------------------------------------------------------------------------------------------


class Registry(Generic[T]):
    """Plugins of one kind by name: built in, installed (entry points), or given as ``module:attr`` in the spec.

    Registering takes a string and imports nothing: a plugin is imported when a spec first names it.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base
        self._builtin: dict[str, str] = {}
        self._reserved: dict[str, str] = {}

    @property
    def entry_point_group(self) -> str:
        """The group under which other packages announce plugins of this kind."""
        return f"uudp.{self.kind}"

    def register(self, name: str, target: str) -> None:
        """Announces a built-in plugin.

        Args:
            name: What a spec writes after ``type:``.
            target: ``module:attr`` of the class.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._builtin:
            raise ValueError(f'{self.kind} "{name}" is registered twice: {self._builtin[name]} and {target}')
        self._builtin[name] = target

    def reserve(self, *names: str) -> None:
        """Names plugins that a later version has, so that a spec that uses one is told so."""
        self._reserved.update(dict.fromkeys(names, ""))

    def is_reserved(self, name: str) -> bool:
        """Whether a later version has a plugin of this name."""
        _load_builtins()
        return name in self._reserved

    def targets(self) -> dict[str, str]:
        """All names that a spec can use, each with its ``module:attr``; of a name taken twice, the first."""
        return {name: found[0][0] for name, found in self._all().items()}

    def origin(self, name: str) -> str:
        """Where a plugin comes from: ``built-in``, ``module``, or the installed package that announces it."""
        return self._all().get(name, [("", "module")])[0][1]

    def get(self, name: str) -> type[T]:
        """The plugin class that a spec means by `name`.

        Raises:
            PluginError: There is none, two packages announce it, it can't be imported, or it is of another kind.
        """
        known = self._all()
        owners = known.get(name, [(name, "module")] if ":" in name else [])
        if not owners:
            if name in self._reserved:
                raise PluginError(f'{self.kind} "{name}" is not built yet in this version', ("type",), not_built=True)
            near = suggest(name, [*known, *self._reserved])
            if near in self._reserved:
                message = f'there is no {self.kind} "{name}"; did you mean "{near}", which is not built yet?'
                raise PluginError(message, ("type",))
            there = "" if near else f" (there are: {', '.join(sorted(known))})"
            raise PluginError(f'there is no {self.kind} "{name}"{there}', ("type",), sorted(known))
        if len(owners) > 1:
            who = " and ".join(f"{_owner(origin)} ({target})" for target, origin in owners)
            raise PluginError(f'{self.kind} "{name}" is announced by {who}: uninstall all but one', ("type",))
        target, origin = owners[0]
        called = f'"{name}" of {_owner(origin)} ({target})' if name in known else target
        module, _, attribute = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:  # somebody's module may raise anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"{self.kind} {called} can't be imported ({why})", ("type",)) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise PluginError(f"{called} is no {self.kind}: it must be a subclass of {self.base.__name__}", ("type",))
        return found

    def _all(self) -> dict[str, list[tuple[str, str]]]:
        """Every name, with the targets that are announced for it and their origins."""
        _load_builtins()
        found = {name: [(target, "built-in")] for name, target in self._builtin.items()}
        for entry in packages.announced(self.entry_point_group):
            owners = found.setdefault(entry.name, [])
            if entry.value not in [target for target, _ in owners]:
                owners.append((entry.value, f"entry point of {packages.distribution(entry)}"))
        return found

    def build(self, name: str, parameters: Mapping[str, Any]) -> T:
        """The plugin with these parameters.

        Raises:
            PluginError: It can't be found.
            pydantic.ValidationError: The parameters don't fit its model.
        """
        cls = self.get(name)
        return cls(cls.Parameters.model_validate(dict(parameters)))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.targets()))


class Source(Plugin):
    """Where records come from. Implemented by the harness's data floor; see `harness.data.sources`."""


segmentation: Registry[Segmenter] = Registry("segmentation", Segmenter)  # type: ignore[type-abstract]
sensitivity: Registry[SensitivityScore] = Registry("sensitivity", SensitivityScore)
noise: Registry[NoisePolicy] = Registry("noise", NoisePolicy)  # type: ignore[type-abstract]
source: Registry[Source] = Registry("source", Source)


def _owner(origin: str) -> str:
    """Who announces a plugin, for errors."""
    return "uudp itself" if origin == "built-in" else origin.removeprefix("entry point of ")


@functools.cache
def _load_builtins() -> None:
    """Imports `policies` (its ``__init__`` registers the built-in ones).

    Raises:
        ArgumentError: Something shadows it. No plugin can be used then, so this is said once, not of each block.
    """
    if found := packages.shadow("policies"):
        raise ArgumentError(f"{found} shadows uudp's own package `policies`; rename it, or work in another folder")
    importlib.import_module("policies")


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to `name`, or None if none is near."""
    folded = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return folded[near[0]] if near else None
