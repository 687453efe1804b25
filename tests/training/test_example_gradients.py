"""Gradients of sampled examples: each is a function of that example alone, and clipped by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.data.cohorts import Unit, micro_batches
from harness.training.batches import collate, weighted_loss
from harness.training.layout import Layout
from tests.training.reference import unit_gradient
from tests.training.test_gradients import CPU, Model, Texts, relative_error


def units_of(texts: Texts) -> list[Unit]:
    """Every text a unit of its own; users have several."""
    owners = [user for user, own in enumerate(texts.users) for _ in own]
    return [Unit(user, 0, (e,), len(texts.flat[e]) - 1) for e, user in enumerate(owners)]


def of_each_example(model: Model, texts: Texts, budget: int, clip_norm: float) -> list[Tensor]:
    """Every example's clipped gradient alone: all others are clipped to nothing."""
    found = []
    for wanted in range(len(texts.flat)):
        model.sink.reset()
        for batch in micro_batches(units_of(texts), texts.lengths, budget):
            model.sink.begin(Layout.of_rows(batch.slots, CPU))
            weights = [1.0 / batch.units[slot].targets for slot in batch.slots]
            torch.autograd.backward(weighted_loss(collate(texts, batch.examples, CPU), weights)(model.model))
            limits = [clip_norm if unit.examples == (wanted,) else 0.0 for unit in batch.units]
            model.sink.finish(torch.tensor(limits, dtype=torch.float64), continues=batch.continues)
        found.append(model.sink.total.clone())
    return found


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return Model(base)


@pytest.mark.parametrize("budget", [1, 24, 100_000])
def test_every_examples_gradient_equals_a_loop_over_examples(model: Model, budget: int) -> None:
    """In float64, one at a time. Red when the rows of a user are added up before they are clipped."""
    texts = Texts()
    plain = copy.deepcopy(model.plain).double()
    expected = [unit_gradient(plain, [text.tolist()]) for text in texts.flat]
    for found, exact in zip(of_each_example(model, texts, budget, math.inf), expected, strict=True):
        assert relative_error(found, exact) < 1e-5
    for found, exact in zip(of_each_example(model, texts, budget, 0.05), expected, strict=True):
        assert relative_error(found, exact * min(1.0, 0.05 / float(exact.norm()))) < 1e-5


@pytest.mark.parametrize("budget", [24, 100_000])
def test_another_example_changes_no_gradient_bit_for_bit(model: Model, budget: int) -> None:
    """Nor does another example of the same user. Red when neighbouring rows of a user are taken for one unit."""
    before, after = Texts(), Texts()
    # The two are as long as each other, so that their rows are neighbours.
    after.users[4][1] = (after.users[4][1] + 17) % 96
    changed = len(before.flat) - 1
    first, second = (of_each_example(model, texts, budget, math.inf) for texts in (before, after))
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [e != changed for e in range(len(first))]


@pytest.mark.parametrize("kind", ["tied", "bfloat16", "checkpointing"])
def test_no_example_exceeds_its_clip_norm(base: Path, tied_base: Path, kind: str) -> None:
    """Tied weights, mixed precision, recomputation. Red when the norm is that of a part of the weights."""
    targets: Sequence[str] = ("q_proj", "v_proj", "o_proj", "down_proj") if kind == "tied" else ("q_proj", "v_proj")
    made = Model(
        tied_base if kind == "tied" else base, dtype="bfloat16" if kind == "bfloat16" else "float32", targets=targets
    )
    if kind == "checkpointing":
        made.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        made.model.train()
    for gradient in of_each_example(made, Texts(), 40, 0.01):
        assert float(gradient.double().norm()) == pytest.approx(0.01, rel=1e-5)
