"""What a sweep searches, how, and by what it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.spec.block import Block, Column, PluginBlock, TextBlock, text_unless_messages

LAWS = ("choice", "grid", "uniform", "loguniform", "int")
MOST_VALUES = 300
MOST_TRIALS = 100_000
_LARGEST = 1e15
End = Annotated[FiniteFloat, Field(ge=-_LARGEST, le=_LARGEST)]
PositiveEnd = Annotated[FiniteFloat, Field(gt=0, le=_LARGEST)]
WholeEnd = Annotated[int, Field(ge=-(10**15), le=10**15, strict=True)]
Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_VALUES)]


class PriorBlock(Block):
    """What one key of the spec may be, and how likely each value is: public, and fixed before the first trial."""

    choice: Values | None = Field(default=None, description="one of these values, all equally likely")
    grid: Values | None = Field(
        default=None, description="the same; says that every value should be looked at where the search can"
    )
    uniform: tuple[End, End] | None = Field(default=None, description="[low, high]: a number between them")
    loguniform: tuple[PositiveEnd, PositiveEnd] | None = Field(
        default=None, description="[low, high], both above 0: a number whose logarithm is uniform"
    )
    int: tuple[WholeEnd, WholeEnd] | None = Field(
        default=None, description="[low, high]: a whole number, both ends included"
    )
    when: dict[str, Any] | None = Field(
        default=None,
        description="the key is set only where these other keys have this value, or one of these: "
        "{noise.type: product} or {noise.type: [sample, product]}",
    )

    @model_validator(mode="after")
    def _fits(self) -> PriorBlock:
        given = [name for name in LAWS if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"one of {', '.join(LAWS[:-1])} and {LAWS[-1]} must be given")
        if len(given) > 1:
            raise ValueError(f"{given[1]}: {given[0]} is given too; a key has one of them")
        ends = self.uniform or self.loguniform or self.int
        if ends is not None and not ends[0] < ends[1]:
            raise ValueError(f"{given[0]}: must be [low, high], the first below the second")
        return self

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What it is about alone."""
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def law(self) -> str:
        """The one that is given: ``choice``, ``grid``, ``uniform``, ``loguniform`` or ``int``."""
        return next(name for name in LAWS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values of ``choice`` or ``grid``, in their order; None for the others."""
        return self.choice if self.choice is not None else self.grid

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of ``uniform``, ``loguniform`` or ``int``; None for the others."""
        return self.uniform or self.loguniform or self.int

    @property
    def conditions(self) -> Mapping[str, tuple[Any, ...]]:
        """The values that other keys must have, by key."""
        return {k: tuple(v) if isinstance(v, list) else (v,) for k, v in (self.when or {}).items()}


class TrialsBlock(Block):
    """How many trials a random search makes: drawn from this law, secret, and never capped."""

    law: Literal["geometric", "logarithmic", "negative_binomial", "poisson"] = Field(
        default="geometric", description="of the number of trials; poisson may give none at all"
    )
    mean: Annotated[FiniteFloat, Field(ge=1, le=1e6)] = Field(default=10.0, description="mean number of trials")
    shape: Annotated[FiniteFloat, Field(gt=0, le=1000)] | None = Field(
        default=None, description="of negative_binomial: 1 is geometric, large is almost poisson"
    )

    @model_validator(mode="after")
    def _fits(self) -> TrialsBlock:
        if self.law == "negative_binomial" and self.shape is None:
            raise ValueError("shape must be given for negative_binomial")
        if self.law != "negative_binomial" and self.shape is not None:
            raise ValueError(f"shape: only negative_binomial has it; {self.law} has none")
        return self


def _default(kind: str, value: Any) -> Any:
    """A default that only one type of search has."""
    return lambda given: value if given.get("type") == kind else None


# Which types have which keys.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "trials": ("random", "optuna", "asha"),
    "candidates": ("predicted",),
    "by": ("predicted",),
    "tokens": ("predicted",),
    "grace": ("asha",),
    "reduction": ("asha",),
}


