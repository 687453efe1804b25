"""Per-user gradients of a whole micro-batch in one forward and backward, clipped jointly per user.

A LoRA factor is a linear layer. From its input x and the gradient g at its output, the gradients of all rows of a
micro-batch are one batched product ``gᵀx``, with as many operations as the ordinary weight gradient. So each
trainable layer is replaced by one that keeps them apart (`kinds`), and the ordinary gradient of a parameter is never
computed: what autograd hands to DeepSpeed is exactly zero, and no raw gradient exists that could be stepped on.

A unit's gradient is a function of that unit's records and the current weights alone: padding lies to the right of a
causal model's last token, and the loss is divided by the unit's own token count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import ArgumentError
from harness.training.kinds import Held, kind_of, take_over
from harness.training.layout import Layout


@dataclass(frozen=True)
class Place:
    """Where a parameter is used.

    Attributes:
        module: The layer.
        attribute: The parameter's name in it: ``weight`` or ``bias``.
    """

    module: nn.Module
    attribute: str


@dataclass(frozen=True)
class Trainable:
    """One trainable parameter and where its coordinates lie in the flat gradient.

    Attributes:
        name: The parameter's name in the model; noise is addressed by it.
        module: The layer that owns it.
        shape: Kept apart from the parameter, which is empty while ZeRO-3 has it partitioned.
        offset: Its first coordinate in the flat gradient.
        attribute: Its name in the layer.
        tied: Where else it is used: the embeddings' in the output layer, for one.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    offset: int
    attribute: str = "weight"
    tied: tuple[Place, ...] = ()

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        parameter: nn.Parameter = self.module._parameters[self.attribute]  # type: ignore[assignment]
        return parameter

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """Its part of a flat gradient of shape [..., total], as [..., *shape]."""
        part = flat[..., self.offset : self.offset + self.size]
        return part.view(*flat.shape[:-1], *self.shape)


def find_trainables(model: nn.Module) -> tuple[Trainable, ...]:
    """All trainable parameters, in the order of the model's.

    Raises:
        ArgumentError: A trainable parameter is not float32, or belongs to a layer that `kinds` doesn't know; then it
            could be neither clipped nor noised.
    """
    # Every use counts, wherever it is: one in a layer of another kind would go unnoticed.
    uses: dict[int, list[Place]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            uses.setdefault(id(parameter), []).append(Place(module, attribute))
    found: list[Trainable] = []
    offset = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        places = tuple(uses[id(parameter)])
        for place in places:
            if place.attribute not in ("weight", "bias") or kind_of(place.module) is None:
                raise ArgumentError(
                    f"the trainable parameter {name} can't be trained privately: it is used by a "
                    f"{type(place.module).__name__}, and what can be are linear layers, norms and embeddings"
                )
        if parameter.dtype != torch.float32:
            raise ArgumentError(f"the trainable parameter {name} can't be trained privately: it must be float32")
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        trainable = Trainable(name, places[0].module, shape, offset, places[0].attribute, places[1:])
        found.append(trainable)
        offset += trainable.size
    if not found:
        raise ArgumentError("the adapter has no trainable parameter: do model.adapter.targets name its layers?")
    return tuple(found)


class UnitGradients:
    """Collects, clips and sums the gradients of units. Everything in it is private.

    Use: `begin` a micro-batch, run its forward and backward, `finish` it; after the last one, read `total`.

    Attributes:
        total: Sum of the clipped gradients of all finished units, float32, shape [coordinates].
    """

    def __init__(
        self, trainables: Sequence[Trainable], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Takes over every layer with a trainable parameter.

        Args:
            trainables: As `find_trainables` found them; DeepSpeed has not partitioned them yet.
            device: Where gradients are collected.
            dtype: What the model computes in.
        """
        self.trainables = tuple(trainables)
        self.size = sum(t.size for t in self.trainables)
        self.device = device
        self.hand_zeros_to_optimizer = False
        self.total = torch.zeros(self.size, dtype=torch.float32, device=device)
        self._carried: Tensor | None = None
        self._units: Tensor | None = None
        self._layout: Layout | None = None
        held: dict[nn.Module, dict[str, Trainable]] = {}
        for trainable in self.trainables:
            for place in (Place(trainable.module, trainable.attribute), *trainable.tied):
                held.setdefault(place.module, {})[place.attribute] = trainable
        for module, own in held.items():
            take_over(module, own, self, dtype)

    def reset(self) -> None:
        """Forgets everything, for the next step."""
        self.total.zero_()
        self._carried = None

    def begin(self, layout: Layout) -> None:
        """Starts a micro-batch, whose tokens belong to units as `layout` says."""
        self._units = torch.zeros(layout.units, self.size, dtype=torch.float32, device=self.device)
        self._layout = layout

    def open(self, held: Held) -> tuple[Layout, Tensor] | None:
        """Whose the micro-batch's tokens are, and a parameter's gradients so far, float32, shape [units, *shape].

        None outside of a micro-batch. Layers add to it in their backward.
        """
        if self._units is None or self._layout is None:
            return None
        return self._layout, held.view(self._units)

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
        return self.add(units, clip_norms)

    def add(self, units: Tensor, clip_norms: Tensor, where: slice = slice(None)) -> Tensor:
        """Clips whole units and adds them to `total`: the one place where a contribution is bounded.

        Args:
            units: Their gradients, float32, shape [units, coordinates].
            clip_norms: C of each, float64, shape [units].
            where: The coordinates that `units` holds, where their gradients are 0 in all others.

        Returns:
            Their norms before clipping, float64; private.
        """
        norms: Tensor = torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)
        # A non-finite unit contributes zero: it is a function of that user alone and may not touch the sum.
        finite = torch.isfinite(norms)
        factors = torch.where(finite, torch.clamp(clip_norms / norms.clamp_min(1e-30), max=1.0), 0.0)
        units = torch.where(finite.unsqueeze(1), units, torch.zeros((), device=self.device))
        self.total[where] += factors.to(torch.float32) @ units
        return norms
