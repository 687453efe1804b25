"""Per-user gradients and joint clipping, against a loop over users in float64."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.data.cohorts import MicroBatch, Unit, micro_batches
from harness.errors import ArgumentError
from harness.spec.models import AdapterBlock, ModelBlock
from harness.training.batches import collate, weighted_loss
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.layout import Layout
from harness.training.model import build_model
from harness.training.probing import _reached
from tests.training.reference import unit_gradient

CPU = torch.device("cpu")
LENGTHS = ((5, 9, 3), (9,), (2, 2), (16, 4, 7, 11), (12, 12))
"""Tokens of each text of each user."""


class Texts:
    """Texts of users, as a corpus."""

    def __init__(self, lengths: Sequence[Sequence[int]] = LENGTHS, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        self.users = [[generator.integers(0, 96, n).astype(np.int32) for n in own] for own in lengths]

    @property
    def flat(self) -> list[Any]:
        return [text for own in self.users for text in own]

    def fetch(self, examples: Sequence[int]) -> None:
        pass

    def tokens(self, example_index: int) -> Any:
        return self.flat[example_index]

    def targets(self, example_index: int) -> Any:
        return np.arange(len(self.flat[example_index])) > 0

    @property
    def lengths(self) -> Any:
        return np.array([len(t) for t in self.flat], dtype=np.int32)

    def units(self) -> list[Unit]:
        units, first = [], 0
        for user, own in enumerate(self.users):
            examples = tuple(range(first, first + len(own)))
            units.append(Unit(user, 0, examples, sum(len(t) - 1 for t in own)))
            first += len(own)
        return units


class Model:
    """A model with an adapter that has moved, its collector, and a float64 copy for the reference."""

    def __init__(self, base: Path, *, dtype: str = "float32", targets: Sequence[str] = ("q_proj", "v_proj")) -> None:
        adapter = AdapterBlock(r=4, alpha=16, targets=tuple(targets), freeze_a=False)
        block = ModelBlock(base=str(base), dtype=dtype, adapter=adapter)
        self.model = build_model(base, block, seed=2)
        torch.manual_seed(5)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1)
        self.plain = copy.deepcopy(self.model)
        self.trainables = find_trainables(self.model)
        self.sink = UnitGradients(self.trainables, CPU)

    def run(
        self, texts: Texts, batches: Sequence[MicroBatch], clip_norms: Sequence[float]
    ) -> tuple[Tensor, list[float]]:
        """The sum of clipped gradients, and the norm of every unit as it was completed."""
        self.sink.reset()
        norms: list[float] = []
        for batch in batches:
            rows = collate(texts, batch.examples, CPU)
            weights = [1.0 / batch.units[slot].targets for slot in batch.slots]
            self.sink.begin(Layout.of_rows(batch.slots, CPU))
            torch.autograd.backward(weighted_loss(rows, weights)(self.model))
            limits = torch.tensor([clip_norms[u.user] for u in batch.units], dtype=torch.float64)
            norms += self.sink.finish(limits, continues=batch.continues).tolist()
        return self.sink.total.clone(), norms

    def of_each_user(self, texts: Texts, batches: Sequence[MicroBatch], clip_norm: float = math.inf) -> list[Tensor]:
        """Every user's (clipped) gradient alone: everybody else is clipped to nothing."""
        count = len(texts.users)
        return [
            self.run(texts, batches, [clip_norm if user == wanted else 0.0 for user in range(count)])[0]
            for wanted in range(count)
        ]

    def reference(self, texts: Texts) -> list[Tensor]:
        """The same, one user at a time in float64."""
        plain = copy.deepcopy(self.plain).double()
        return [unit_gradient(plain, [t.tolist() for t in own]) for own in texts.users]


@pytest.fixture(scope="module")
def model(base: Path) -> Model:
    return Model(base)


def cut(texts: Texts, budget: int) -> list[MicroBatch]:
    return micro_batches(texts.units(), texts.lengths, budget)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# --- the same as a loop over users --------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 24, 40, 100_000])
