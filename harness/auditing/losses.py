"""Losses of texts under the trained model and under its base: what most attacks compare.

The attacker's numbers, not the training's: rows of token ids in, sums of nats out. Of real users' texts they are
private.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import ArgumentError
from harness.training.batches import pad, token_losses


def budget_of(device: torch.device) -> int:
    """Tokens of a micro-batch: on a CPU larger ones take as long for each token, and memory for their logits."""
    return 1024 if device.type == "cpu" else 4096


@dataclass(frozen=True)
class Losses:
    """Of rows of tokens, in their order.

    Attributes:
        nats: Summed negative log-likelihood of each row's predicted tokens, float64, shape [rows].
        tokens: Their number: all of the row but its first, shape [rows].
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]


def example_losses(model: Any, rows: Sequence[Sequence[int]], device: torch.device, budget: int) -> Losses:
    """The loss of each row, computed in micro-batches of rows of about the same length.

    Dropout is off meanwhile; the model computes in its own dtype, the loss in float32.

    Args:
        model: A causal language model.
        rows: Token ids; a row of fewer than two has nothing that is predicted, and a loss of 0.
        device: Where the model is.
        budget: Tokens of a micro-batch, padding included; a longer row is computed alone.
    """
    nats = np.zeros(len(rows))
    tokens = np.array([max(0, len(r) - 1) for r in rows], dtype=np.int64)
    order = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: -len(rows[i]))
    with torch.inference_mode(), still(model):
        for batch in micro_batches(order, rows, budget):
            losses = token_losses(model, pad([rows[i] for i in batch], device)).double().sum(dim=1)
            nats[batch] = losses.cpu().numpy()
    return Losses(nats, tokens)


def both_losses(
    model: Any, rows: Sequence[Sequence[int]], device: torch.device, budget: int, base: Any = None
) -> tuple[Losses, Losses]:
    """The losses under the trained model and under its base.

    Args:
        model: What was trained. With an adapter, it is its own base when the adapter is off: both share memory.
        rows: Token ids.
        device: Where the models are.
        budget: Tokens of a micro-batch.
        base: The base model, where all of a model was trained; None: `model` has an adapter.

    Raises:
        ArgumentError: There is no base, and `model` can't be made one (`adapter_off`).
    """
    tuned = example_losses(model, rows, device, budget)
    with base_of(model, base) as other:
        return tuned, example_losses(other, rows, device, budget)


def log_ratios(tuned: Losses, base: Losses) -> NDArray[np.float64]:
    """The score of a text canary, log p_tuned − log p_base of each row, nats, shape [rows]; higher: rather in."""
    return base.nats - tuned.nats


@contextmanager
def base_of(model: Any, base: Any = None) -> Iterator[Any]:
    """The base of a trained model while this lasts: the one that is given, or the model with its adapter off.

    Raises:
        ArgumentError: None is given and the model has no adapter that can be switched off whole: PEFT leaves trained
            biases in place.
    """
    if base is not None:
        yield base
        return
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise ArgumentError("a model without an adapter needs its base model to be compared with")
    if any(getattr(config, "bias", "none") != "none" for config in configs.values()):
        raise ArgumentError("a model whose biases were trained needs its base model to be compared with")
    with model.disable_adapter():
        yield model


@contextmanager
def still(model: Any) -> Iterator[None]:
    """While this lasts, the model is in evaluation mode."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def micro_batches(order: Sequence[int], rows: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Cuts rows, given by their places, the longest first, into micro-batches of `budget` tokens, padding included."""
    batch: list[int] = []
    for i in order:
        if batch and len(rows[batch[0]]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