class SearchBlock(Block):
    """How candidates are found, which decides what the search costs."""

    type: Literal["random", "predicted", "optuna", "asha"] = Field(
        default="random",
        description="random: a random number of draws, of which the best is released, at about the logarithm of their "
        "number; predicted: by predicted noise alone, which trains nothing and costs nothing; optuna, asha: adaptive, "
        "so that all trials are charged",
    )
    trials: TrialsBlock | Annotated[int, Field(ge=1, le=MOST_TRIALS, strict=True)] | None = Field(
        default_factory=_default("random", TrialsBlock()),
        description="of random: law of their number (default: geometric, mean 10); of optuna and asha: their number",
    )
    candidates: Annotated[int, Field(ge=1, le=MOST_TRIALS, strict=True)] | None = Field(
        default_factory=_default("predicted", 1000),
        description="of predicted: at most so many candidates are compared (default 1000)",
    )
    by: Literal["worst", "overall", "mean"] | None = Field(
        default_factory=_default("predicted", "worst"),
        description="of predicted: by the noise-to-signal of the worst group (the default), of all users together, or "
        "the mean of the groups",
    )
    tokens: Annotated[int, Field(ge=1, le=10**18, strict=True)] | None = Field(
        default=None, description="of predicted: a candidate may train on at most so many tokens"
    )
    grace: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = Field(
        default_factory=_default("asha", 1),
        description="of asha: no trial stops before so many evaluations (default 1)",
    )
    reduction: Annotated[FiniteFloat, Field(gt=1, le=1000)] | None = Field(
        default_factory=_default("asha", 3.0),
        description="of asha: of so many trials, one goes on at each halt (default 3)",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Null means the default, which depends on the type."""
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fits(self) -> SearchBlock:
        for name, types in _KEYS.items():
            if self.type not in types and getattr(self, name) is not None:
                who = f"{', '.join(types[:-1])} and {types[-1]} have" if len(types) > 1 else f"{types[0]} has"
                raise ValueError(f"{name}: only {who} it; {self.type} has none")
        if self.type == "random" and not isinstance(self.trials, TrialsBlock):
            raise ValueError("trials: must be a law of their number for random, as {law: geometric, mean: 10}")
        if self.type in ("optuna", "asha") and not isinstance(self.trials, int):
            trials = "trials must be given" if self.trials is None else "trials: must be a whole number"
            raise ValueError(f"{trials} for {self.type}, which charges all of them")
        return self

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What it is about alone."""
        return {name: value for name, value in dump(self).items() if value is not None}


class SelectBlock(Block):
    """By what the best trial is chosen. What is chosen by must be public or a noisy answer: a released metric."""

    metric: Annotated[str, Field(min_length=1, max_length=300)] = Field(
        default="eval/loss", description="eval/loss, or eval/loss/GROUP: of the last evaluation of a trial"
    )
    mode: Literal["min", "max"] = Field(default="min", description="whether the least or the greatest is best")


class ProxyBlock(Block):
    """A public data set on which trials are trained instead, so that the search costs nothing.

    Only the winner is trained on the users' data. Everything else about the data is as the spec's `data` says.
    """

    source: PluginBlock = Field(description="where the public records come from")
    user: Column = Field(default="user", description="column that says who a record belongs to")
    messages: Column | None = Field(default=None, description="in place of text: column of a conversation")
    text: Column | TextBlock | None = Field(
        default_factory=text_unless_messages, description='column of the text (default "text"), or two columns'
    )


class SweepBlock(Block):
    """Hyperparameters that are searched within the budget."""

    space: dict[str, PriorBlock] = Field(
        json_schema_extra={"minProperties": 1},
        description="what is searched, by dotted key: {clipping.norm: {loguniform: [0.1, 2]}}",
    )
    search: SearchBlock = SearchBlock()
    select: SelectBlock = SelectBlock()
    concurrent: Literal["auto"] | Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default="auto", description="trials at a time; auto: as many as the machines have room for"
    )
    proxy: ProxyBlock | None = Field(
        default=None, description="a public data set on which trials are trained instead; none: the users' data"
    )
