"""What a user can write into a spec: one frozen pydantic model per block.

Fields say what they mean in `Field(description=…)`; the JSON schema and the documentation are made from them.
What changes the mechanism and what only changes speed (`ComputeBlock`) are separate blocks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[FiniteFloat, Field(gt=0)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SMALLEST_EPSILON = 0.01
Fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]


def _integer(value: Any) -> Any:
    """`true` and `1.0` equal 1, and would pass for a literal 1."""
    if type(value) is not int:
        raise PydanticCustomError("literal_error", "must be a whole number")
    return value


Count = Annotated[int, Field(ge=1, strict=True)]


class Block(BaseModel):
    """A block of the spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginBlock(BaseModel):
    """A block that names a plugin; its other keys are that plugin's parameters, checked by the plugin's own model."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str = Field(description="name of a plugin, or module:attr")

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but `type`."""
        return dict(self.model_extra or {})


class HoldoutBlock(Block):
    """Users that are never trained on: a fraction of all, or those of a file of their own."""

    users: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0.0, description="fraction of users held out, picked by a salted hash of their name"
    )
    file: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="in place of users: a file (or a glob) of evaluation records, in the form of data.source",
    )
    visibility: Literal["public"] = Field(
        description="public: these users give up protection, and every output says so"
    )


class TextBlock(Block):
    """Two columns: what is asked, and what is to be learnt."""

    prompt: str = Field(min_length=1, description="column of the prompt: context only, it has no loss")
    completion: str = Field(min_length=1, description="column of the completion: the loss is on it alone")


def _text_unless_messages(given: dict[str, Any]) -> str | None:
    return "text" if given.get("messages") is None else None


class DataBlock(Block):
    """The users' records."""

    name: str = Field(min_length=1, description="name of the data set, whose budget the ledger keeps")
    visibility: Literal["private", "public"] = Field(
        default="private", description="public: a demonstration on public text; diagnostics may be shown"
    )
    source: PluginBlock = Field(description="where the records come from")
    user: str = Field(default="user", description="column that says who a record belongs to: the unit of privacy")
    messages: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="in place of text: column of a conversation, a list of {role, content}; put into the tokenizer's "
        "chat template, with the loss on the assistant's answers alone",
    )
    text: str | TextBlock | None = Field(
        default_factory=_text_unless_messages, description='column of the text (default "text"), or two columns'
    )
    attributes: tuple[str, ...] = Field(default=(), description="the public columns that segmentation may read")
    max_tokens: Annotated[int, Field(ge=8, strict=True)] = Field(
        default=128, description="tokens of a training example; short texts of one user are packed into it"
    )
    holdout: HoldoutBlock
    population: Literal["public"] | Count = Field(
        default="public", description="number of users: public (taken from the data) or a declared number"
    )
    weights: Literal["public"] | dict[str, Positive] = Field(
        default="public",
        description="fraction of users per group (segment, tier or segment/tier): public (counted by public attributes "
        "only) or declared",
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


class AdapterBlock(Block):
    """What is trained."""

    type: Literal["lora"] = "lora"
    r: Count = Field(default=8, description="rank")
    alpha: Positive = Field(default=16.0, description="the update is scaled by alpha / r")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="names of the linear layers that get an adapter"
    )
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0


class ModelBlock(Block):
    """The language model."""

    base: str = Field(min_length=1, description="a hub id or a folder")
    adapter: AdapterBlock = AdapterBlock()
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="of the frozen base; adapters, accumulation and noise stay float32"
    )


class TiersBlock(Block):
    """Risk tiers: public edges cut the combined score."""

    edges: tuple[Fraction, ...] = Field(min_length=1, description="rising; a score equal to one lies above it")
    names: tuple[Annotated[str, Field(pattern=NAME)], ...] = Field(
        min_length=1, description="one name more than edges, from the least at stake to the most"
    )

    @model_validator(mode="after")
    def _fits(self) -> TiersBlock:
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("edges: must rise")
        if len(self.names) != len(self.edges) + 1:
            raise ValueError(f"names: {len(self.edges)} edge(s) make {len(self.edges) + 1} tiers")
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: the same name twice")
        return self


