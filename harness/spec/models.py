"""What a user can write into a spec: one frozen pydantic model per block.

Fields say what they mean in `Field(description=…)`; the JSON schema and the documentation are made from them.
What changes the mechanism and what only changes speed (`ComputeBlock`) are separate blocks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from harness.spec.adapter_block import AdapterBlock
from harness.spec.audit_block import AuditBlock, CanaryKind
from harness.spec.block import Block, Column, PluginBlock, Positive, TextBlock, text_unless_messages, whole
from harness.spec.compute_block import ComputeBlock
from harness.spec.ledger_url import DEFAULT_LEDGER
from harness.spec.sweep_block import SweepBlock

# Every number has bounds, generous ones: beyond them lies a mistake, or what no accountant and no machine can do.
MOST_USERS = 10**10
MOST_STEPS = 1_000_000
MOST_PLD_STEPS = 50_000
SMALLEST_DELTA = 1e-12
SMALLEST_RATE = 1e-8
Share = Annotated[FiniteFloat, Field(gt=0, le=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SMALLEST_EPSILON = 0.01
LARGEST_EPSILON = 1000
LARGEST_DELTA = 0.1
Fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]


Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class HoldoutBlock(Block):
    """Users that are never trained on: a fraction of all, or those of a file of their own."""

    users: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0.0, description="fraction of users held out, picked by a salted hash of their name"
    )
    file: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="in place of users: a file (or a glob) of evaluation records, in the form of data.source",
    )
    visibility: Literal["public", "private"] = Field(
        description="public: these users give up protection, and every output says so; private: they are protected, "
        "and what is said of them is noisy, within privacy.epsilon of their own"
    )


class DataBlock(Block):
    """The users' records."""

    name: str = Field(min_length=1, max_length=200, description="name of the data set, whose budget the ledger keeps")
    visibility: Literal["private", "public"] = Field(
        default="private", description="public: a demonstration on public text; diagnostics may be shown"
    )
    source: PluginBlock = Field(description="where the records come from")
    user: Column = Field(default="user", description="column that says who a record belongs to: the unit of privacy")
    messages: Column | None = Field(
        default=None,
        description="in place of text: column of a conversation, a list of {role, content}; put into the tokenizer's "
        "chat template, with the loss on the assistant's answers alone",
    )
    text: Column | TextBlock | None = Field(
        default_factory=text_unless_messages, description='column of the text (default "text"), or two columns'
    )
    time: Column | None = Field(
        default=None,
        description="column that says when a record was written, for plugins that ask: ISO 8601 (without a zone: UTC), "
        "a date, or seconds since 1970",
    )
    attributes: tuple[Column, ...] = Field(
        default=(), max_length=100, description="the public columns that segmentation may read"
    )
    max_tokens: Annotated[int, Field(ge=8, le=1_048_576, strict=True)] = Field(
        default=128, description="tokens of a training example; short texts of one user are packed into it"
    )
    holdout: HoldoutBlock
    population: Literal["public", "noisy"] | Annotated[int, Field(ge=1, le=MOST_USERS, strict=True)] = Field(
        default="public",
        description="number of users: public (taken from the data), declared, or noisy (counted with a charge)",
    )
    weights: Literal["public", "noisy"] | dict[str, Share] = Field(
        default="public",
        description="fraction of users per group (segment, tier or segment/tier): public (counted by public attributes "
        "only), declared, or noisy (counted with a charge)",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="skip", description="what a broken line, an empty text or a missing user does"
    )


def private_columns(data: DataBlock) -> dict[str, str]:
    """The columns that hold what is private, by the spec's key for each."""
    if data.messages is not None:
        return {"data.messages": data.messages}
    if isinstance(data.text, TextBlock):
        return {"data.text.prompt": data.text.prompt, "data.text.completion": data.text.completion}
    return {"data.text": data.text or "text"}


