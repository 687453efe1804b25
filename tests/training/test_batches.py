"""Rows of tokens, and the loss of a micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.training.batches import collate, pad, token_losses, weighted_loss

CPU = torch.device("cpu")
ROWS = [[5, 6, 7], [1, 2, 3, 4, 9, 8], [11, 12]]


class Tokens:
    def fetch(self, examples: Any) -> None:
        pass

    def tokens(self, example_index: int) -> Any:
        return np.array(ROWS[example_index], dtype=np.int32)

    def targets(self, example_index: int) -> Any:
        return np.arange(len(ROWS[example_index])) > 0


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def test_rows_are_padded_on_the_right_and_padding_is_no_target() -> None:
    """Broken by a target that is a row's own padding."""
    rows = pad(ROWS, CPU)
    assert rows.inputs.tolist() == [[5, 6, 7, 0, 0, 0], [1, 2, 3, 4, 9, 8], [11, 12, 0, 0, 0, 0]]
    assert rows.targets.tolist() == [
        [6, 7, -100, -100, -100, -100],
        [2, 3, 4, 9, 8, -100],
        [12, -100, -100, -100, -100, -100],
    ]
    chosen = collate(Tokens(), [2, 0], CPU)
    assert chosen.inputs.tolist() == [[11, 12, 0], [5, 6, 7]]
    assert chosen.targets.tolist() == [[12, -100, -100], [6, 7, -100]]


def test_losses_are_those_of_each_row_alone(model: Any) -> None:
    """Broken by rows that see each other or their padding."""
    with torch.no_grad():
        losses = token_losses(model, pad(ROWS, CPU))
        for row, found in zip(ROWS, losses, strict=True):
            ids = torch.tensor(row)
            logits = model(input_ids=ids[None]).logits[0]
            expected = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            torch.testing.assert_close(found[: len(row) - 1], expected, rtol=1e-5, atol=1e-6)
            assert not found[len(row) - 1 :].any()
    assert losses.dtype == torch.float32


def test_losses_of_a_bfloat16_model_are_summed_in_float32(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert token_losses(half, pad(ROWS, CPU)).dtype == torch.float32


def test_the_weighted_loss_is_the_weighted_sum_of_rows(model: Any) -> None:
    rows = pad(ROWS, CPU)
    with torch.no_grad():
        per_row = token_losses(model, rows).sum(dim=1)
        found = weighted_loss(rows, [0.5, 0.0, 2.0])(model)
    assert float(found) == pytest.approx(0.5 * float(per_row[0]) + 2 * float(per_row[2]), rel=1e-6)
