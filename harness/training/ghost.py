"""Norms of units' gradients over all parameters, without the gradients.

The gradient of a linear layer's weight for one unit is ``Σ_t g_t ⊗ x_t`` over the unit's tokens, so its squared norm
is ``Σ_{s,t} (g_s·g_t)(x_s·x_t)``: two small Gram matrices ("ghost norms"; Li et al., 2022, https://arxiv.org/abs/
2110.05679, and Bu et al., 2022, https://arxiv.org/abs/2210.00038). Where a unit has many tokens the product itself is
cheaper; then it lives for one layer and a few units at a time. Everything in here is private.

A norm may be found too large, but never too small: where the tokens' parts cancel each other, float32 knows their sum
to a fraction of the parts and not of itself. So what rounding may take from a norm is added to it: of a sum of n
products at most 2 √n of their size (n of it would be certain, and never comes near; Higham & Mary, 2019,
https://doi.org/10.1137/18M1226312).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ArgumentError
from harness.training.layers import Layer, Weight, find_layers, looked_up, normalised, scale_of
from harness.training.layout import Layout

_ROUNDING = 2.0**-24
"""Of float32."""
MOST_PRODUCTS = 1 << 25
"""Elements of per-unit products that live at a time, if a single unit's has no more (128 MiB)."""
Parts = Mapping[str, Tensor]
"""One unit's gradient, float32, by the weights' names and in their shapes; maybe of some weights alone."""
_ALL = slice(None)


@dataclass(frozen=True)
class _Bucket:
    """Units with about as many tokens, side by side.

    Attributes:
        slots: Their places in the micro-batch, [units].
        places: Places of their tokens among all, [units, longest]; None: the micro-batch as it lies.
        real: Which of `places` are tokens, [units, longest].
        longest: Tokens of the longest.
    """

    slots: Tensor
    places: Tensor | None
    real: Tensor | None
    longest: int

    def take(self, flat: Tensor, *, mask: bool) -> Tensor:
        """[tokens, n] → [units, longest, n]; with `mask`, what only fills up is zero."""
        if self.places is None or self.real is None:
            return flat.view(len(self.slots), self.longest, -1)
        found = flat[self.places]
        return found.masked_fill(~self.real.unsqueeze(-1), 0.0) if mask else found


def _buckets(layout: Layout, rows: int, width: int) -> tuple[list[_Bucket], list[Tensor]]:
    """The buckets, and per unit the places of its tokens."""
    device = layout.owners.device
    owners = layout.owners.tolist()
    if layout.places is None or layout.real is None:
        every = torch.arange(rows * width).view(rows, width)
        by_example = list(every)
    else:
        by_example = [p[r] for p, r in zip(layout.places.cpu(), layout.real.cpu(), strict=True)]
    of_units: list[list[Tensor]] = [[] for _ in range(layout.units)]
    for owner, places in zip(owners, by_example, strict=True):
        of_units[owner].append(places)
    whole = [torch.cat(parts) for parts in of_units]
    if layout.places is None and layout.one_each:
        bucket = _Bucket(torch.arange(layout.units, device=device), None, None, width)
        return [bucket], [p.to(device) for p in whole]
    by_size: dict[int, list[int]] = {}
    for slot, places in enumerate(whole):
        by_size.setdefault((len(places) - 1).bit_length(), []).append(slot)
    found = []
    for slots in by_size.values():
        longest = max(len(whole[s]) for s in slots)
        places = torch.zeros(len(slots), longest, dtype=torch.int64)
        real = torch.zeros(len(slots), longest, dtype=torch.bool)
        for i, slot in enumerate(slots):
            # Filled up with a token of its own: another unit's may not be finite, and zero times that is not zero.
            places[i] = whole[slot][0]
            places[i, : len(whole[slot])] = whole[slot]
            real[i, : len(whole[slot])] = True
        found.append(_Bucket(torch.tensor(slots, device=device), places.to(device), real.to(device), longest))
    return found, [p.to(device) for p in whole]