def test_every_users_gradient_equals_a_loop_over_users(model: Model, budget: int) -> None:
    """Broken by dropping what is carried from one micro-batch to the next, or by normalising over the micro-batch."""
    texts = Texts()
    batches = cut(texts, budget)
    assert any(b.continues for b in batches) == (budget < 1000)
    assert len(batches) == {1: 12, 100_000: 1}.get(budget, len(batches))
    for found, expected in zip(model.of_each_user(texts, batches), model.reference(texts), strict=True):
        assert expected.norm() > 1e-3
        assert relative_error(found, expected) < 1e-5


class Masked(Texts):
    """The same texts, of which some tokens alone are predicted."""

    def targets(self, example_index: int) -> Any:
        mask = np.random.default_rng(example_index).random(len(self.flat[example_index])) < 0.5
        mask[0], mask[-1] = False, True
        return mask

    def units(self) -> list[Unit]:
        found = super().units()
        return [dataclasses.replace(u, targets=sum(int(self.targets(e).sum()) for e in u.examples)) for u in found]


@pytest.mark.parametrize("budget", [24, 100_000])
def test_with_a_loss_on_answers_alone_it_equals_a_loop_over_users(model: Model, budget: int) -> None:
    """Broken by dividing by all tokens of a unit, or by a mask that is one place off."""
    texts = Masked()
    plain = copy.deepcopy(model.plain).double()
    for unit, found in zip(texts.units(), model.of_each_user(texts, cut(texts, budget)), strict=True):
        own = [texts.tokens(e).tolist() for e in unit.examples]
        expected = unit_gradient(plain, own, [texts.targets(e).tolist() for e in unit.examples])
        assert relative_error(found, expected) < 1e-5
        if unit.targets < sum(len(text) - 1 for text in own):
            assert relative_error(found, unit_gradient(plain, own)) > 1e-2


def test_the_sum_of_all_users_equals_a_loop_over_users_with_clipping(model: Model) -> None:
    texts = Texts()
    references = model.reference(texts)
    sizes = sorted(float(g.norm()) for g in references)
    clip_norm = (sizes[1] + sizes[2]) / 2  # some are clipped and some are not
    expected = sum(g * min(1.0, clip_norm / float(g.norm())) for g in references)
    for budget in (1, 24, 100_000):
        total, norms = model.run(texts, cut(texts, budget), [clip_norm] * len(references))
        assert relative_error(total, expected) < 1e-5
        assert sorted(norms) == pytest.approx(sizes, rel=1e-5)
        assert total.dtype == torch.float32


def test_all_layers_of_a_model_with_tied_embeddings_are_right(tied_base: Path) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tied = Model(tied_base, targets=targets)
    assert tied.plain.get_output_embeddings().weight is tied.plain.get_input_embeddings().weight
    texts = Texts()
    for found, expected in zip(tied.of_each_user(texts, cut(texts, 40)), tied.reference(texts), strict=True):
        assert relative_error(found, expected) < 1e-5
    clipped = tied.of_each_user(texts, cut(texts, 40), clip_norm=0.01)
    assert all(float(g.double().norm()) <= 0.01 * (1 + 1e-5) for g in clipped)