def _dtype_of_base(given: dict[str, Any]) -> Literal["float32", "bfloat16"]:
    adapter = given.get("adapter")
    return "float32" if isinstance(adapter, AdapterBlock) and adapter.type == "full" else "bfloat16"


class ModelBlock(Block):
    """The language model."""

    base: str = Field(min_length=1, max_length=4096, description="a hub id or a folder")
    adapter: AdapterBlock = AdapterBlock()
    dtype: Literal["float32", "bfloat16"] = Field(
        default_factory=_dtype_of_base,
        description="of the frozen base (default bfloat16); adapters, accumulation and noise stay float32, and so does "
        "the model where all of it is trained (type: full)",
    )


class TiersBlock(Block):
    """Risk tiers: edges cut the combined score. They are public constants, or noisy quantiles of all users' scores."""

    edges: tuple[Fraction, ...] | None = Field(
        default=None, min_length=1, max_length=20, description="rising; a score equal to one lies above it"
    )
    quantiles: tuple[Annotated[FiniteFloat, Field(ge=1e-6, le=1 - 1e-6)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="in place of edges: shares of users, rising; the edges are noisy, charged quantiles of the score",
    )
    names: tuple[Annotated[str, Field(pattern=NAME)], ...] = Field(
        min_length=1, description="one name more than edges or quantiles, from the least at stake to the most"
    )

    @model_validator(mode="after")
    def _fits(self) -> TiersBlock:
        if self.edges is not None and self.quantiles is not None:
            raise ValueError("quantiles: give either edges or quantiles, not both")
        what, cuts = ("edges", self.edges) if self.quantiles is None else ("quantiles", self.quantiles)
        if cuts is None:
            raise ValueError("one of edges and quantiles must be given")
        if any(a >= b for a, b in pairwise(cuts)):
            raise ValueError(f"{what}: must rise")
        if len(self.names) != len(cuts) + 1:
            raise ValueError(f"names: must be {len(cuts) + 1}, one more than {what}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: the same name twice")
        return self


class SensitivityBlock(Block):
    """How much is at stake for each user: scores in [0, 1] become one, and edges make risk tiers of it."""

    scores: tuple[PluginBlock, ...] = Field(
        min_length=1, max_length=20, description="plugins that score a user from 0 to 1"
    )
    combine: Literal["max", "mean"] = Field(default="max", description="the largest score counts, or their mean")
    weights: tuple[Positive, ...] | None = Field(
        default=None, description="of the scores in the mean, in their order; left out: all alike"
    )
    tiers: TiersBlock

    @model_validator(mode="after")
    def _fits(self) -> SensitivityBlock:
        if self.weights is not None and self.combine == "max":
            raise ValueError("weights: only a mean has weights; add combine: mean")
        if self.weights is not None and len(self.weights) != len(self.scores):
            raise ValueError(f"weights: must be {len(self.scores)}, one for each score")
        return self


class GroupsBlock(Block):
    """Small privacy groups are merged, and others left out of training, by weights that are public or declared."""

    smallest: Fraction | None = Field(
        default=None,
        description="groups with a smaller weight become one; where that is still too small, the next smallest joins",
    )
    merged: Annotated[str, Field(pattern=NAME, max_length=100)] = Field(
        default="rest", description="name of that one group; its ε is the strictest of those that it holds"
    )
    drop: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=1000,
        description="groups that are not trained on at all: none of their users is ever drawn; with public hold-out "
        "users, they are evaluated all the same",
    )


class SessionBlock(Block):
    """The noisy answers about all users that a run asks for before training. Each one is part of every user's ε."""

    noise_multiplier: Annotated[FiniteFloat, Field(ge=0.5, le=1e6)] = Field(
        default=30.0,
        description="noise of a count (of users, of users per group, of examples per user) over one user's influence",
    )


