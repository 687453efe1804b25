"""Tiny models to be attacked: with adapters as the training makes them, and trained on a few texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.spec.adapter_block import AdapterBlock
from harness.training.adapters import add_adapter
from harness.training.batches import pad, token_losses
from harness.training.whole_model import prepare
from tests.families import make_model

CPU = torch.device("cpu")


def adapted(family: str = "llama", changes: dict[str, Any] | None = None, **block: Any) -> Any:
    """A model with an adapter."""
    model = make_model(family, **(changes or {}))
    torch.manual_seed(1)
    kind = AdapterBlock.model_validate(block)
    return prepare(model) if kind.type == "full" else add_adapter(model, kind).eval()


def train(model: Any, texts: Sequence[Sequence[int]], steps: int = 100, lr: float = 2e-2) -> Any:
    """Learns texts by heart, without any privacy."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    rows = pad(texts, CPU)
    for _ in range(steps):
        loss = token_losses(model, rows).sum() / len(rows.predicted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
