"""The output layer computes losses, not logits: tokens × vocabulary numbers never exist at once.

Logits are the largest tensor of a training step by far, and nothing of them is wanted but a number per predicted
token. Where the output layer is a frozen plain linear layer and the model does nothing to logits after it, its
forward returns the losses instead: over the predicted tokens alone, a few at a time, with the gradient at the layer's
input computed in the same breath. Whether a model is of that kind is not read from its name: both ways are computed
on made-up tokens and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_BYTES = 32 << 20
"""What the logits of the tokens that are computed together may take, in float32."""
_LOSSES_OF = "_uudp_losses"
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
_HALF_TOLERANCE = 3e-2


class LossHead:
    """An output layer that can be asked for losses.

    Attributes:
        layer: The layer; frozen.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Takes over the layer's forward, which stays what it was until losses are asked for."""
        self.layer = layer
        self._asked: tuple[Tensor, Tensor] | None = None
        layer.forward = self._forward  # type: ignore[method-assign, assignment]
        setattr(layer, _LOSSES_OF, self)

    def remove(self) -> None:
        """Gives the layer its own forward back."""
        del self.layer.forward
        delattr(self.layer, _LOSSES_OF)

    @contextmanager
    def losses_of(self, targets: Tensor, predicted: Tensor) -> Iterator[None]:
        """While this lasts, the layer's output has losses for logits: float32, shape [rows, width, 1].

        Args:
            targets: The next token of each place, [rows, width].
            predicted: Which places of all (row by row) have a target, rising, int64; the others' losses are 0.
        """
        self._asked = (targets, predicted)
        try:
            yield
        finally:
            self._asked = None

    def _forward(self, inputs: Tensor) -> Tensor:
        if self._asked is None:
            return functional.linear(inputs, self.layer.weight, self.layer.bias)
        targets, predicted = self._asked
        if inputs.shape[:-1] != targets.shape:
            raise ValueError("the output layer sees other places than those with targets")
        losses: Tensor = _TargetLosses.apply(  # type: ignore[no-untyped-call]
            inputs.flatten(0, -2), self.layer.weight, self.layer.bias, targets.flatten(), predicted
        )
        return losses.view(*targets.shape, 1)


class _TargetLosses(torch.autograd.Function):
    """Inputs [places, in], of all places → losses [places]; 0 where nothing is predicted."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, predicted: Tensor
    ) -> Tensor:
        hidden, wanted = inputs[predicted], targets[predicted].unsqueeze(1)
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        losses = torch.empty(len(predicted), dtype=wide, device=inputs.device)
        # The weight is whole only in here where ZeRO-3 shards it, so the gradient can't wait for the backward pass.
        gradients = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK_BYTES // (4 * len(weight)))
        for first in range(0, len(predicted), size):
            part = slice(first, first + size)
            _chunk(
                hidden[part], weight, bias, wanted[part], losses[part], None if gradients is None else gradients[part]
            )
        ctx.places = inputs.shape[0]
        if gradients is not None:
            ctx.save_for_backward(gradients, predicted)
        return losses.new_zeros(inputs.shape[0]).index_copy_(0, predicted, losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *at_losses: Any) -> tuple[Tensor | None, None, None, None, None]:
        gradients, predicted = ctx.saved_tensors
        scaled = gradients * at_losses[0][predicted].unsqueeze(1).to(gradients.dtype)
        found = gradients.new_zeros(ctx.places, gradients.shape[1]).index_copy_(0, predicted, scaled)
        return found, None, None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, losses: Tensor, gradients: Tensor | None
) -> None:
    """Fills in the losses of some tokens [n], and their gradients [n, in]; one tensor of n × vocabulary lives."""
    logits = functional.linear(hidden, weight, bias).to(losses.dtype)
    logits.sub_(logits.amax(dim=1, keepdim=True))
    chosen = logits.gather(1, wanted)
    total = logits.exp_().sum(dim=1, keepdim=True)
    torch.sub(total.log(), chosen, out=losses.unsqueeze(1))
    if gradients is not None:
        errors = logits.div_(total).scatter_add_(1, wanted, total.new_full((), -1.0).expand_as(wanted))
        torch.mm(errors.to(weight.dtype), weight, out=gradients)


class _LogitLosses(torch.autograd.Function):
    """Logits [places, vocabulary] → losses [places]; 0 where the target is negative.

    `torch.nn.functional.cross_entropy`, with a tensor of that size less forward and one less backward.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        places = targets.clamp_min(0).unsqueeze(1)
        # Kept apart: of large logits, their sum would be known to an ulp of the largest alone.
        highest = logits.amax(1, keepdim=True)
        parts = zip(torch.split(logits, size := _rows_of_a_chunk(logits)), torch.split(highest, size), strict=True)
        totals = torch.cat([(part - most).exp_().sum(1, keepdim=True).log_() for part, most in parts])
        losses = totals - (logits.gather(1, places) - highest)
        ctx.save_for_backward(logits, highest, totals, targets)
        return losses.squeeze(1).masked_fill_(targets < 0, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *at_losses: Any) -> tuple[Tensor, None]:
        logits, highest, totals, targets = ctx.saved_tensors
        scales = at_losses[0].masked_fill(targets < 0, 0.0).unsqueeze(1)
        gradients = torch.empty_like(logits)
        size = _rows_of_a_chunk(logits)
        for first in range(0, len(logits), size):
            part = slice(first, first + size)
            torch.sub(logits[part], highest[part], out=gradients[part])
            gradients[part].sub_(totals[part]).exp_().mul_(scales[part])
        gradients.scatter_add_(1, targets.clamp_min(0).unsqueeze(1), -scales)
        return gradients, None


