"""The adapter: what of a model is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer

from harness.spec.block import Block, Positive

Layer = Annotated[str, Field(min_length=1, max_length=1000)]
Rank = Annotated[int, Field(ge=1, le=8192, strict=True)]


class AdapterBlock(Block):
    """What is trained."""

    type: Literal["lora", "bias", "norms", "full"] = Field(
        default="lora",
        description="lora: low-rank adapters, the base stays as it is; bias: the biases alone; norms: the norms alone; "
        "full: all parameters, in float32",
    )
    r: Rank = Field(default=4, description="rank")
    alpha: Positive = Field(
        default=80.0, description="the update is scaled by alpha / r; large, since noise leaves few and small steps"
    )
    targets: Literal["all-linear"] | Annotated[tuple[Layer, ...], Field(min_length=1, max_length=1000)] = Field(
        default=("v_proj",),
        description="names of the linear layers that get an adapter; all-linear: all but the output layer. The noise "
        "grows with the number of trained weights",
    )
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0.0, description="fraction of the adapter's inputs that a step leaves out"
    )
    freeze_a: bool = Field(
        default=True,
        description="train each adapter's second factor alone and leave the first as it was drawn: the noise falls on "
        "a half of the weights or fewer",
    )
    rank_pattern: dict[Layer, Rank] = Field(
        default={}, description="ranks other than r, by the name of a layer or a regular expression of its end"
    )
    alpha_pattern: dict[Layer, Positive] = Field(default={}, description="the same for alpha")
    rslora: bool = Field(default=False, description="scale the update by alpha / √r instead")
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="biases of the base that are trained too: all, or those of the targets"
    )
    also: tuple[Layer, ...] = Field(
        default=(),
        max_length=1000,
        description="names of norms, embeddings or linear layers that are trained whole, beside the adapter",
    )

    @model_serializer(mode="wrap")
    def _own(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What it is about alone: the other keys are LoRA's."""
        return dump(self) if self.type == "lora" else {"type": self.type}