def test_a_bfloat16_base_gives_float32_gradients_close_to_a_loop_over_users(base: Path) -> None:
    half = Model(base, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in half.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    texts = Texts()
    exact = half.reference(texts)
    for found, expected in zip(half.of_each_user(texts, cut(texts, 40)), exact, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, expected) < 0.05
    clipped = half.of_each_user(texts, cut(texts, 40), clip_norm=0.01)
    assert all(float(g.double().norm()) <= 0.01 * (1 + 1e-5) for g in clipped)


def test_gradient_checkpointing_changes_nothing(base: Path) -> None:
    """The forward pass runs twice, and the second time inside the backward pass."""
    plain, recomputing = Model(base), Model(base)
    inner = recomputing.model
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inner.train()  # transformers checkpoints in this mode alone; there is no dropout
    assert inner.is_gradient_checkpointing
    texts = Texts()
    batches = cut(texts, 40)
    for a, b in zip(plain.of_each_user(texts, batches), recomputing.of_each_user(texts, batches), strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a, b)


# --- clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 24, 100_000])
@pytest.mark.parametrize("clip_norm", [1e-4, 0.05, 0.4])
def test_no_users_contribution_exceeds_the_clip_norm(model: Model, budget: int, clip_norm: float) -> None:
    """A user over several micro-batches is clipped once, as a whole. Broken by clipping each micro-batch's part."""
    texts = Texts()
    free, clipped = (model.of_each_user(texts, cut(texts, budget), c) for c in (math.inf, clip_norm))
    for before, after in zip(free, clipped, strict=True):
        norm = float(after.double().norm())
        assert norm <= clip_norm * (1 + 1e-5)
        assert norm == pytest.approx(min(clip_norm, float(before.double().norm())), rel=1e-5)
        assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 1 - 1e-5


def test_clip_norms_belong_to_their_users(model: Model) -> None:
    texts = Texts()
    limits = [0.01, 0.02, 0.03, 0.04, 0.05]
    directions = [g / g.norm() for g in model.reference(texts)]
    expected = sum(c * d for c, d in zip(limits, directions, strict=True))
    for budget in (1, 24, 100_000):
        total, norms = model.run(texts, cut(texts, budget), limits)
        assert min(norms) > max(limits)
        assert relative_error(total, expected) < 1e-5


def test_no_limit_is_no_clipping_and_a_zero_gradient_stays_zero(model: Model) -> None:
    model.sink.reset()
    model.sink.begin(Layout.of_rows([0], CPU))
    model.sink.finish(torch.tensor([math.inf], dtype=torch.float64), continues=False)
    assert torch.equal(model.sink.total, torch.zeros_like(model.sink.total))


def test_reset_forgets_a_user_that_was_left_open(model: Model) -> None:
    """Broken by keeping the carry: a step that died in the middle would leak into the next."""
    texts = Texts()
    batches = cut(texts, 40)
    expected, _ = model.run(texts, batches, [1.0] * 5)
    broken_off = next(i for i, b in enumerate(batches) if b.continues) + 1
    model.run(texts, batches[:broken_off], [1.0] * 5)
    again, _ = model.run(texts, batches, [1.0] * 5)
    assert torch.equal(again, expected)


# --- one user's records and nobody else's -------------------------------------------------------------------


@pytest.mark.parametrize("budget", [24, 100_000])
def test_another_users_text_changes_no_gradient_bit_for_bit(model: Model, budget: int) -> None:
    """Broken by dividing the loss by what the micro-batch holds, or by adding a row to the wrong unit."""
    before, after = Texts(), Texts()
    changed = 0  # in the middle of the micro-batch, which goes by length
    after.users[changed] = [(t + 17) % 96 for t in after.users[changed]]
    first, second = (model.of_each_user(t, cut(t, budget)) for t in (before, after))
    for user, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b) == (user != changed)


@pytest.mark.parametrize("budget", [24, 100_000])
def test_another_users_lengths_change_no_gradient_beyond_rounding(model: Model, budget: int) -> None:
    """Padding, rows and micro-batches differ. Broken by normalising with the micro-batch's tokens, or padding left."""
    before = Texts()
    after = Texts(lengths=(*LENGTHS[:3], (40, 2, 28, 3, 3, 31), LENGTHS[4]))
    for user in (0, 1, 2, 4):
        after.users[user] = before.users[user]
    first, second = (model.of_each_user(t, cut(t, budget)) for t in (before, after))
    for user in (0, 1, 2, 4):
        assert relative_error(second[user], first[user].double()) < 1e-5


def test_a_user_who_leaves_changes_nobodys_gradient(model: Model) -> None:
    everybody, without = Texts(), Texts()
    del without.users[3]
    first = model.of_each_user(everybody, cut(everybody, 40))
    second = model.of_each_user(without, cut(without, 40))
    for a, b in zip(first[:3] + first[4:], second, strict=True):
        assert relative_error(b, a.double()) < 1e-5