class PrivacyBlock(Block):
    """The budget."""

    epsilon: Annotated[FiniteFloat, Field(ge=SMALLEST_EPSILON, le=LARGEST_EPSILON)] = Field(
        default=8.0, description="no user's total may exceed it"
    )
    delta: Annotated[FiniteFloat, Field(ge=SMALLEST_DELTA, le=LARGEST_DELTA)] | None = Field(
        default=None, description="must be given unless the population is public; then 1 / (10 · users)"
    )
    accountant: Literal["pld", "rdp"] = Field(
        default="pld", description="pld is tight; rdp is faster for very many steps, and bounds ε less tightly"
    )
    session: SessionBlock = SessionBlock()
    ledger: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(
        default=DEFAULT_LEDGER,
        description="sqlite:///FILE or postgresql://HOST/DATABASE: where budgets of data sets are kept; default: "
        "what UUDP_LEDGER names, else a file in the home folder; null: no ledger",
    )


class SamplingBlock(Block):
    """Who takes part in a step: every unit independently, with the same public probability (Poisson sampling)."""

    unit: Literal["user", "example", "auto"] = Field(
        default="user",
        description="what is drawn, and clipped as one: a user (the mean gradient of some of their examples), or one "
        "of the examples that a user keeps; auto: whichever is predicted to need less noise",
    )
    expected: Annotated[FiniteFloat, Field(ge=0.001, le=1e9)] | None = Field(
        default=None, description="expected users (with unit: example or auto, examples) per step"
    )
    rate: Annotated[FiniteFloat, Field(ge=SMALLEST_RATE, le=1)] | None = Field(
        default=None, description="probability of a user (with unit: example, of a kept example) per step"
    )
    examples_per_user: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | Literal["auto"] = Field(
        default=1,
        description="unit: user: at most so many of a sampled user's examples enter a step; unit: example: at most so "
        "many of a user's examples are kept for the whole run; auto: by a noisy median of examples per user",
    )


FIRST_NORM = 0.5


def _norm_unless_adaptive(given: dict[str, Any]) -> float | None:
    return FIRST_NORM if given.get("type") == "fixed" else None


class ClippingBlock(Block):
    """Every unit's gradient is clipped to this l2 norm (its mean over groups, where groups differ)."""

    type: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="adaptive: the norm follows a private quantile of the units' norms"
    )
    norm: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)] | None = Field(
        default_factory=_norm_unless_adaptive,
        description="bound on one unit's influence on a step; the noise is in proportion (default 0.5)",
    )
    initial: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)] | None = Field(
        default=None, description="of adaptive: the norm of the first step (default 0.5)"
    )
    quantile: Annotated[FiniteFloat, Field(ge=0.01, le=0.99)] | None = Field(
        default=None, description="of adaptive: the share of units that should lie below the norm (default 0.5)"
    )
    learning_rate: Annotated[FiniteFloat, Field(gt=0, le=10)] | None = Field(
        default=None, description="of adaptive: how fast the norm's logarithm follows (default 0.2)"
    )
    bit_noise: Annotated[FiniteFloat, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="of adaptive: noise std on the number of units below the norm (default: a twentieth of the "
        "expected cohort, or more where the budget asks for it)",
    )

    @model_validator(mode="after")
    def _fits(self) -> ClippingBlock:
        if self.type == "adaptive" and self.norm is not None:
            raise ValueError("norm: of a fixed norm; with type: adaptive, give initial")
        for name in ("initial", "quantile", "learning_rate", "bit_noise"):
            if self.type == "fixed" and getattr(self, name) is not None:
                raise ValueError(f"{name}: only an adaptive norm has it; add type: adaptive")
        return self

    @property
    def first_norm(self) -> float:
        """The clip norm of the first step."""
        return self.norm or self.initial or FIRST_NORM


