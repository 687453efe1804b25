"""Which layers hold a model's weights, and what each kind does with them: what is not known is refused by name.

Where all parameters are trained, the norm of a unit's gradient is computed from what enters a layer and from the
gradient at its output. That is right only for layers whose formula is known, and only if no weight is used anywhere
else; `verifying` compares with autograd before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ArgumentError

Kind = Literal["linear", "embedding", "norm"]


@dataclass(frozen=True)
class Weight:
    """One trained parameter, and where its coordinates lie in a flat gradient.

    Attributes:
        name: Its name in the model; noise is addressed by it.
        parameter: Itself.
        shape: Kept apart from the parameter, which is empty while ZeRO-3 has it partitioned.
        offset: Its first coordinate in a flat gradient.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """Its part of a flat gradient of shape [..., total], as [..., *shape]."""
        return flat[..., self.offset : self.offset + self.size].view(*flat.shape[:-1], *self.shape)


@dataclass(frozen=True)
class Layer:
    """A layer with weights of its own.

    Attributes:
        name: Its name in the model.
        module: Itself.
        kind: What it does.
        weight: Of shape [out, in] (linear; transposed: [in, out]), [rows, width] (embedding) or [width] (norm).
        bias: Of shape [out] or [width], if there is one.
        transposed: Whether a linear layer's weight is [in, out], as in GPT-2.
        tied: Of an embedding: the linear layer that has the same weight, if there is one.
    """

    name: str
    module: nn.Module
    kind: Kind
    weight: Weight | None
    bias: Weight | None
    transposed: bool = False
    tied: str | None = None


def find_layers(model: nn.Module) -> tuple[tuple[Weight, ...], tuple[Layer, ...]]:
    """All trainable weights in the order of the model's parameters, and the layers that have them.

    Raises:
        ArgumentError: A weight is not float32, or its layer is of a kind whose units' norms are not known.
    """
    weights: dict[int, Weight] = {}
    offset = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32:
            raise ArgumentError(f"{name}: where all parameters are trained, they must be float32")
        weight = Weight(name, parameter, tuple(getattr(parameter, "ds_shape", parameter.shape)), offset)
        weights[id(parameter)] = weight
        offset += weight.size
    layers: list[Layer] = []
    for name, module in model.named_modules():
        held = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        own = {key: weights[id(p)] for key, p in held.items() if id(p) in weights}
        if not own:
            continue
        kind = _kind(module)
        if kind is None or set(held) - {"weight", "bias"}:
            raise ArgumentError(
                f"model.adapter.type: full can't train {name} ({type(module).__name__}): only linear layers, "
                "embeddings and normalisations are covered; an adapter (type: lora) trains without it"
            )
        transposed = kind == "linear" and not isinstance(module, nn.Linear)
        layers.append(Layer(name, module, kind, own.get("weight"), own.get("bias"), transposed))
    return tuple(weights.values()), tuple(_with_ties(layers))


def _kind(module: nn.Module) -> Kind | None:
    name = type(module).__name__
    if type(module) is nn.Linear or name == "Conv1D":
        return "linear"
    if isinstance(module, nn.Embedding):
        plain = not (module.sparse or module.scale_grad_by_freq or module.max_norm is not None)
        return "embedding" if plain and _lookup(module) is not None else None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or name.endswith("RMSNorm"):
        return "norm"
    return None


def _with_ties(layers: list[Layer]) -> list[Layer]:
    """Notes which embedding shares its weight with which linear layer; any other sharing is refused."""
    users: dict[str, list[Layer]] = {}
    for layer in layers:
        for weight in (layer.weight, layer.bias):
            if weight is not None:
                users.setdefault(weight.name, []).append(layer)
    tied: dict[str, str] = {}
    for name, sharing in users.items():
        if len(sharing) == 1:
            continue
        embeddings = [one for one in sharing if one.kind == "embedding"]
        heads = [one for one in sharing if one.kind == "linear" and not one.transposed]
        if len(sharing) != 2 or len(embeddings) != 1 or len(heads) != 1:
            shown = ", ".join(one.name for one in sharing)
            raise ArgumentError(
                f"model.adapter.type: full can't train {name}: {shown} share it; only an input and an output embedding "
                "may share a weight"
            )
        tied[embeddings[0].name] = heads[0].name
    return [Layer(**{**one.__dict__, "tied": tied.get(one.name)}) for one in layers]


# --- embeddings ---------------------------------------------------------------------------------------------

Lookup = Callable[[tuple[Any, ...], dict[str, Any]], Tensor]


def _lookup(module: nn.Embedding) -> Lookup | None:
    """How the rows that a call looks up follow from its arguments; None: unknown."""
    name = type(module).__name__
    if type(module).forward is nn.Embedding.forward or name.endswith("ScaledWordEmbedding"):
        return lambda inputs, named: inputs[0] if inputs else named["input_ids"]
    if name == "OPTLearnedPositionalEmbedding":
        return lambda inputs, named: named["position_ids"] + module.offset
    return None


def looked_up(layer: Layer, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The rows that a call of an embedding looked up, int64, as many as its output has."""
    assert isinstance(layer.module, nn.Embedding)
    find = _lookup(layer.module)
    assert find is not None
    return find(inputs, named)


def scale_of(layer: Layer) -> float:
    """What an embedding multiplies its rows by (Gemma)."""
    return float(getattr(layer.module, "scalar_embed_scale", 1.0))


# --- normalisations -----------------------------------------------------------------------------------------


def normalised(layer: Layer, inputs: Tensor) -> Tensor:
    """What a normalisation multiplies by its weight (or by one more than it), float32, the same shape."""
    module: Any = layer.module
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    inputs = inputs.float()
    width = inputs.shape[-1:]
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(inputs, width, eps=module.eps)
    return functional.rms_norm(inputs, width, eps=eps)