class _Tap(torch.autograd.Function):
    """Lets a layer's output through, and its gradient too, which it shows to a `Ghost` beside the layer's input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, layer: Layer, ghost: Ghost) -> Tensor:
        # Saved, and not held by a closure: gradient checkpointing can forget and compute it again.
        ctx.save_for_backward(inputs)
        ctx.layer, ctx.ghost = layer, ghost
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None]:
        if ctx.ghost.listening:
            ctx.ghost.record(ctx.layer, *ctx.saved_tensors, gradients[0])
        return gradients[0], None, None, None


class Ghost:
    """Computes the units' norms of one micro-batch while its loss goes backward to the embeddings.

    Use: `begin`, a forward pass, `norms` of its loss. Without `begin`, the model is as ever.

    Attributes:
        weights: All trained parameters.
        errors: What rounding may have made of the gradients behind the last `norms`, float64, [units]; private.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watches the layers of a model.

        Raises:
            ArgumentError: A trainable weight is in a layer of a kind that is not covered.
        """
        self.weights, self.layers = find_layers(model)
        self.listening = False
        self._watching = False
        self._axes: dict[str, int] = {}
        self._heads = {layer.tied for layer in self.layers if layer.tied}
        for layer in self.layers:
            watch = self._watch_embedding if layer.kind == "embedding" else self._watch_layer
            layer.module.register_forward_hook(_for(watch, layer), with_kwargs=True)

    def zeros(self, device: torch.device, share: slice = _ALL) -> Parts:
        """Room for one unit's gradient, or for that of some weights."""
        return {weight.name: torch.zeros(weight.shape, device=device) for weight in self.weights[share]}

    def begin(self, layout: Layout, ids: Tensor, whole: Mapping[int, Parts] | None = None) -> None:
        """Starts a micro-batch.

        Args:
            layout: Whose its tokens are.
            ids: Its tokens, [rows, width].
            whole: Units whose gradients are materialised, by their places in the micro-batch; what this micro-batch
                has of them is added. Of a unit that is not in it alone the norm found is of no use then.
        """
        self._rows, self._width = ids.shape
        self._units, self._whole = layout.units, dict(whole or {})
        self._layout, self._ids = layout, ids.reshape(-1)
        self._buckets, self._places = _buckets(layout, self._rows, self._width)
        self._owners = torch.zeros(ids.numel(), dtype=torch.int64, device=ids.device)
        self._nobodys = torch.ones(ids.numel(), dtype=torch.bool, device=ids.device)
        for slot, places in enumerate(self._places):
            self._owners[places] = slot
            self._nobodys[places] = False
        self._squares = torch.zeros(layout.units, dtype=torch.float64, device=ids.device)
        self._errors = torch.zeros_like(self._squares)
        self._outputs: list[tuple[Layer, Tensor, Tensor]] = []
        self._kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._seen: set[str] = set()
        self._watching = True

    def norms(self, loss: Tensor, *, keep: bool) -> Tensor:
        """The units' gradient norms, of the sum of their losses.

        Args:
            loss: Their sum.
            keep: Whether the graph is used once more.

        Returns:
            Float64, [units]; private.
        """
        self.listening = True
        try:
            outputs = [output for _, _, output in self._outputs]
            gradients = torch.autograd.grad(loss, outputs, retain_graph=keep)
        finally:
            self.listening = self._watching = False
        for (layer, ids, _), gradient in zip(self._outputs, gradients, strict=True):
            self._embedding(layer, ids.reshape(-1), gradient.reshape(len(self._ids), -1).float() * scale_of(layer))
        missed = [layer.name for layer in self.layers if layer.name not in self._seen]
        if missed:
            raise ArgumentError(f"model.adapter.type: full can't train {missed[0]}: the loss does not depend on it")
        self._outputs, self._kept, self._whole = [], {}, {}
        # Parts are of different coordinates, and so are their errors.
        self.errors = self._errors.sqrt()
        return self._squares.clamp_min(0.0).sqrt() + self.errors

    # --- watching -------------------------------------------------------------------------------------------

    def _watch_layer(self, layer: Layer, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if not (self._watching and torch.is_grad_enabled()):
            return output
        (given,) = inputs or tuple(named.values())
        return _Tap.apply(output, given.detach(), layer, self)  # type: ignore[no-any-return,no-untyped-call]

    def _watch_embedding(self, layer: Layer, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if self._watching and torch.is_grad_enabled():
            ids = looked_up(layer, inputs, named)
            if ids.numel() != len(self._ids):
                raise ArgumentError(f"model.adapter.type: full can't train {layer.name}: its rows are not per token")
            self._outputs.append((layer, ids, output))
        return output

    def record(self, layer: Layer, inputs: Tensor, gradient: Tensor) -> None:
        """One layer's share, from its input and the gradient at its output."""
        if layer.name in self._seen:
            raise ArgumentError(f"model.adapter.type: full can't train {layer.name}: it is used more than once")
        self._seen.add(layer.name)
        if layer.kind == "linear":
            flat = len(self._ids)
            self._linear(layer, inputs.reshape(flat, -1).float(), gradient.reshape(flat, -1).float())
        else:
            self._norm(layer, normalised(layer, inputs) * gradient.float(), gradient.float())

    # --- linear layers --------------------------------------------------------------------------------------

    def _linear(self, layer: Layer, inputs: Tensor, gradients: Tensor) -> None:
        tied = layer.name in self._heads
        for bucket in self._buckets:
            g, x = bucket.take(gradients, mask=True), bucket.take(inputs, mask=False)
            at_outputs = _sizes(g)
            if layer.weight is not None:
                sizes = at_outputs * _sizes(x)
                self._add(bucket.slots, _squared_norms(g, x, sizes))
                self._add_error(bucket, sizes)
            if layer.bias is not None:
                self._add(bucket.slots, g.sum(1).square().sum(1, dtype=torch.float64))
                self._add_error(bucket, at_outputs)
            if tied:
                ids = bucket.take(self._ids.unsqueeze(-1), mask=False).squeeze(-1)
                # At [s, t]: the head's gradient at s, in the row of the token at t.
                at_tokens = torch.gather(g, 2, ids.unsqueeze(1).expand(-1, bucket.longest, -1))
                self._kept.setdefault(layer.name, []).append((at_tokens, x))
        for slot, part in self._materialised(layer.weight):
            g, x = gradients[self._places[slot]], inputs[self._places[slot]]
            part.add_(x.T @ g if layer.transposed else g.T @ x)
        for slot, part in self._materialised(layer.bias):
            part.add_(gradients[self._places[slot]].sum(0))

    # --- embeddings -----------------------------------------------------------------------------------------

    def _embedding(self, layer: Layer, ids: Tensor, gradients: Tensor) -> None:
        assert layer.weight is not None
        self._seen.add(layer.name)
        rows = layer.weight.shape[0]
        ignored = self._nobodys
        padding = getattr(layer.module, "padding_idx", None)
        if padding is not None:  # torch gives this row no gradient
            ignored = ignored | (ids == padding)
        gradients = gradients.masked_fill(ignored.unsqueeze(-1), 0.0)
        found, where = torch.unique(self._owners * rows + ids, return_inverse=True)
        sums = gradients.new_zeros(len(found), gradients.shape[1]).index_add_(0, where, gradients)
        self._add(torch.div(found, rows, rounding_mode="floor"), sums.square().sum(1, dtype=torch.float64))
        for bucket in self._buckets:
            self._add_error(bucket, _sizes(bucket.take(gradients, mask=True)))
        if layer.tied:
            for bucket, (at_tokens, x) in zip(self._buckets, self._kept[layer.tied], strict=True):
                e = bucket.take(gradients, mask=True)
                self._add(bucket.slots, 2 * _shared(at_tokens, x, e))
        for slot, part in self._materialised(layer.weight):
            places = self._places[slot]
            part.index_add_(0, ids[places], gradients[places])

    # --- normalisations -------------------------------------------------------------------------------------

    def _norm(self, layer: Layer, products: Tensor, gradients: Tensor) -> None:
        for weight, values in ((layer.weight, products), (layer.bias, gradients)):
            if weight is None:
                continue
            by_token = self._by_token(layer, values)
            sums = self._layout.sums(by_token)
            self._add(torch.arange(self._units, device=sums.device), sums.square().sum(1, dtype=torch.float64))
            flat = by_token.reshape(len(self._ids), -1)
            for bucket in self._buckets:
                self._add_error(bucket, _sizes(bucket.take(flat, mask=True)))
            for slot, part in self._materialised(weight):
                part.add_(sums[slot])

    def _by_token(self, layer: Layer, values: Tensor) -> Tensor:
        """[rows, tokens, n]; of attention heads that are normalised, the sum over heads."""
        if values.dim() == 4:
            fitting = [axis for axis in (1, 2) if values.shape[axis] == self._width]
            if len(fitting) == 1:
                self._axes[layer.name] = fitting[0]
            if layer.name not in self._axes:
                raise RuntimeError(f"{layer.name}: tokens and heads can't be told apart")
            return values.sum(3 - self._axes[layer.name])
        return values.reshape(self._rows, self._width, -1)

    def _materialised(self, weight: Weight | None) -> Iterator[tuple[int, Tensor]]:
        """Where a weight's gradient of a unit goes, with the unit's place."""
        for slot, parts in self._whole.items():
            if weight is not None and weight.name in parts:
                yield slot, parts[weight.name]

    def _add(self, slots: Tensor, squares: Tensor) -> None:
        self._squares.index_add_(0, slots, squares)

    def _add_error(self, bucket: _Bucket, sizes: Tensor) -> None:
        """What rounding may make of a sum over tokens, here or in the second pass, by their sizes [units, tokens]."""
        # By the unit's own tokens: how many fill it up depends on others.
        error = 2 * (sizes > 0).sum(1).sqrt() * _ROUNDING * sizes.sum(1)
        self._errors.index_add_(0, bucket.slots, error.square())


def norm_of(parts: Parts) -> Tensor:
    """The norm of a whole gradient: float64, []."""
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts.values()]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def _for(watch: Callable[..., Tensor], layer: Layer) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        return watch(layer, inputs, named, output)

    return hook


def _grams_are_cheaper(tokens: int, outs: int, ins: int) -> bool:
    """Multiplications of a unit's two Gram matrices against those of its product."""
    return tokens * (outs + ins) <= outs * ins


def _sizes(vectors: Tensor) -> Tensor:
    """Of tokens, or a little more: [units, tokens, n] → [units, tokens], float64.

    Float32 within a vector, since a copy of all in float64 would take longer than a layer's own products. It is summed
    up in lanes, and where all elements are equal each lane rounds the same way: by n / 64 in all on a CPU.
    """
    sizes: Tensor = torch.linalg.vector_norm(vectors, dim=2)
    count = vectors.shape[2]
    return sizes.double() * (1 + max(2 * math.sqrt(count), count / 16) * _ROUNDING)


def _squared_norms(gradients: Tensor, inputs: Tensor, sizes: Tensor) -> Tensor:
    """Per unit ``‖Σ_t g_t ⊗ x_t‖²``, or a little more: [units, tokens, out], [units, tokens, in] → [units], float64.

    Args:
        gradients: g.
        inputs: x.
        sizes: ``‖g_t‖ ‖x_t‖``, [units, tokens].
    """
    _, tokens, outs = gradients.shape
    ins = inputs.shape[2]
    if _grams_are_cheaper(tokens, outs, ins):
        grams = torch.bmm(gradients, gradients.transpose(1, 2)), torch.bmm(inputs, inputs.transpose(1, 2))
        slack = 2 * (math.sqrt(outs) + math.sqrt(ins)) * _ROUNDING * sizes.sum(1).square()
        return (grams[0] * grams[1]).sum((1, 2), dtype=torch.float64) + slack
    at_a_time = max(1, MOST_PRODUCTS // (outs * ins))
    found = [
        _sizes(torch.bmm(g.transpose(1, 2), x)).square().sum(1)
        for g, x in zip(torch.split(gradients, at_a_time), torch.split(inputs, at_a_time), strict=True)
    ]
    return torch.cat(found)


def _shared(at_tokens: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Per unit, the product of a tied weight's two gradients, or a little more: [units], float64.

    Args:
        at_tokens: The output layer's gradient at token s, in the row of token t, [units, tokens, tokens].
        inputs: Of the output layer, [units, tokens, n].
        gradients: At what the embedding looked up, [units, tokens, n].
    """
    both = at_tokens * torch.bmm(inputs, gradients.transpose(1, 2))
    size = torch.bmm(at_tokens.abs(), _sizes(gradients).float().unsqueeze(-1)).squeeze(-1) * _sizes(inputs)
    slack = 2 * math.sqrt(inputs.shape[2]) * _ROUNDING * size.sum(1)
    return both.sum((1, 2), dtype=torch.float64) + slack
