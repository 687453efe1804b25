"""Before anything is trained, on made-up tokens: what `Ghost` makes of a model is what autograd makes of it.

A weight that is used in a way nobody thought of would be stepped on with a unit's whole gradient, but clipped by only
a part of its norm. So every weight's gradient and every unit's norm are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.errors import ArgumentError, UserError
from harness.training.batches import Rows, pad, token_losses
from harness.training.engine import Engine
from harness.training.ghost import Ghost, Parts
from harness.training.layout import Layout
from harness.training.ranks import own_ranks, tell

WIDTHS = (13, 18)
TOLERANCE = 1e-3
"""Of a weight's gradient; float32 rounds to about 1e-5 of it, and what is forgotten is not so small."""

_UNKNOWN_USE = "the model uses it in a way that is not known here; an adapter (type: lora) trains without it"


def verify(model: nn.Module, ghost: Ghost, device: torch.device) -> None:
    """Compares every weight's gradient, and the norms of two units; before DeepSpeed has the model, which is whole.

    Args:
        model: Whose layers `ghost` watches.
        ghost: To be compared with autograd.
        device: Where the model is.

    Raises:
        UserError: The loss is not finite.
        ArgumentError: A weight gets no gradient, or another one than `ghost` takes it to get.
    """
    parameters = [weight.parameter for weight in ghost.weights]
    for rows, layout, unit in _cases(model, device):
        gradients: Any = torch.autograd.grad(_losses(model, rows, layout)[unit], parameters, allow_unused=True)
        for weight, gradient in zip(ghost.weights, gradients, strict=True):
            if gradient is None:
                raise _refusal(weight.name, "the loss does not depend on it")
        mine, found = _ghosts(model, ghost, rows, layout, unit, slice(None))
        norms = torch.stack([_norm(gradient) for gradient in gradients])
        pairs = zip(ghost.weights, gradients, strict=True)
        differences = torch.stack([_norm(mine[weight.name] - gradient) for weight, gradient in pairs])
        _judge(ghost, norms, differences, found)


def verify_divided(engine: Engine, ghost: Ghost) -> None:
    """The same at ZeRO 3, where nobody has the model: with the gradients that DeepSpeed makes; collective.

    Each rank materialises what `ghost` makes of some weights, and compares one weight at a time. DeepSpeed is left as
    if nothing had been.

    Args:
        engine: The model, which `ghost` watches.
        ghost: To be compared.

    Raises:
        UserError: The loss is not finite.
        ArgumentError: A weight gets no gradient, or another one than `ghost` takes it to get; on every rank.
    """
    for rows, layout, unit in _cases(engine.module, engine.device):
        _compare_divided(engine, ghost, rows, layout, unit)


def _compare_divided(engine: Engine, ghost: Ghost, rows: Rows, layout: Layout, unit: int) -> None:
    ranks, device = own_ranks(), engine.device
    mine, found = _ghosts(engine.module, ghost, rows, layout, unit, slice(ranks.rank, None, ranks.world))
    engine.accumulate(functools.partial(_loss_of, rows, layout, unit), last=True)
    norms, differences = torch.zeros(2, len(ghost.weights), dtype=torch.float64, device=device)
    for place, weight in enumerate(ghost.weights):
        gradient = engine.gradient_of(weight)
        norms[place] = _norm(gradient)
        if weight.name in mine:
            differences[place] = _norm(mine[weight.name] - gradient)
    engine.forget_gradient()
    if ranks.world > 1:
        dist.all_reduce(differences)
    # All ranks have the same to judge by, to the last bit, or one would go on without the others.
    _judge(ghost, tell(norms, device), differences.cpu(), tell(found, device))


def _cases(model: nn.Module, device: torch.device) -> Iterator[tuple[Rows, Layout, int]]:
    for width in WIDTHS:
        # The first unit has two rows, which share tokens; the last tokens that there are occur too.
        layout = Layout.of_rows([0, 0, 1], device)
        rows = _made_up(model, width, device)
        for unit in range(layout.units):
            yield rows, layout, unit


def _made_up(model: nn.Module, width: int, device: torch.device) -> Rows:
    count: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    places = torch.arange(3 * width).view(3, width)
    ids = (count - 1 - (places * places + places // width) % (2 * width)) % count
    rows = pad(ids.tolist(), device)
    return dataclasses.replace(rows, positions=torch.arange(width, device=device).expand_as(rows.inputs))


def _losses(model: nn.Module, rows: Rows, layout: Layout) -> Tensor:
    return layout.sums(token_losses(model, rows).unsqueeze(-1)).squeeze(-1)


def _loss_of(rows: Rows, layout: Layout, unit: int, model: nn.Module) -> Tensor:
    return _losses(model, rows, layout)[unit]


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm


def _ghosts(
    model: nn.Module, ghost: Ghost, rows: Rows, layout: Layout, unit: int, share: slice
) -> tuple[Parts, Tensor]:
    """What `ghost` makes of a unit: its gradient in some weights, and its norm in all."""
    mine = ghost.zeros(rows.inputs.device, share)
    ghost.begin(layout, rows.inputs, {unit: mine})
    return mine, ghost.norms(_losses(model, rows, layout).sum(), keep=False)[unit]


def _judge(ghost: Ghost, norms: Tensor, differences: Tensor, found: Tensor) -> None:
    """By the norms of all weights' gradients, float64, [weights], how far `ghost` is off, and the norm it found."""
    total = float(torch.linalg.vector_norm(norms))
    if not math.isfinite(total):
        raise UserError("the base model's loss is not finite: it would never train")
    for weight, norm, difference in zip(ghost.weights, norms.tolist(), differences.tolist(), strict=True):
        # Where the comparison is not a number, it is not passed.
        if not difference <= TOLERANCE * norm + 1e-6 * total:
            raise _refusal(weight.name, _UNKNOWN_USE)
    if not abs(float(found) - total) <= TOLERANCE * total:
        raise ArgumentError("model.adapter.type: full can't train this model: its units' norms are not known here")


def _refusal(name: str, why: str) -> ArgumentError:
    return ArgumentError(f"model.adapter.type: full can't train {name}: {why}")