class SensitivityBlock(Block):
    """How much is at stake for each user: scores in [0, 1] become one, and edges make risk tiers of it."""

    scores: tuple[PluginBlock, ...] = Field(min_length=1, description="plugins that score a user from 0 to 1")
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
            raise ValueError(f"weights: there are {len(self.scores)} scores")
        return self


class PrivacyBlock(Block):
    """The budget."""

    epsilon: Annotated[FiniteFloat, Field(ge=SMALLEST_EPSILON, le=1000)] = Field(
        default=8.0, description="no user's total may exceed it"
    )
    delta: Annotated[FiniteFloat, Field(gt=0, le=0.1)] | None = Field(
        default=None, description="must be given unless the population is public; then 1 / (10 · users)"
    )
    accountant: Literal["pld", "rdp"] = "pld"
    ledger: None = Field(default=None, description="URL of the ledger; this version has none")


class SamplingBlock(Block):
    """Who takes part in a step: every user independently, with the same public probability (Poisson sampling)."""

    unit: Literal["user"] = "user"
    expected: Positive | None = Field(default=None, description="expected users per step")
    rate: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(
        default=None, description="probability of a user per step"
    )
    examples_per_user: Count = Field(default=1, description="at most so many of a sampled user's examples enter a step")


class ClippingBlock(Block):
    """Every user's mean gradient is clipped to this l2 norm (its mean over groups, where groups differ)."""

    norm: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)] = 0.5


class OptimizerBlock(Block):
    """The optimizer and its parameters."""

    type: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 5.0e-3
    betas: tuple[Annotated[FiniteFloat, Field(ge=0, lt=1)], Annotated[FiniteFloat, Field(ge=0, lt=1)]] | None = None
    eps: Positive | None = None
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] | None = None
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = None


class TrainBlock(Block):
    """How long, and with what optimizer. The learning rate is constant and no weights are averaged."""

    steps: Count = Field(description="number of noisy steps")
    optimizer: OptimizerBlock = OptimizerBlock()
    checkpoint_every: Count = Field(default=20, description="steps between checkpoints; metrics are released with them")


class DeepspeedBlock(Block):
    """Sharding."""

    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_integer)] = Field(default=2, description="ZeRO stage")


class ComputeBlock(Block):
    """What only changes speed: never part of the mechanism."""

    workers: Count = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    deepspeed: DeepspeedBlock = DeepspeedBlock()
    microbatch_tokens: Count = Field(default=2048, description="tokens of a micro-batch, padding included")
    retries: Annotated[int, Field(ge=0, strict=True)] = Field(default=3, description="restarts after a worker's crash")


class EvaluationBlock(Block):
    """What is measured on the public hold-out users."""

    users: Count = Field(default=96, description="at most so many hold-out users, in the order of their salted hash")
    ordinary: bool = Field(
        default=False,
        description="also train the same steps without clipping or noise, for comparison (public data only)",
    )


class ReportBlock(Block):
    """What is written at the end."""

    html: bool = True


class Spec(Block):
    """A whole spec, merged and validated."""

    version: Annotated[Literal[1], BeforeValidator(_integer)]
    name: str = Field(pattern=NAME, max_length=100)
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = Field(
        default=0, description="initialisation and public shuffles only; never cohorts, masks or noise"
    )
    data: DataBlock
    model: ModelBlock
    segmentation: PluginBlock = PluginBlock(type="none")
    sensitivity: SensitivityBlock | None = Field(
        default=None, description="risk tiers by each user's own records; none: one tier"
    )
    noise: PluginBlock = PluginBlock(type="uniform")
    privacy: PrivacyBlock = PrivacyBlock()
    sampling: SamplingBlock
    clipping: ClippingBlock = ClippingBlock()
    train: TrainBlock
    compute: ComputeBlock = ComputeBlock()
    evaluation: EvaluationBlock = EvaluationBlock()
    report: ReportBlock = ReportBlock()