# --- what is not a number -----------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("budget", [1, 24, 100_000])
def test_a_non_finite_gradient_contributes_nothing_and_harms_nobody(model: Model, poison: float, budget: int) -> None:
    """Broken by letting the factor, or zero times the gradient, reach the sum."""
    texts = Texts()
    units = texts.units()
    ill = 3
    poisoned_row = units[ill].examples[1]
    others = [user for user in range(5) if user != ill]
    limits = [0.05] * 5
    expected = sum(model.run(texts, cut(texts, budget), [0.05 if u == w else 0.0 for u in range(5)])[0] for w in others)
    model.sink.reset()
    norms: list[float] = []
    for batch in cut(texts, budget):
        rows = collate(texts, batch.examples, CPU)
        weights = [
            poison if row == poisoned_row else 1.0 / units[batch.units[slot].user].targets
            for row, slot in zip(batch.examples, batch.slots, strict=True)
        ]
        model.sink.begin(Layout.of_rows(batch.slots, CPU))
        torch.autograd.backward(weighted_loss(rows, weights)(model.model))
        chosen = torch.tensor([limits[u.user] for u in batch.units], dtype=torch.float64)
        norms += model.sink.finish(chosen, continues=batch.continues).tolist()
    assert sum(not math.isfinite(n) for n in norms) == 1
    assert torch.isfinite(model.sink.total).all()
    assert relative_error(model.sink.total, expected.double()) < 1e-6


def test_a_norm_beyond_float32_is_clipped_and_not_dropped(model: Model) -> None:
    """Every coordinate is finite, but the sum of squares overflows float32. Broken by a norm in float32."""
    texts = Texts(lengths=((8,), (8,)))
    (batch,) = cut(texts, 1000)
    model.sink.reset()
    model.sink.begin(Layout.of_rows(batch.slots, CPU))
    torch.autograd.backward(weighted_loss(collate(texts, batch.examples, CPU), [1e30, 1.0])(model.model))
    norms = model.sink.finish(torch.full((2,), 0.5, dtype=torch.float64), continues=False)
    assert 1e25 < float(norms[0]) < math.inf
    assert 0.5 < float(model.sink.total.double().norm()) <= 1.0 + 1e-5


# --- what can be trained ------------------------------------------------------------------------------------


def test_every_trainable_parameter_is_found_with_its_place(model: Model) -> None:
    """Broken by skipping a layer: its weights would be trained without clipping and noise."""
    expected = {n: p for n, p in model.model.named_parameters() if p.requires_grad}
    assert [t.name for t in model.trainables] == list(expected)
    assert len(expected) == 8
    offset = 0
    for trainable in model.trainables:
        assert trainable.offset == offset
        assert trainable.parameter is expected[trainable.name]
        assert trainable.shape == tuple(expected[trainable.name].shape)
        offset += trainable.size
    assert model.sink.size == offset
    flat = torch.arange(float(offset))
    assert torch.equal(torch.cat([t.view(flat).reshape(-1) for t in model.trainables]), flat)


def test_what_autograd_hands_on_is_nothing_or_exactly_zero(base: Path) -> None:
    """Broken by an ordinary linear layer: a raw gradient would reach the optimizer."""
    fresh = Model(base)
    texts = Texts()
    (batch,) = cut(texts, 100_000)
    for handed in (False, True):
        fresh.sink.hand_zeros_to_optimizer = handed
        fresh.run(texts, [batch], [1.0] * 5)
        for trainable in fresh.trainables:
            gradient = trainable.parameter.grad
            assert (gradient is None) == (not handed)
            assert gradient is None or not gradient.any()


def test_the_taken_over_layers_compute_what_they_did(model: Model) -> None:
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = model.plain(input_ids=ids).logits
        assert torch.equal(model.model(input_ids=ids).logits, expected)
    assert torch.equal(model.model(input_ids=ids).logits, expected)