def _rows_of_a_chunk(logits: Tensor) -> int:
    return max(1, CHUNK_BYTES // (8 * logits.shape[1]))


def losses_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihoods in nats: logits [places, vocabulary], targets [places], negative for none → [places]."""
    losses: Tensor = _LogitLosses.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses


def loss_head(model: Any) -> LossHead | None:
    """The model's output layer, if it can be asked for losses."""
    inner = getattr(model, "module", model)  # out of DeepSpeed's engine
    find = getattr(inner, "get_output_embeddings", None)
    return None if find is None else getattr(find(), _LOSSES_OF, None)


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output layer, if it is a frozen linear layer that nobody has changed. Before DeepSpeed has the model."""
    find: Any = getattr(model, "get_output_embeddings", None)
    layer: Any = None if find is None else find()
    frozen = type(layer) is nn.Linear and not any(p.requires_grad for p in layer.parameters())
    if not frozen or "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    assert isinstance(layer, nn.Linear)
    return layer


def install_loss_head(model: nn.Module, layer: nn.Linear | None, device: torch.device) -> bool:
    """Lets the model's output layer be asked for losses, if that gives what logits give; collective at ZeRO 3.

    Args:
        model: With its adapter; DeepSpeed may have it already.
        layer: As `plain_head` found it.
        device: Where it is.

    Returns:
        Whether it can; if not, the model is as it was.
    """
    if layer is None:
        return False
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        expected = _probe(model, device, None)
        head = LossHead(layer)
        try:
            same = _agree(expected, _probe(model, device, head), layer.weight.dtype)
        except (RuntimeError, ValueError, IndexError, TypeError):
            # What is done to logits can't be done to losses.
            same = False
        if not same:
            head.remove()
        return same
    finally:
        for module in training:
            module.training = True


@torch.enable_grad()
def _probe(model: Any, device: torch.device, head: LossHead | None) -> tuple[Tensor, Tensor] | None:
    """Losses of made-up tokens, and the gradient of a weighted sum of them at the input embeddings.

    None: what the model gives as logits is not, bit for bit, what its output layer gave.
    """
    embeddings, places = model.get_input_embeddings(), torch.arange(32, device=device)
    count = model.get_output_embeddings().out_features
    inputs = (places * 7 + 3).view(2, 16) % count
    targets = torch.where(places.view(2, 16) % 3 > 0, inputs.roll(-1, 1), -100)
    predicted = (targets.flatten() >= 0).nonzero().squeeze(1)
    seen: dict[Any, Tensor] = {}

    def cut(module: Any, args: Any, output: Tensor) -> Tensor:
        return seen.setdefault("embedded", output.detach().requires_grad_())

    def note(module: Any, args: Any, output: Tensor) -> None:
        seen["logits"] = output

    handles = [embeddings.register_forward_hook(cut)]
    if head is not None:
        handles.append(head.layer.register_forward_hook(note))
    try:
        if head is None:
            logits = model(input_ids=inputs, use_cache=False).logits
            losses = functional.cross_entropy(
                logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
                targets.flatten(),
                ignore_index=-100,
                reduction="none",
            )
        else:
            with head.losses_of(targets, predicted):
                found = model(input_ids=inputs, use_cache=False).logits
            given = seen["logits"]
            if found.shape != given.shape or found.dtype != given.dtype or not torch.equal(found, given):
                return None
            losses = found.flatten()
    finally:
        for handle in handles:
            handle.remove()
    weights = torch.linspace(0.5, 1.5, len(losses), device=device, dtype=losses.dtype)
    (gradient,) = torch.autograd.grad(losses @ weights, seen["embedded"])
    return losses.detach(), gradient


def _agree(expected: tuple[Tensor, Tensor] | None, found: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> bool:
    if expected is None or found is None:
        return False
    tolerance = _TOLERANCES.get(dtype, _HALF_TOLERANCE)
    return all(
        bool(torch.isfinite(b).all()) and float((a - b).double().norm()) <= tolerance * float(a.double().norm())
        for a, b in zip(expected, found, strict=True)
    )
