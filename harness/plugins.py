"""What a policy is: registries, and the few types that a policy implements.

This is all that `policies` (and anybody's own package) may import of the harness.

A policy *proposes*; the harness calibrates, accounts and executes. What a policy may see is its access tier,
and each tier is a type of its own, so that the harness can hand over that and nothing else:

- `PublicSegmenter`: the declared public columns of one user;
- `OwnRecordsSegmenter`: the records of one user, one user at a time, keeping nothing between users; as a
  `MixedSegmenter` that user's declared public columns as well;
- `SessionSegmenter`: no records at all; it asks a metered `PrivateSession`, whose noisy answers are charged.

A score that says how much is at stake for a user is an `OwnRecordsScore`, or a `SessionScore` that learns one.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from harness.proposals import Group, Lever, NoisePolicy, Plateau, Proposal, resolve_by_group
from harness.queries import Answer, Query, bucket_of
from harness.registry import Page, Plugin, PluginError, PluginParameters, Registry, suggest

__all__ = [
    "Access",
    "Answer",
    "Group",
    "Lever",
    "MixedSegmenter",
    "ModelView",
    "NoisePolicy",
    "OwnRecordsScore",
    "OwnRecordsSegmenter",
    "Page",
    "Plateau",
    "Plugin",
    "PluginError",
    "PluginParameters",
    "PrivateSession",
    "Proposal",
    "PublicSegmenter",
    "Query",
    "Registry",
    "Segmenter",
    "SensitivityScore",
    "SessionScore",
    "SessionSegmenter",
    "Source",
    "Statistic",
    "UserRecords",
    "bucket_of",
    "noise",
    "resolve_by_group",
    "segmentation",
    "sensitivity",
    "source",
    "suggest",
]

# --- what each access tier sees -----------------------------------------------------------------------------


class Access(enum.Enum):
    """What a segmenter sees of the data (and so what using it costs)."""

    PUBLIC = "public attributes"
    OWN_RECORDS = "one user's records at a time"
    SESSION = "noisy, charged answers"


@dataclass(frozen=True)
class ModelView:
    """How the frozen base model, before any training, sees one user's own examples. Private.

    Computed of each user alone, in the order of their examples: nobody else's records have a part in it.

    Attributes:
        losses: Of each example, nats per token.
        tails: Of each example, nats per token of the tenth of its tokens that surprise the model most.
        guessed: Of each example, the share of tokens that are the model's own first guess.
        gradient_norm: l2 norm of the user's mean gradient, by the model's last layer norm's weights and biases.
        embedding: The mean of the last hidden states over the user's tokens, divided by its l2 norm.
    """

    losses: tuple[float, ...]
    tails: tuple[float, ...]
    guessed: tuple[float, ...]
    gradient_norm: float
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class UserRecords:
    """One user's own records, as an own-records rule sees them. Private.

    Attributes:
        texts: The user's texts, in the order of the source.
        token_counts: Tokens of each text, of the same length as `texts`.
        examples: Number of training examples that the texts were packed into.
        attributes: The declared public columns that a `MixedSegmenter` names; empty for anything else.
        times: When each text was written, in seconds since 1970 (UTC), of the same length as `texts`; None where it is
            not known. Empty where the spec has no ``data.time``.
        model: What the base model makes of the user, for a plugin that `uses_model`; None for anything else.
    """

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    examples: int
    attributes: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    times: tuple[float | None, ...] = ()
    model: ModelView | None = None


class Statistic(ABC):
    """What one user contributes to a query of the private session.

    A class of a module, so that another process can import it. Its attributes are public: constants of the spec,
    or what earlier answers led to; plain values, lists, tuples, dictionaries and numpy arrays of numbers. The harness
    rebuilds it from them for every user, in a process of its own, and clips what it returns.
    """

    @abstractmethod
    def value(self, user: UserRecords) -> object:
        """What the user with these records contributes.

        Returns:
            For a count, whether (or, from 0 to 1, how much) the user counts; for a sum, mean or quantile a number, or
            a sequence of `Query.dimension` numbers; for a histogram or top-k one key, or several. Anything else
            contributes nothing.
        """


class PrivateSession(Protocol):
    """The only door to statistics across users: bounded contributions, Gaussian answers, each one charged."""

    def ask(self, query: str, statistic: Statistic) -> Answer:
        """The noisy answer to a declared query. Asked again with the same statistic, the same answer.

        Args:
            query: The name of one of the declared queries.
            statistic: What one user contributes. It may hold earlier answers.

        Raises:
            PluginError: The query was not declared, or was answered for another statistic.
        """
        ...


class Assessing(Plugin):
    """What segmenters and scores have in common: an access tier, and what else of a user they are shown."""

    access: ClassVar[Access]

    @property
    def uses_times(self) -> bool:
        """Whether it needs `UserRecords.times`; the spec must then name ``data.time``."""
        return False

    @property
    def uses_model(self) -> bool:
        """Whether it, or a statistic that it asks for, needs `UserRecords.model`."""
        return False


class Segmenter(Assessing):
    """Puts every user into one of a few public segments."""

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


class MixedSegmenter(OwnRecordsSegmenter):
    """Decides by one user's own records and by declared public columns of the same user.

    A rule that a session leads to is none: it sees records alone.
    """

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The public columns that it finds in `UserRecords.attributes`; each must be among ``data.attributes``."""


