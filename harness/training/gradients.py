"""Per-user gradients of a whole micro-batch in one forward and backward, clipped jointly per user.

A LoRA factor is a linear layer. From its input x and the gradient g at its output, the gradients of all rows of a
micro-batch are one batched product ``gᵀx``, with as many operations as the ordinary weight gradient. So each
trainable layer's product is replaced by one that keeps them apart, and the ordinary weight gradient is never
computed: what autograd hands to DeepSpeed is exactly zero, and no raw gradient exists that could be stepped on.

A unit's gradient is a function of that unit's records and the current weights alone: every example has a row of its
own, padding lies to the right of a causal model's last token, and the loss is divided by the unit's own token count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ArgumentError
from harness.training.layout import Layout


@dataclass(frozen=True)
class Trainable:
    """One trainable weight matrix and where its coordinates lie in the flat gradient.

    Attributes:
        name: The parameter's name in the model; noise is addressed by it.
        module: The linear layer that owns it.
        shape: (out, in). Kept apart from the parameter, which is empty while ZeRO-3 has it partitioned.
        offset: Its first coordinate in the flat gradient.
    """

    name: str
    module: nn.Linear
    shape: tuple[int, int]
    offset: int

    @property
    def parameter(self) -> nn.Parameter:
        """The weight."""
        weight: nn.Parameter = self.module._parameters["weight"]  # type: ignore[assignment]
        return weight

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.shape[0] * self.shape[1]

    def view(self, flat: Tensor) -> Tensor:
        """Its part of a flat gradient of shape [..., total], as [..., out, in]."""
        part = flat[..., self.offset : self.offset + self.size]
        return part.view(*flat.shape[:-1], *self.shape)


def find_trainables(model: nn.Module) -> tuple[Trainable, ...]:
    """All trainable weights, in the order of the model's parameters.

    Must be called before DeepSpeed partitions the parameters.

    Raises:
        ArgumentError: A trainable parameter is not the weight of a plain linear layer, or two layers share one; then
            it could be neither clipped nor noised.
    """
    # Every use counts, not that in linear layers alone: an embedding that shares a weight would go unnoticed.
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(module)
    found: list[Trainable] = []
    offset = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, *others = owners[id(parameter)]
        plain = type(layer) is nn.Linear and layer.weight is parameter
        if others or not plain or parameter.dtype != torch.float32:
            raise ArgumentError(
                f"the trainable parameter {name} can't be trained privately: "
                "it must be the float32 weight of one linear layer"
            )
        out_features, in_features = parameter.shape
        assert isinstance(layer, nn.Linear)
        found.append(Trainable(name, layer, (out_features, in_features), offset))
        offset += parameter.numel()
    if not found:
        raise ArgumentError("the adapter has no trainable parameter: do model.adapter.targets name its layers?")
    return tuple(found)


class UnitGradients:
    """Collects, clips and sums the gradients of units. Everything in it is private.

    Use: `begin` a micro-batch, run its forward and backward, `finish` it; after the last one, read `total`.

    Attributes:
        total: Sum of the clipped gradients of all finished units, float32, shape [coordinates].
    """

    def __init__(self, trainables: Sequence[Trainable], device: torch.device) -> None:
        """Takes over the product of every trainable layer."""
        self.trainables = tuple(trainables)
        self.size = sum(t.size for t in self.trainables)
        self.device = device
        self.hand_zeros_to_optimizer = False
        self.total = torch.zeros(self.size, dtype=torch.float32, device=device)
        self._carried: Tensor | None = None
        self._units: Tensor | None = None
        self._layout: Layout | None = None
        for trainable in self.trainables:
            _take_over(trainable, self)

    def reset(self) -> None:
        """Forgets everything, for the next step."""
        self.total.zero_()
        self._carried = None

    def begin(self, layout: Layout) -> None:
        """Starts a micro-batch, whose tokens belong to units as `layout` says."""
        self._units = torch.zeros(layout.units, self.size, dtype=torch.float32, device=self.device)
        self._layout = layout

    def record(self, trainable: Trainable, inputs: Tensor, output_gradients: Tensor) -> None:
        """Adds one layer's share: inputs [rows, tokens, in], output gradients [rows, tokens, out], float32."""
        if self._units is None or self._layout is None:
            return
        trainable.view(self._units).add_(self._layout.products(output_gradients, inputs))

    def finish(self, clip_norms: Tensor, *, continues: bool) -> Tensor:
        """Clips every unit that is complete and adds it to `total`.

        Args:
            clip_norms: C of each unit of the micro-batch, float64, shape [units].
            continues: The last unit has more rows in the next micro-batch: it is kept open, unclipped.

        Returns:
            Gradient norms of the completed units before clipping, float64; private.
        """
        units, self._units = self._units, None
        assert units is not None, "begin comes before finish"
        if self._carried is not None:
            units[0] += self._carried
            self._carried = None
        if continues:
            self._carried = units[-1].clone()
            units, clip_norms = units[:-1], clip_norms[:-1]
        norms: Tensor = torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)
        # A non-finite unit contributes zero: it is a function of that user alone and may not touch the sum.
        finite = torch.isfinite(norms)
        factors = torch.where(finite, torch.clamp(clip_norms / norms.clamp_min(1e-30), max=1.0), 0.0)
        units = torch.where(finite.unsqueeze(1), units, torch.zeros((), device=self.device))
        self.total += factors.to(torch.float32) @ units
        return norms


class _UnitLinear(torch.autograd.Function):
    """``x Wᵀ`` whose weight gradient goes to a `UnitGradients`, per row, instead of to the weight."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, anchor: Tensor, trainable: Trainable, sink: UnitGradients
    ) -> Tensor:
        # save_for_backward (and not a closure) lets gradient checkpointing free the input.
        ctx.save_for_backward(inputs)
        ctx.trainable, ctx.sink = trainable, sink
        product: Tensor = functional.linear(inputs, trainable.parameter)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (inputs,) = ctx.saved_tensors
        (gradient,) = gradients
        ctx.sink.record(ctx.trainable, inputs, gradient)
        # Read now and not saved: ZeRO-3 gathers the weight again for the backward of its layer.
        weight = ctx.trainable.parameter
        nothing = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        return (gradient @ weight if ctx.needs_input_grad[0] else None), nothing, None, None, None


def _take_over(trainable: Trainable, sink: UnitGradients) -> None:
    module = trainable.module
    if module.bias is not None and module.bias.requires_grad:
        raise ArgumentError(f"{trainable.name}: a trainable bias is not supported")
    # Something must require a gradient, or a layer without trainable inputs has no backward to be recorded in.
    anchor = torch.zeros((), requires_grad=True)

    def forward(inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            plain: Tensor = functional.linear(inputs, module.weight, module.bias)
            return plain
        # DeepSpeed's hooks fire wherever the weight is in the graph, so it is there once per step.
        weight = module.weight if sink.hand_zeros_to_optimizer else None
        product: Tensor = _UnitLinear.apply(inputs, weight, anchor, trainable, sink)  # type: ignore[no-untyped-call]
        return product if module.bias is None else product + module.bias

    module.forward = forward  # type: ignore[method-assign, assignment]