class Toy(nn.Module):
    """Layers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.convolution, self.embedding = nn.Conv1d(4, 4, 1), nn.Embedding(4, 4)
        self.norm = nn.LayerNorm((4, 4))
        self.requires_grad_(False)


def _convolution(toy: Toy) -> None:
    toy.convolution.bias.requires_grad_(True)  # type: ignore[union-attr]


def _norm_of_several_dimensions(toy: Toy) -> None:
    toy.norm.weight.requires_grad_(True)


def _limited(toy: Toy) -> None:
    toy.embedding = nn.Embedding(4, 4, max_norm=1.0)


def _by_frequency(toy: Toy) -> None:
    toy.embedding = nn.Embedding(4, 4, scale_grad_by_freq=True)


def _special(toy: Toy) -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    toy.first = Doubled(4, 4, bias=False)


def _replaced(toy: Toy) -> None:
    toy.first.weight.requires_grad_(True)
    inner = toy.first.forward
    toy.first.forward = lambda inputs: 2 * inner(inputs)  # type: ignore[method-assign, assignment]


def _tied_to_another_kind(toy: Toy) -> None:
    toy.convolution.weight = toy.second.weight


@pytest.mark.parametrize(
    ("change", "name", "kind"),
    [
        (_convolution, "convolution.bias", "Conv1d"),
        (_norm_of_several_dimensions, "norm.weight", "LayerNorm"),
        (_limited, "embedding.weight", "Embedding"),
        (_by_frequency, "embedding.weight", "Embedding"),
        (_special, "first.weight", "Doubled"),
        (_replaced, "first.weight", "Linear"),
        (_tied_to_another_kind, "second.weight", "Conv1d"),
    ],
)
def test_what_can_not_be_trained_privately_is_refused(change: Any, name: str, kind: str) -> None:
    """Broken by ignoring such parameters: they would be trained without noise, or not at all."""
    toy = Toy()
    toy.second.weight.requires_grad_(True)
    change(toy)
    with pytest.raises(ArgumentError) as caught:
        find_trainables(toy)
    assert str(caught.value) == (
        f"the trainable parameter {name} can't be trained privately: it is used by a {kind}, and what can be are "
        "linear layers, norms and embeddings"
    )


def test_a_trainable_parameter_of_half_precision_is_refused() -> None:
    toy = Toy()
    toy.first.to(torch.bfloat16).weight.requires_grad_(True)
    with pytest.raises(ArgumentError) as caught:
        find_trainables(toy)
    assert str(caught.value) == ("the trainable parameter first.weight can't be trained privately: it must be float32")


def test_a_weight_that_layers_share_has_the_sum_of_its_uses() -> None:
    """Two linear layers and an embedding. Seen red: the first use counted alone."""
    toy = Toy()
    toy.second.weight = toy.first.weight = toy.embedding.weight
    toy.embedding.weight.requires_grad_(True)

    def loss(one: Toy) -> Tensor:
        ids = torch.tensor([[0, 1, 2], [3, 3, 1]])
        return (one.second(one.first(one.embedding(ids)).tanh()) ** 2).sum(dim=(1, 2))

    exact = copy.deepcopy(toy).double()
    expected = [torch.autograd.grad(loss(exact)[i], [exact.embedding.weight])[0].reshape(-1) for i in (0, 1)]
    (trainable,) = find_trainables(toy)
    assert trainable.name == "first.weight"
    assert len(trainable.tied) == 2
    sink = UnitGradients([trainable], CPU)
    for wanted in (0, 1):
        sink.reset()
        sink.begin(Layout.of_rows([0, 1], CPU))
        torch.autograd.backward(loss(toy).sum())
        limits = [math.inf if i == wanted else 0.0 for i in (0, 1)]
        sink.finish(torch.tensor(limits, dtype=torch.float64), continues=False)
        assert relative_error(sink.total, expected[wanted]) < 1e-6
    assert toy.embedding.weight.grad is None


def test_a_parameter_that_is_used_outside_of_its_layer_is_seen() -> None:
    """Its raw gradient reaches the parameter. Broken by watching what is collected alone."""
    toy = Toy()
    toy.first.weight.requires_grad_(True)
    toy.second.weight.requires_grad_(True)
    sink = UnitGradients(find_trainables(toy), CPU)
    for weight, expected in ((torch.eye(4), set()), (toy.first.weight, {"first.weight"})):
        with _reached(sink) as reached:
            sink.begin(Layout.of_rows([0], CPU))
            torch.autograd.backward((toy.second(toy.first(torch.ones(1, 2, 4))) @ weight).sum())
            sink.finish(torch.ones(1, dtype=torch.float64), continues=False)
        assert reached == expected
    torch.autograd.backward((torch.ones(4) @ toy.first.weight).sum())
    assert reached == {"first.weight"}  # nobody watches any more


def test_an_adapter_without_a_trainable_parameter_is_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        find_trainables(Toy())
    assert str(caught.value) == "the adapter has no trainable parameter: do model.adapter.targets name its layers?"
