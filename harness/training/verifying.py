"""Before anything is trained, on made-up tokens: what `Ghost` makes of a model is what autograd makes of it.

A weight that is used in a way nobody thought of would be stepped on with a unit's whole gradient, but clipped by only
a part of its norm. So every weight's gradient and every unit's norm are compared.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ArgumentError, UserError
from harness.training.batches import Rows, pad, token_losses
from harness.training.ghost import Ghost
from harness.training.layout import Layout

WIDTHS = (13, 18)
TOLERANCE = 1e-3
"""Of a weight's gradient; float32 rounds to about 1e-5 of it, and what is forgotten is not so small."""


def verify(model: nn.Module, ghost: Ghost, device: torch.device) -> None:
    """Compares every weight's gradient, and the norms of two units; before DeepSpeed has the model.

    Args:
        model: Whose layers `ghost` watches.
        ghost: To be compared with autograd.
        device: Where the model is.

    Raises:
        UserError: The loss is not finite.
        ArgumentError: A weight gets no gradient, or another one than `ghost` takes it to get.
    """
    for width in WIDTHS:
        # The first unit has two rows, which share tokens; the last tokens that there are occur too.
        layout = Layout.of_rows([0, 0, 1], device)
        rows = _made_up(model, width, device)
        for unit in range(layout.units):
            _compare(model, ghost, rows, layout, unit)


def _made_up(model: nn.Module, width: int, device: torch.device) -> Rows:
    count: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    places = torch.arange(3 * width).view(3, width)
    ids = (count - 1 - (places * places + places // width) % (2 * width)) % count
    rows = pad(ids.tolist(), device)
    return dataclasses.replace(rows, positions=torch.arange(width, device=device).expand_as(rows.inputs))


def _compare(model: nn.Module, ghost: Ghost, rows: Rows, layout: Layout, unit: int) -> None:
    def losses() -> Tensor:
        return layout.sums(token_losses(model, rows).unsqueeze(-1)).squeeze(-1)

    parameters = [weight.parameter for weight in ghost.weights]
    gradients: Any = torch.autograd.grad(losses()[unit], parameters, allow_unused=True)
    for weight, gradient in zip(ghost.weights, gradients, strict=True):
        if gradient is None:
            raise ArgumentError(f"model.adapter.type: full can't train {weight.name}: the loss does not depend on it")
    norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients])
    total = float(torch.linalg.vector_norm(norms))
    if not torch.isfinite(norms).all():
        raise UserError("the base model's loss is not finite: it would never train")
    mine = torch.zeros(ghost.size, device=rows.inputs.device)
    ghost.begin(layout, rows.inputs, {unit: mine})
    found = ghost.norms(losses().sum(), keep=False)
    for weight, gradient, norm in zip(ghost.weights, gradients, norms.tolist(), strict=True):
        difference = float(torch.linalg.vector_norm(weight.view(mine) - gradient, dtype=torch.float64))
        if difference > TOLERANCE * norm + 1e-6 * total:
            raise ArgumentError(
                f"model.adapter.type: full can't train {weight.name}: the model uses it in a way that is not known "
                "here; an adapter (type: lora) trains without it"
            )
    if abs(float(found[unit]) - total) > TOLERANCE * total:
        raise ArgumentError("model.adapter.type: full can't train this model: its units' norms are not known here")
