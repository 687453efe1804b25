"""Losses: what a direct computation gives, in any order and any micro-batch, with the adapter on and off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.auditing.losses import base_of, both_losses, example_losses, log_ratios
from harness.errors import ArgumentError
from tests.auditing.models import CPU, adapted, train
from tests.families import make_model

ROWS = [[(11 * i + 5 * r) % 128 for i in range(length)] for r, length in enumerate([7, 30, 1, 12, 0, 30, 2])]


def direct(model: Any, row: list[int]) -> float:
    if len(row) < 2:
        return 0.0
    ids = torch.tensor(row)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()
    return float(functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_they_equal_a_direct_computation_in_the_order_of_the_rows(budget: int) -> None:
    """Broken by leaving losses in the order of the micro-batches."""
    model = make_model("llama")
    found = example_losses(model, ROWS, CPU, budget)
    assert found.nats == pytest.approx([direct(model, r) for r in ROWS], rel=1e-4)
    assert found.tokens.tolist() == [6, 29, 0, 11, 0, 29, 1]


def test_micro_batches_keep_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.auditing import losses

    sizes = []
    inner = losses.pad
    monkeypatch.setattr(
        losses, "pad", lambda rows, d: (sizes.append(len(rows) * max(map(len, rows))), inner(rows, d))[1]
    )
    example_losses(make_model("llama"), ROWS, CPU, 60)
    assert sizes == [60, 36]


def test_an_adapter_is_its_own_base() -> None:
    """Broken by leaving the adapter on."""
    model = train(adapted(targets=["q_proj", "v_proj"], r=4, alpha=8, freeze_a=False), ROWS[:2], steps=10)
    base = make_model("llama")
    tuned, without = both_losses(model, ROWS, CPU, 100)
    assert without.nats == pytest.approx(example_losses(base, ROWS, CPU, 100).nats, rel=1e-5)
    assert tuned.nats == pytest.approx([direct(model, r) for r in ROWS], rel=1e-4)
    assert np.all(log_ratios(tuned, without)[:2] > 1)
    given, other = both_losses(model, ROWS, CPU, 100, base=base)
    assert given.nats.tolist() == tuned.nats.tolist()
    assert other.nats == pytest.approx(without.nats, rel=1e-5)


@pytest.mark.parametrize(
    ("block", "message"),
    [({"type": "full"}, "without an adapter"), ({"targets": ["c_attn"], "bias": "all"}, "whose biases were trained")],
)
def test_what_cannot_be_its_own_base_needs_one(block: dict[str, Any], message: str) -> None:
    """PEFT leaves trained biases in place when it switches an adapter off."""
    model = adapted("gpt2", **block)
    with pytest.raises(ArgumentError, match=message), base_of(model):
        pass
    with base_of(model, "another") as base:
        assert base == "another"


def test_dropout_is_off_meanwhile_and_on_again_after() -> None:
    model = adapted(targets=["v_proj"], dropout=0.9, freeze_a=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    dropouts = [m for n, m in model.named_modules() if n.endswith("lora_dropout.default")]
    model.eval()
    for module in dropouts:
        module.train()
    first = example_losses(model, ROWS, CPU, 100)
    assert first.nats.tolist() == example_losses(model, ROWS, CPU, 100).nats.tolist()
    assert dropouts
    assert all(m.training for m in dropouts)
    assert not model.training
