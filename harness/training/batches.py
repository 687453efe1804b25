"""Rows of tokens → tensors, and a micro-batch's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


class Tokens(Protocol):
    """Random access to the tokens of examples, and to which of them are predicted."""

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """Tokens of one example."""
        ...

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """For each of these tokens, whether it is predicted; never the first."""
        ...


@dataclass(frozen=True)
class Rows:
    """Right-padded rows, one example each.

    A causal model's real tokens never see what lies to their right, so padding needs no mask and changes nothing.

    Attributes:
        inputs: Token ids [rows, width].
        targets: The next token of each place, or -100 where there is none, [rows, width].
    """

    inputs: Tensor
    targets: Tensor


def collate(corpus: Tokens, examples: Sequence[int], device: torch.device) -> Rows:
    """Reads examples into rows; padding repeats token 0."""
    rows = [np.asarray(corpus.tokens(e)).tolist() for e in examples]
    return pad(rows, device, [corpus.targets(e) for e in examples])


def pad(rows: Sequence[Sequence[int]], device: torch.device, masks: Sequence[NDArray[np.bool_]] | None = None) -> Rows:
    """Right-pads rows of token ids to the longest.

    Args:
        rows: Token ids.
        device: Where the tensors belong.
        masks: Per row, which of its tokens are predicted; None: all but the first.
    """
    width = max(len(r) for r in rows)
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), -100, dtype=torch.long)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = torch.tensor(row)
        targets[i, : len(row) - 1] = inputs[i, 1 : len(row)]
        if masks is not None:
            targets[i, : len(row) - 1][~torch.tensor(masks[i][1:], dtype=torch.bool)] = -100
    return Rows(inputs.to(device), targets.to(device))


def token_losses(model: Any, rows: Rows) -> Tensor:
    """Negative log-likelihood of every target in nats, float32; 0 where there is none; [rows, width]."""
    logits = model(input_ids=rows.inputs, use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), rows.targets.flatten(), ignore_index=-100, reduction="none"
    ).view_as(rows.targets)


def weighted_loss(rows: Rows, weights: Sequence[float]) -> Callable[[Any], Tensor]:
    """The loss of a micro-batch: each row's summed loss times its weight (1 / its unit's own number of targets)."""

    def loss_of(model: Any) -> Tensor:
        per_row = token_losses(model, rows).sum(dim=1)
        return per_row @ torch.tensor(weights, dtype=torch.float32, device=per_row.device)

    return loss_of
