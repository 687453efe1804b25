"""Norms of units' gradients over all parameters, against autograd in float64; what is not covered is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ArgumentError
from harness.training import ghost as ghosts
from harness.training import layers
from harness.training.batches import Rows, collate_units, token_losses
from harness.training.ghost import Ghost
from harness.training.layout import Layout
from harness.training.verifying import verify
from harness.training.whole_model import prepare
from tests.training.whole import FAMILIES, make_model

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A micro-batch of made-up examples."""

    examples: tuple[int, ...]
    slots: tuple[int, ...]
    lines: tuple[int, ...]
    packed: bool


class Texts:
    """Examples of random tokens, many of them repeated."""

    def __init__(self, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(5)
        self.texts = [torch.randint(0, 12, (n,), generator=generator).numpy() for n in lengths]

    def fetch(self, examples: Any) -> None:
        pass

    def tokens(self, example_index: int) -> Any:
        return self.texts[example_index]

    def targets(self, example_index: int) -> Any:
        import numpy as np

        return np.arange(len(self.texts[example_index])) > 0


KINDS = {
    "a row each": ([9, 30, 17, 2], Parts((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), False)),
    "several rows": ([9, 30, 17, 25, 3, 8], Parts((0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 2, 2), (0, 1, 2, 3, 4, 5), False)),
    "packed": ([9, 12, 7, 25, 3, 8], Parts((0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 2, 3), (0, 1, 0, 2, 1, 1), True)),
}
PLAIN = ("llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text")
"""Families whose rows can be shared."""


def read(kind: str) -> tuple[Rows, Layout, Texts, Parts]:
    lengths, parts = KINDS[kind]
    texts = Texts(lengths)
    rows, layout = collate_units(texts, parts, CPU)
    if rows.positions is None:
        width = rows.inputs.shape[1]
        rows = dataclasses.replace(rows, positions=torch.arange(width).expand_as(rows.inputs))
    return rows, layout, texts, parts


def expected_gradients(model: Any, texts: Texts, parts: Parts) -> list[Tensor]:
    """Each unit's gradient by itself: float64, one text at a time."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_hooks_with_kwargs.clear()
    plain = plain.double()
    found = []
    for unit in range(max(parts.slots) + 1):
        losses = []
        for example, slot in zip(parts.examples, parts.slots, strict=True):
            if slot == unit:
                ids = torch.tensor(texts.tokens(example)).long()
                logits = plain(input_ids=ids[None], use_cache=False).logits[0]
                losses.append(nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(plain.parameters()))
        found.append(torch.cat([g.reshape(-1) for g in gradients]))
    return found


def norms_of(
    model: Any, ghost: Ghost, rows: Rows, layout: Layout, whole: dict[int, ghosts.Parts] | None = None
) -> Tensor:
    ghost.begin(layout, rows.inputs, whole)
    losses = layout.sums(token_losses(model, rows).unsqueeze(-1)).squeeze(-1)
    return ghost.norms(losses.sum(), keep=False)


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f in FAMILIES for k in KINDS if k != "packed" or f in PLAIN])
@pytest.mark.parametrize("way", ["grams", "products"])
def test_norms_and_gradients_are_those_of_autograd(family: str, kind: str, way: str) -> None:
    """At most 1e-6 of it below each norm, so that a clipped norm is at most C (1 + 1e-5), and 2e-4 above it.

    Seen red: no cross term of the tied weight; a gradient for the padding token, which torch gives none.
    """
    model = prepare(make_model(family))
    ghost = Ghost(model)
    rows, layout, texts, parts = read(kind)
    expected = expected_gradients(model, texts, parts)
    whole = {0: ghost.zeros(CPU), layout.units - 1: ghost.zeros(CPU)}
    with mock.patch.object(ghosts, "_grams_are_cheaper", return_value=way == "grams"):
        found = norms_of(model, ghost, rows, layout, whole)
    assert sum(w.size for w in ghost.weights) == len(expected[0])
    for unit, gradient in enumerate(expected):
        assert 1 - 1e-6 <= float(found[unit] / gradient.norm()) <= 1 + 2e-4
    for unit, parts in whole.items():
        gradient = torch.cat([parts[weight.name].reshape(-1) for weight in ghost.weights])
        assert float((gradient - expected[unit]).norm() / expected[unit].norm()) < 3e-6


def test_products_of_many_units_come_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    g, x = torch.randn(7, 50, 6), torch.randn(7, 50, 5)
    expected = torch.einsum("uto,uti->uoi", g.double(), x.double()).flatten(1).square().sum(1)
    most: list[int] = []
    real = torch.bmm

    def seen(a: Tensor, b: Tensor) -> Tensor:
        most.append(len(a))
        return real(a, b)

    monkeypatch.setattr(ghosts, "MOST_PRODUCTS", 65)
    monkeypatch.setattr(torch, "bmm", seen)
    sizes = ghosts._sizes(g) * ghosts._sizes(x)
    torch.testing.assert_close(ghosts._squared_norms(g, x, sizes), expected, rtol=1e-4, atol=0)
    assert most == [2, 2, 2, 1]


def test_wide_constant_vectors_are_not_found_too_small() -> None:
    """Every sum of a lane rounds the same way. Broken by a slack of 2 √n alone."""
    for width in (300, 28672, 152064):
        for value in torch.linspace(1, 2, 50).tolist():
            vectors = torch.full((1, 2, width), value)
            exact = torch.linalg.vector_norm(vectors, dim=2, dtype=torch.float64)
            assert bool((ghosts._sizes(vectors) >= exact).all())


def cancelling(units: int, tokens: int, width: int, left: float) -> Tensor:
    """Vectors of tokens, [units, tokens, width], of which every second one is nearly the opposite of the one before."""
    halves = torch.randn(units, tokens // 2, width)
    others = -halves * (1 + left * torch.randn_like(halves))
    return torch.stack([halves, others], dim=2).reshape(units, tokens, width)


@pytest.mark.parametrize("left", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_norm_is_never_too_small_where_tokens_cancel_each_other(left: float) -> None:
    """A user whose tokens' parts nearly cancel has a small norm that float32 can't tell from rounding: 200 such units.

    Seen red: no slack for rounding (at 1e-3 a norm of 0.88 of what it is, at 1e-4 many of zero).
    """
    torch.manual_seed(0)
    x = torch.randn(200, 16, 1, 64).expand(-1, -1, 2, -1).reshape(200, 32, 64) + 0.0
    g = cancelling(200, 32, 96, left)
    exact = torch.bmm(g.double().transpose(1, 2), x.double()).flatten(1).norm(dim=1)
    found = ghosts._squared_norms(g, x, ghosts._sizes(g) * ghosts._sizes(x)).clamp_min(0).sqrt()
    assert ghosts._grams_are_cheaper(32, 96, 64)
    assert float((found / exact).min()) >= 1 - 1e-6


@pytest.mark.parametrize("left", [1e-2, 1e-4, 1e-6])
def test_what_a_tied_weights_gradients_share_is_never_too_small(left: float) -> None:
    """Seen red: no slack for rounding."""
    torch.manual_seed(0)
    at_tokens, x = torch.randn(200, 32, 32), torch.randn(200, 32, 64)
    at_tokens = at_tokens[:, :, ::2].repeat_interleave(2, dim=2).contiguous()
    e = cancelling(200, 32, 64, left)
    exact = (at_tokens.double() * torch.bmm(x.double(), e.double().transpose(1, 2))).sum((1, 2))
    assert bool((ghosts._shared(at_tokens, x, e) >= exact - 1e-9).all())


def test_a_unit_does_not_touch_anothers_norm() -> None:
    """Another text of the first unit, of the same length: the others' norms stay as they are, bit for bit."""
    model = prepare(make_model("llama"))
    ghost = Ghost(model)
    rows, layout, _, _ = read("several rows")
    before = norms_of(model, ghost, rows, layout)
    changed = rows.inputs.clone()
    changed[:2] = (changed[:2] * 5 + 3) % 11
    after = norms_of(model, ghost, dataclasses.replace(rows, inputs=changed), layout)
    assert float((after[0] - before[0]).abs()) > 1e-3
    assert torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("way", ["grams", "products"])
def test_a_unit_that_is_not_finite_does_not_touch_anothers_norm(place: int, way: str) -> None:
    """Units of one, three and four rows. Seen red: the second filled up to the third with the first one's token."""
    model = prepare(make_model("llama", tie_word_embeddings=False))
    with torch.no_grad():
        model.model.embed_tokens.weight[100] = float("nan")
    ghost = Ghost(model)
    parts = Parts(tuple(range(8)), (0, 1, 1, 1, 2, 2, 2, 2), tuple(range(8)), False)
    rows, layout = collate_units(Texts([13] * 8), parts, CPU)
    with mock.patch.object(ghosts, "_grams_are_cheaper", return_value=way == "grams"):
        before = norms_of(model, ghost, rows, layout)
        rows.inputs[0, place] = 100
        after = norms_of(model, ghost, rows, layout)
    assert not torch.isfinite(after[0])
    assert torch.equal(after[1:], before[1:])


# --- what is refused ----------------------------------------------------------------------------------------


def refusal(model: Any) -> str:
    with pytest.raises(ArgumentError) as caught:
        verify(model, Ghost(prepare(model)), CPU)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_pass(family: str) -> None:
    model = prepare(make_model(family))
    ghost = Ghost(model)
    verify(model, ghost, CPU)
    assert {weight.name for weight in ghost.weights} == {name for name, _ in model.named_parameters()}


def test_a_layer_of_an_unknown_kind_is_named() -> None:
    model = make_model("llama")
    model.model.layers[0].mlp.gate_proj.scale = nn.Parameter(torch.ones(3))
    message = refusal(model)
    assert message.startswith("model.adapter.type: full can't train model.layers.0.mlp.gate_proj (Linear): only linear")


def test_a_bilinear_layer_is_named() -> None:
    model = make_model("llama")
    model.model.extra = nn.Bilinear(3, 3, 3)
    assert "can't train model.extra (Bilinear)" in refusal(model)


def test_weights_that_other_layers_share_are_named() -> None:
    model = make_model("llama")
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    assert "model.layers.0.mlp.gate_proj, model.layers.1.mlp.gate_proj share it" in refusal(model)


def test_a_weight_without_a_gradient_is_named() -> None:
    model = make_model("llama")
    model.model.unused = nn.Linear(4, 4, bias=False)
    assert refusal(model) == "model.adapter.type: full can't train model.unused.weight: the loss does not depend on it"


def test_a_weight_that_is_used_outside_its_layer_is_named() -> None:
    """Its layer's formula is right and its gradient is not: only the comparison with autograd sees it."""
    model = make_model("llama")
    mlp = model.model.layers[0].mlp
    real = mlp.down_proj.forward
    mlp.down_proj.forward = lambda x: real(x) + mlp.down_proj.weight[:, 0] * x.mean(-1, keepdim=True)
    assert "can't train model.layers.0.mlp.down_proj.weight: the model uses it in a way" in refusal(model)


def test_an_unknown_normalisation_is_named() -> None:
    """It calls itself an RMSNorm and isn't one."""

    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.rand(32) + 0.5), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + self.eps) * self.weight

    model = make_model("llama")
    model.model.norm = OddRMSNorm()
    assert "can't train model.norm.weight: the model uses it in a way that is not known here" in refusal(model)


def test_embeddings_that_count_over_the_batch_are_named() -> None:
    """Gradients scaled by how often a token occurs in the micro-batch would couple users."""
    model = make_model("llama", tie_word_embeddings=False)
    model.model.embed_tokens.scale_grad_by_freq = True
    assert "can't train model.embed_tokens (Embedding)" in refusal(model)


def test_positions_that_rows_share_are_refused() -> None:
    """GPT-2 looks positions up once for all rows unless it is told each row's: their gradient would be everybody's."""
    model = prepare(make_model("gpt2"))
    ghost = Ghost(model)
    rows, layout, _, _ = read("a row each")
    with pytest.raises(ArgumentError, match=r"transformer\.wpe: its rows are not per token"):
        norms_of(model, ghost, dataclasses.replace(rows, positions=None), layout)


def test_a_half_precision_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"embed_tokens\.weight: where all parameters are trained, they must be"):
        layers.find_layers(prepare(make_model("llama").bfloat16()))


def test_verifying_leaves_the_model_as_it_was() -> None:
    model = prepare(make_model("llama"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    verify(model, Ghost(model), CPU)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())
