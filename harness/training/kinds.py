"""Kinds of layers whose parameters can be trained privately, each one's gradients kept apart by unit.

A parameter enters a model in one of four ways: by a product (linear layers), as a scale or a shift of the last
dimension (norms, biases), or by rows that are looked up (embeddings). Each is computed here by a function of its own,
which hands the gradients of the units of a micro-batch to a `Sink`, and exact zeros to autograd. All other computation
of the layer stays what it was. Trainable parameters are float32 also where the model computes in bfloat16: what they
are multiplied with or added to is float32, and the result is given back in the model's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ArgumentError
from harness.training.layout import Layout

Kind = Literal["linear", "norm", "embedding"]

# What the parameter of a norm is added to before it scales: Gemma's is a difference from one.
_CENTERS: Mapping[str, float] = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "Phi3RMSNorm": 0.0,
    "SmolLM3RMSNorm": 0.0,
    "GraniteRMSNorm": 0.0,
    "Olmo2RMSNorm": 0.0,
    "Olmo3RMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
"""Norms of `transformers`, by class."""

# Where the tokens are in the input of a norm of attention heads, [rows, …, …, head].
_TOKENS_OF_HEADS: Mapping[str, int] = {"Qwen3RMSNorm": 1, "Gemma3RMSNorm": 2}

# Subclasses of nn.Embedding: whether they scale what they look up (or else change what they are asked for).
_EMBEDDINGS: Mapping[str, bool] = {
    "GemmaTextScaledWordEmbedding": True,
    "Gemma2TextScaledWordEmbedding": True,
    "Gemma3TextScaledWordEmbedding": True,
    "OPTLearnedPositionalEmbedding": False,
}


class Held(Protocol):
    """A trainable parameter."""

    @property
    def name(self) -> str:
        """Its name in the model."""
        ...

    @property
    def parameter(self) -> nn.Parameter:
        """Itself, gathered where ZeRO-3 shards it and its layer runs."""
        ...

    def view(self, flat: Tensor) -> Tensor:
        """Its part of flat gradients."""
        ...


class Sink(Protocol):
    """What collects the gradients of units.

    Attributes:
        hand_zeros_to_optimizer: Whether autograd is to reach the parameters, with zeros.
    """

    hand_zeros_to_optimizer: bool

    def open(self, held: Held) -> tuple[Layout, Tensor] | None:
        """Whose the tokens are, and a parameter's gradients so far, [units, *shape]; None: they are not wanted."""
        ...


def kind_of(module: nn.Module) -> Kind | None:
    """What kind of layer it is; None: none whose parameters can be trained privately."""
    from transformers.pytorch_utils import Conv1D

    cls = type(module)
    replaced = module.__dict__.get("forward")
    if replaced is not None and not hasattr(replaced, "apart"):
        return None  # somebody else has replaced what it does
    if cls is nn.Linear or cls is Conv1D:
        return "linear"
    ours = cls.__module__.startswith("transformers.models.")
    if (cls in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1) or (  # type: ignore[arg-type]
        ours and cls.__name__ in _CENTERS
    ):
        return "norm"
    if cls is nn.Embedding or (ours and cls.__name__ in _EMBEDDINGS):
        assert isinstance(module, nn.Embedding)
        # Both couple the rows of a micro-batch.
        return None if module.max_norm is not None or module.scale_grad_by_freq else "embedding"
    return None


def take_over(module: nn.Module, held: Mapping[str, Held], sink: Sink, dtype: torch.dtype) -> None:
    """Replaces what a layer does by the same computation, whose parameters' gradients go to `sink`.

    Must be called before DeepSpeed partitions the parameters.

    Args:
        module: The layer; `kind_of` knows it.
        held: Its trainable parameters by their names in it: ``weight``, ``bias``.
        sink: What collects their gradients.
        dtype: What the model computes in.
    """
    kind = kind_of(module)
    forward: Any
    if kind == "linear":
        forward = _linear(module, held, sink)
    elif kind == "norm":
        forward = _norm(module, held, sink)
    else:
        assert isinstance(module, nn.Embedding)
        forward = _embedding(module, held["weight"], sink, dtype)
    forward.apart = True
    module.forward = forward


# --- layers -------------------------------------------------------------------------------------------------