class OptimizerBlock(Block):
    """The optimizer and its parameters."""

    type: Literal["adamw", "adam", "sgd"] = Field(
        default="adamw", description="sgd has momentum; the others have betas"
    )
    lr: Positive = Field(default=5.0e-3, description="learning rate; higher than without privacy")
    betas: tuple[Annotated[FiniteFloat, Field(ge=0, lt=1)], Annotated[FiniteFloat, Field(ge=0, lt=1)]] | None = Field(
        default=None, description="of adam and adamw: decay of the first and the second moment"
    )
    eps: Share | None = Field(default=None, description="of adam and adamw: added to the denominator")
    weight_decay: Annotated[FiniteFloat, Field(ge=0, le=1000)] | None = Field(
        default=None, description="per unit of learning rate"
    )
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = Field(default=None, description="of sgd")


class ScheduleBlock(Block):
    """How the learning rate changes from step to step: a function of the step alone, so that it costs no privacy."""

    type: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="linear and cosine fall from the learning rate to almost 0 at the last step"
    )
    warmup: Annotated[int, Field(ge=0, le=MOST_STEPS, strict=True)] = Field(
        default=0, description="so many first steps the learning rate rises to its value"
    )


class TrainBlock(Block):
    """How long, and with what optimizer. No weights are averaged."""

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS, strict=True)] = Field(description="number of noisy steps")
    optimizer: OptimizerBlock = OptimizerBlock()
    schedule: ScheduleBlock = ScheduleBlock()
    checkpoint_every: Count = Field(default=20, description="steps between checkpoints; metrics are released with them")


class EvaluationBlock(Block):
    """What is measured on the public hold-out users."""

    users: Count = Field(default=96, description="at most so many hold-out users, in the order of their salted hash")
    ordinary: bool = Field(
        default=False,
        description="also train the same steps without clipping or noise, for comparison (public data only)",
    )


class ReportBlock(Block):
    """What is written at the end."""

    html: bool = Field(default=True, description="report.html: one file that needs no network")
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = Field(
        default=(), max_length=20, description="public texts that the base and the trained model continue, to be read"
    )
    tokens: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=32, description="of a continuation, at most"
    )


class Spec(Block):
    """A whole spec, merged and validated."""

    version: Annotated[Literal[1], BeforeValidator(whole)] = Field(description="of the spec's format")
    name: str = Field(pattern=NAME, max_length=100, description="of the runs of this spec: their folder in runs/")
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = Field(
        default=0, description="initialisation and public shuffles only; never cohorts, masks or noise"
    )
    data: DataBlock
    model: ModelBlock
    segmentation: PluginBlock = Field(
        default=PluginBlock(type="none"), description="a plugin that puts each user into a segment"
    )
    sensitivity: SensitivityBlock | None = Field(
        default=None, description="risk tiers by each user's own records; none: one tier"
    )
    groups: GroupsBlock | None = Field(default=None, description="small groups are merged; none: all stay as they are")
    noise: PluginBlock = Field(
        default=PluginBlock(type="uniform"), description="a plugin that sets each group's ε, and what reaches it"
    )
    privacy: PrivacyBlock = PrivacyBlock()
    sampling: SamplingBlock
    clipping: ClippingBlock = ClippingBlock()
    train: TrainBlock
    compute: ComputeBlock = ComputeBlock()
    evaluation: EvaluationBlock = EvaluationBlock()
    report: ReportBlock = ReportBlock()
    audit: AuditBlock | None = Field(default=None, description="attacks on the finished run; none: it is not audited")
    sweep: SweepBlock | None = Field(
        default=None, description="hyperparameters that `uudp sweep` searches; a single run takes the spec as it stands"
    )

    @property
    def canary_kinds(self) -> tuple[CanaryKind, ...]:
        """Kinds of the one-run audit's canaries: those asked for, or all that there are where this is trained."""
        if self.audit is None or self.audit.one_run is None:
            return ()
        adapted = self.model.adapter.type != "full"
        return self.audit.one_run.kinds or (("gradient", "text") if adapted else ("text",))
