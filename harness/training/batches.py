"""Rows of tokens → tensors, and a micro-batch's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.training.head import loss_head, losses_of_logits
from harness.training.layout import Layout, to_device


class Tokens(Protocol):
    """Random access to the tokens of examples, and to which of them are predicted."""

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read examples that will be asked for soon."""
        ...

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """Tokens of one example."""
        ...

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """For each of these tokens, whether it is predicted; never the first."""
        ...


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of one example each, or of several behind each other.

    A causal model's real tokens never see what lies to their right, so padding needs no mask and changes nothing.

    Attributes:
        inputs: Token ids [rows, width].
        targets: The next token of each place, or -100 where there is none, [rows, width].
        predicted: The places of all (row by row) that have a target, rising, int64.
        positions: Of rows with several examples, each token's place in its own example, [rows, width]; padding counts
            as an example of its own. None: a row per example.
    """

    inputs: Tensor
    targets: Tensor
    predicted: Tensor
    positions: Tensor | None = None


class _Parts(Protocol):
    """What is read of a micro-batch: which examples, of which units, in which rows."""

    @property
    def examples(self) -> Sequence[int]: ...

    @property
    def slots(self) -> Sequence[int]: ...

    @property
    def lines(self) -> Sequence[int]: ...

    @property
    def packed(self) -> bool: ...


def collate(corpus: Tokens, examples: Sequence[int], device: torch.device) -> Rows:
    """Reads examples into rows, one each; padding repeats token 0."""
    return _filled(corpus, examples, range(len(examples)), device, packed=False)[0]


def collate_units(corpus: Tokens, batch: _Parts, device: torch.device) -> tuple[Rows, Layout]:
    """Reads a micro-batch: its rows, and whose their tokens are."""
    rows, begins, lengths = _filled(corpus, batch.examples, batch.lines, device, packed=batch.packed)
    if batch.packed:
        return rows, Layout.packed(batch.slots, begins, lengths, device)
    return rows, Layout.of_rows(batch.slots, device)


def _filled(
    corpus: Tokens, examples: Sequence[int], lines: Sequence[int], device: torch.device, *, packed: bool
) -> tuple[Rows, list[int], list[int]]:
    """The rows; and for each example, the place of its first token (row by row) and its length."""
    corpus.fetch(examples)
    read = [(np.asarray(corpus.tokens(e)), np.asarray(corpus.targets(e))) for e in examples]
    lengths = [len(tokens) for tokens, _ in read]
    ends = [0] * (max(lines) + 1)
    firsts = []
    for line, length in zip(lines, lengths, strict=True):
        firsts.append(ends[line])
        ends[line] += length
    width = max(ends)
    inputs = np.zeros((len(ends), width), dtype=np.int64)
    targets = np.full((len(ends), width), -100, dtype=np.int64)
    positions = np.zeros((len(ends), width), dtype=np.int64)
    for line, end in enumerate(ends):
        positions[line, end:] = np.arange(width - end)
    for (tokens, predicted), line, first, length in zip(read, lines, firsts, lengths, strict=True):
        inputs[line, first : first + length] = tokens
        targets[line, first : first + length - 1] = np.where(predicted[1:], tokens[1:], -100)
        positions[line, first : first + length] = np.arange(length)
    rows = _rows(inputs, targets, positions if packed else None, device)
    return rows, [line * width + first for line, first in zip(lines, firsts, strict=True)], lengths


def _rows(
    inputs: NDArray[np.int64], targets: NDArray[np.int64], positions: NDArray[np.int64] | None, device: torch.device
) -> Rows:
    return Rows(
        to_device(inputs, device),
        to_device(targets, device),
        # Found here, because a GPU would have to be waited for.
        to_device(np.flatnonzero(targets != -100), device),
        None if positions is None else to_device(positions, device),
    )


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Rows:
    """Right-pads rows of token ids to the longest; all tokens but the first of each row are predicted."""
    width = max(len(r) for r in rows)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), -100, dtype=np.int64)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = row
        targets[i, : len(row) - 1] = row[1:]
    return _rows(inputs, targets, None, device)


def pack_rows(rows: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Rows:
    """Rows of several texts each, given as token ids; all tokens of a text but its first are predicted."""
    texts = [text for row in rows for text in row]
    lines = [line for line, row in enumerate(rows) for _ in row]
    return _filled(_Texts(texts), range(len(texts)), lines, device, packed=True)[0]


class _Texts:
    """Token ids as `Tokens`."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts

    def fetch(self, examples: Sequence[int]) -> None:
        pass

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        return np.asarray(self._texts[example_index], dtype=np.int32)

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        return np.arange(len(self._texts[example_index])) > 0


def token_losses(model: Any, rows: Rows) -> Tensor:
    """Negative log-likelihood of every target in nats, float32; 0 where there is none; [rows, width]."""
    # Positions that begin again, and no mask, are what keeps examples of one row apart in `transformers`.
    apart = {} if rows.positions is None else {"position_ids": rows.positions, "attention_mask": None}
    head = loss_head(model)
    if head is not None:
        with head.losses_of(rows.targets, rows.predicted):
            losses: Tensor = model(input_ids=rows.inputs, use_cache=False, **apart).logits
        return losses.squeeze(-1).float()
    logits = model(input_ids=rows.inputs, use_cache=False, **apart).logits
    return losses_of_logits(logits.flatten(0, 1).float(), rows.targets.flatten()).view_as(rows.targets)


def summed_loss(rows: Rows, layout: Layout, weights: Tensor) -> Callable[[Any], Tensor]:
    """The loss of a micro-batch: the sum over units of weight (1 / its number of targets) times summed loss.

    Args:
        rows: The micro-batch.
        layout: Whose its tokens are.
        weights: Of each unit, float32, shape [units].
    """

    def loss_of(model: Any) -> Tensor:
        return layout.sums(token_losses(model, rows).unsqueeze(-1)).squeeze(-1) @ weights

    return loss_of


def weighted_loss(rows: Rows, weights: Sequence[float]) -> Callable[[Any], Tensor]:
    """The same for a unit per row, by their weights."""
    device = rows.inputs.device
    layout = Layout.of_rows(range(len(rows.inputs)), device)
    return summed_loss(rows, layout, to_device(np.asarray(weights, dtype=np.float32), device))