def _linear(module: nn.Module, held: Mapping[str, Held], sink: Sink) -> Callable[[Tensor], Tensor]:
    weight, bias = (_Use(held[n], sink) if n in held else None for n in ("weight", "bias"))
    # GPT-2's layers keep their weights as [in, out].
    transposed = not isinstance(module, nn.Linear)

    def forward(inputs: Tensor) -> Tensor:
        own: Any = module
        if weight is not None:
            outputs: Tensor = _UnitProduct.apply(inputs, *weight.arguments(), transposed)  # type: ignore[no-untyped-call]
        elif transposed:
            # Not by a view of the weight: kept for the backward pass, it would be whole where ZeRO-3 shards the weight.
            outputs = torch.mm(inputs.flatten(0, -2), own.weight).view(*inputs.shape[:-1], -1)
        else:
            outputs = functional.linear(inputs, own.weight)
        if bias is not None:
            outputs = _UnitShift.apply(outputs, *bias.arguments(), 1)  # type: ignore[no-untyped-call]
        elif own.bias is not None:
            outputs = outputs + own.bias
        return outputs.to(inputs.dtype)

    return forward


def _norm(module: nn.Module, held: Mapping[str, Held], sink: Sink) -> Callable[[Tensor], Tensor]:
    weight, bias = (_Use(held[n], sink) if n in held else None for n in ("weight", "bias"))
    name = type(module).__name__
    center = _CENTERS.get(name, 0.0)
    normalise = _without_scale(module, center)

    def forward(inputs: Tensor) -> Tensor:
        own: Any = module
        tokens_at = 1
        if inputs.dim() > 3:
            if name not in _TOKENS_OF_HEADS:
                raise ArgumentError(f"model.base: {name} on attention heads can't be trained privately")
            tokens_at = _TOKENS_OF_HEADS[name]
        outputs = normalise(inputs.float() if inputs.dtype.itemsize < 4 else inputs)
        if weight is not None:
            outputs = _UnitScale.apply(outputs, *weight.arguments(), center, tokens_at)  # type: ignore[no-untyped-call]
        elif own.weight is not None:
            outputs = outputs * (own.weight.float() + center)
        if bias is not None:
            outputs = _UnitShift.apply(outputs, *bias.arguments(), tokens_at)  # type: ignore[no-untyped-call]
        elif getattr(own, "bias", None) is not None:
            outputs = outputs + own.bias
        return outputs.to(inputs.dtype)

    return forward


def _without_scale(module: nn.Module, center: float) -> Callable[[Tensor], Tensor]:
    """A norm without its parameters: what they scale and shift."""
    own: Any = module
    if isinstance(module, nn.LayerNorm):
        return lambda inputs: functional.layer_norm(inputs, own.normalized_shape, None, None, own.eps)
    if isinstance(module, nn.RMSNorm):
        return lambda inputs: functional.rms_norm(inputs, own.normalized_shape, None, own.eps)
    cls = type(module)
    neutral = torch.full(_shape(own.weight), 1.0 - center, dtype=torch.float32, device=own.weight.device)
    # The class's own code, on a stand-in whose weight changes nothing; it is no module of the model.
    twin = _stand_in(module, neutral)
    return lambda inputs: cls.forward(twin, inputs)


def _embedding(module: nn.Embedding, held: Held, sink: Sink, dtype: torch.dtype) -> Callable[..., Tensor]:
    use, cls = _Use(held, sink), type(module)
    padding = -1 if module.padding_idx is None else module.padding_idx
    scales = _EMBEDDINGS.get(cls.__name__)
    # Where a class makes places of what it is given: its own code, on a stand-in whose rows say where they lie.
    count = _shape(module.weight)[0]
    places = torch.arange(count, dtype=torch.float32, device=module.weight.device).unsqueeze(1)
    asks = _stand_in(module, places) if scales is False else None

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        ids = args[0] if asks is None else cls.forward(asks, *args, **kwargs).squeeze(-1).long()
        rows: Tensor = _UnitRows.apply(_row_each(ids, sink, held), *use.arguments(), padding)  # type: ignore[no-untyped-call]
        rows = rows.to(dtype)
        if scales:
            rows = rows * module.embed_scale.to(dtype)  # type: ignore[operator]
        return rows

    return forward


def _row_each(ids: Tensor, sink: Sink, held: Held) -> Tensor:
    """Positions may come once for all rows: then each row gets its own, or their gradients would be added up."""
    opened = sink.open(held) if torch.is_grad_enabled() else None
    if opened is None or ids.dim() != 2 or len(ids) != 1 or opened[0].places is not None:
        return ids
    return ids.expand(len(opened[0].owners), -1)


def _shape(parameter: Any) -> tuple[int, ...]:
    """Of the whole parameter, also where ZeRO-3 has it partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _stand_in(module: nn.Module, weight: Tensor) -> Any:
    """An object of the same class with another weight, that nothing but us knows."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update(_parameters={}, weight=weight)
    twin.__dict__.pop("forward", None)
    return twin


# --- functions ----------------------------------------------------------------------------------------------