class SessionSegmenter(Segmenter):
    """Learns an own-records rule from noisy answers, which are charged to every user.

    Its queries and its segments follow from its parameters alone, and are fixed before the session opens. A query that
    is never asked stays charged. The rule that `fit` returns is rebuilt from its attributes, as a `Statistic` is.
    """

    access = Access.SESSION

    @property
    @abstractmethod
    def queries(self) -> tuple[Query, ...]:
        """Everything that `fit` may ask: the most that the session can cost."""

    @abstractmethod
    def fit(self, session: PrivateSession) -> OwnRecordsSegmenter:
        """Asks its declared queries, in as many rounds as it likes, and returns the rule that they lead to.

        It must be a function of the answers alone.
        """


# --- sensitivity --------------------------------------------------------------------------------------------


class SensitivityScore(Assessing):
    """Says how much is at stake for a user: from 0 (little) to 1 (much). Edges cut scores into risk tiers."""


class OwnRecordsScore(SensitivityScore):
    """Scores one user by that user's own records, with constants of the spec. Costs no privacy; scores are private.

    `score` must be a function of its argument alone: the harness hands it a fresh copy of the plugin for every user.
    """

    access = Access.OWN_RECORDS

    @abstractmethod
    def score(self, user: UserRecords) -> float:
        """A finite number in [0, 1] for the user with these records."""


class SessionScore(SensitivityScore):
    """Learns an own-records score from noisy answers, which are charged to every user.

    As `SessionSegmenter`: queries follow from the parameters alone, and one that is never asked stays charged. The
    score that `fit` returns is rebuilt from its attributes for every user.
    """

    access = Access.SESSION

    @property
    @abstractmethod
    def queries(self) -> tuple[Query, ...]:
        """Everything that `fit` may ask: the most that the session can cost."""

    @abstractmethod
    def fit(self, session: PrivateSession) -> OwnRecordsScore:
        """Asks its declared queries, and returns the score that they lead to: a function of the answers alone."""


# --- registries ---------------------------------------------------------------------------------------------


class Source(Plugin):
    """Where records come from. Implemented by the harness's data floor; see `harness.data.sources`."""


segmentation: Registry[Segmenter] = Registry("segmentation", Segmenter)  # type: ignore[type-abstract]
sensitivity: Registry[SensitivityScore] = Registry("sensitivity", SensitivityScore)
noise: Registry[NoisePolicy] = Registry("noise", NoisePolicy)  # type: ignore[type-abstract]
source: Registry[Source] = Registry("source", Source)