class _Use:
    """A parameter's place in one layer."""

    def __init__(self, held: Held, sink: Sink) -> None:
        self.held, self.sink = held, sink
        # Something must require a gradient, or a layer without trainable inputs has no backward to be recorded in.
        self.anchor = torch.zeros((), requires_grad=True)

    def arguments(self) -> tuple[Tensor | None, Tensor, _Use]:
        """What each function below takes after its input."""
        # DeepSpeed's hooks fire wherever the parameter is in the graph, so it is there once per step.
        return self.held.parameter if self.sink.hand_zeros_to_optimizer else None, self.anchor, self

    @property
    def parameter(self) -> nn.Parameter:
        return self.held.parameter

    def nothing(self, ctx: Any) -> Tensor | None:
        """What autograd gets for the parameter."""
        return torch.zeros_like(self.parameter) if ctx.needs_input_grad[1] else None

    def open(self) -> tuple[Layout, Tensor] | None:
        return self.sink.open(self.held)

    def by_rows(self, values: Tensor, layout: Layout) -> Tensor:
        """[rows, tokens, n], or what a layer sees as [rows · tokens, n], as [rows, tokens, n] in float32.

        Raises:
            ArgumentError: The layer does not see the rows of the micro-batch one after the other.
        """
        apart = layout.places is None
        rows = len(layout.owners) if apart else 1
        if values.dim() == 2:
            values = values.reshape(rows, -1, values.shape[-1])
        if values.dim() != 3 or (apart and len(values) != rows):
            raise ArgumentError(f"{self.held.name} can't be trained privately: its layer mixes the rows of a batch")
        return values.float()


class _UnitProduct(torch.autograd.Function):
    """``x Wᵀ``, or ``x W`` where the weight is transposed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor | None, anchor: Tensor, use: _Use, transposed: bool) -> Tensor:
        # save_for_backward (and not a closure) lets gradient checkpointing free the input.
        ctx.save_for_backward(inputs)
        ctx.use, ctx.transposed = use, transposed
        own = use.parameter
        product: Tensor = functional.linear(inputs.to(own.dtype), own.T if transposed else own)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (inputs,), (gradient,), use = ctx.saved_tensors, gradients, ctx.use
        if (opened := use.open()) is not None:
            layout, units = opened
            g, x = use.by_rows(gradient, layout), use.by_rows(inputs, layout)
            units.add_(layout.products(x, g) if ctx.transposed else layout.products(g, x))
        back = None
        if ctx.needs_input_grad[0]:
            # Read now and not saved: ZeRO-3 gathers the weight again for the backward of its layer.
            own = use.parameter
            back = (gradient @ (own.T if ctx.transposed else own)).to(inputs.dtype)
        return back, use.nothing(ctx), None, None, None


class _UnitShift(torch.autograd.Function):
    """``x + b``, of the last dimension."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, anchor: Tensor, use: _Use, tokens_at: int) -> Tensor:
        ctx.use, ctx.tokens_at, ctx.dtype = use, tokens_at, inputs.dtype
        return inputs + use.parameter

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,), use = gradients, ctx.use
        if (opened := use.open()) is not None:
            layout, units = opened
            units.add_(_sums(gradient, ctx, layout))
        back = gradient.to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return back, use.nothing(ctx), None, None, None


class _UnitScale(torch.autograd.Function):
    """``x (c + w)``, of the last dimension."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, anchor: Tensor, use: _Use, center: float, tokens_at: int
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.use, ctx.center, ctx.tokens_at = use, center, tokens_at
        return inputs * (use.parameter + center)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (inputs,), (gradient,), use = ctx.saved_tensors, gradients, ctx.use
        if (opened := use.open()) is not None:
            layout, units = opened
            units.add_(_sums(gradient * inputs, ctx, layout))
        back = gradient * (use.parameter + ctx.center) if ctx.needs_input_grad[0] else None
        return back, use.nothing(ctx), None, None, None, None


class _UnitRows(torch.autograd.Function):
    """Rows of an embedding."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor | None, anchor: Tensor, use: _Use, padding: int) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.use, ctx.padding = use, padding
        return functional.embedding(ids, use.parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (ids,), (gradient,), use = ctx.saved_tensors, gradients, ctx.use
        if (opened := use.open()) is not None:
            layout, units = opened
            # The row of the padding token is not learnt, as ever in torch.
            gradient = use.by_rows(gradient, layout).masked_fill((ids == ctx.padding).unsqueeze(-1), 0.0)
            layout.add_rows(units, ids, gradient)
        return None, use.nothing(ctx), None, None, None


def _sums(values: Tensor, ctx: Any, layout: Layout) -> Tensor:
    """Per unit, over its tokens, and over the attention heads that share a parameter."""
    if values.dim() == 4:
        values = values.movedim(ctx.tokens_at, 1).sum(dim=2)
    return layout.sums(ctx.use.by_rows(values, layout))
