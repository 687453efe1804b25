"""Reconstruction: words are found in updates where nothing hides them, and not where noise does."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.auditing import reconstruction
from harness.auditing.dictionary import dictionary
from harness.auditing.pursuit import Block, pursue
from harness.auditing.reconstruction import attack, reconstruct
from harness.errors import ArgumentError
from harness.training.batches import pad, weighted_loss
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.layout import Layout
from tests.auditing.models import CPU, adapted

LOUD = 1.0
"""Noise as large as the whole clipped gradient, on each number."""
LARGE = {"vocab_size": 1000}


def texts(count: int = 8, tokens: int = 12, vocabulary: int = 1000, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(vocabulary, tokens, replace=False).tolist() for _ in range(count)]


@functools.cache
def model_of(r: int, freeze_a: bool = True, moved: bool = False, targets: tuple[str, ...] = ("v_proj",)) -> Any:
    model = adapted(changes=LARGE, targets=targets, r=r, alpha=2 * r, freeze_a=freeze_a)
    if moved:
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


# --- what is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "freeze_a", "moved"), [(16, True, False), (16, False, True)], ids=["second factors", "both factors"]
)
def test_words_of_a_single_user_are_found_without_noise_and_not_with_it(r: int, freeze_a: bool, moved: bool) -> None:
    """Rank above the number of distinct tokens: all are found but the last, after which nothing is predicted.

    With noise, 8 × 12 tokens at n / V = 1.2 %: more than 10 of 96 have probability below 1e-6.
    """
    found = attack(model_of(r, freeze_a, moved), texts(), (1,), 1.0, LOUD, CPU, 256)
    assert (found.reason, found.looked_at) == (None, "linear layers")
    quiet, noisy = found.shares
    assert quiet.found >= 11 / 12 > 0.8
    assert quiet.interval is not None
    # All eight shares are the same: Hoeffding's.
    assert quiet.interval[0] == pytest.approx(quiet.found - math.sqrt(math.log(40) / 16))
    assert (quiet.noise_std, noisy.noise_std) == (0.0, LOUD)
    assert noisy.found <= 10 / 96
    assert quiet.chance == noisy.chance == pytest.approx(0.012)
    assert quiet.frequent < 0.2


def test_both_factors_of_low_rank_tell_what_the_second_alone_does_not() -> None:
    """Four combinations of twelve inputs suffice where each input has many dimensions; four dimensions do not."""
    both = attack(model_of(4, False, True, ("q_proj", "k_proj", "v_proj")), texts(), (1,), 1.0, 0.0, CPU, 256)
    second = attack(model_of(4), texts(), (1,), 1.0, 0.0, CPU, 256)
    assert both.shares[0].found > 0.5
    assert second.shares[0].found < 0.5


def test_company_hides_words() -> None:
    """Sixteen dimensions tell twelve tokens apart, and not forty-eight."""
    found = attack(model_of(16), texts(), (1, 4), 1.0, 0.0, CPU, 256)
    alone, among = found.shares
    assert (alone.cohort, among.cohort) == (1, 4)
    assert alone.found > 0.8
    assert among.found < 0.5
    assert among.chance == pytest.approx(0.047, abs=0.003)


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_embedding_holds_the_bag_of_tokens(tied: bool) -> None:
    """Every token of the text has a row; of a tied one the last token too, since it is predicted."""
    model = adapted(changes={**LARGE, "tie_word_embeddings": tied}, type="full")
    found = attack(model, texts(), (1, 4), 1.0, LOUD, CPU, 256)
    assert found.looked_at == "embedding"
    alone, noisy, among, _ = found.shares
    assert alone.found >= 11 / 12
    assert among.found >= 0.9
    assert noisy.found <= 10 / 96


def test_an_embedding_beside_an_adapter_is_looked_at_too() -> None:
    model = adapted(changes=LARGE, targets=["v_proj"], r=4, also=["embed_tokens"])
    found = attack(model, texts(), (1,), 1.0, 0.0, CPU, 256)
    assert found.looked_at == "embedding"
    assert found.shares[0].found >= 11 / 12


def test_a_whole_linear_layer_is_read_like_an_adapter() -> None:
    model = adapted(changes=LARGE, targets=["o_proj"], r=2, also=["q_proj"])
    found = attack(model, texts(), (1,), 1.0, 0.0, CPU, 256)
    assert found.looked_at == "linear layers"
    assert found.shares[0].found >= 0.8


# --- where it applies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gpt_neox", "mistral"])
def test_first_layers_of_models_with_rotary_positions_have_a_dictionary(family: str) -> None:
    target = "query_key_value" if family == "gpt_neox" else "v_proj"
    known = dictionary(adapted(family, targets=[target], r=4), CPU, 50)
    assert known.reason is None
    assert [s.entries.shape for s in known.sources] == [(128, 4)]
    assert len(known.names) == 1
    assert "layers.0." in known.names[0]
    assert ".lora_B." in known.names[0]


def test_the_dictionary_is_what_the_layer_is_given() -> None:
    model = adapted(targets=["q_proj", "v_proj"], r=4, freeze_a=False)
    known = dictionary(model, CPU, 50)
    layer = model.get_base_model().model.layers[0]
    given = layer.input_layernorm(model.get_input_embeddings().weight).detach()
    whole = next(s for s in known.sources if s.entries.shape[1] == 32)
    assert torch.allclose(whole.entries, given, atol=1e-6)
    assert len(whole.names) == 2  # both first factors are given the same
    assert sum(len(s.names) for s in known.sources) == 4
    factors = {s.names[0]: s.entries for s in known.sources if s.entries.shape[1] == 4}
    for name, entries in factors.items():
        first = model.get_parameter(name.replace("lora_B", "lora_A"))
        assert torch.allclose(entries, given @ first.detach().T, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "block", "reason"),
    [
        ("gpt2", {"targets": ["c_attn"]}, "depends on the position or on the tokens before"),
        ("llama", {"targets": ["o_proj", "down_proj"]}, "depends on the position or on the tokens before"),
        ("llama", {"type": "norms"}, "neither embeddings nor linear layers are trained"),
    ],
)
def test_where_it_does_not_apply_it_says_so(family: str, block: dict[str, Any], reason: str) -> None:
    """Broken by taking a layer by its name: learned positions are part of what GPT-2's first layer is given."""
    model = adapted(family, **block)
    found = attack(model, texts(3, 6, 128), (1,), 1.0, LOUD, CPU, 50)
    assert found.shares == ()
    assert found.looked_at is None
    assert (found.reason or "").startswith("does not apply: ")
    assert reason in (found.reason or "")
    json.dumps(found.document(), allow_nan=False)
    with pytest.raises(ArgumentError, match="does not apply"):
        reconstruct({}, dictionary(model, CPU, 50), 3)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ArgumentError, match="needs 4 texts of two tokens or more"):
        attack(model_of(16), texts(3), (1, 4), 1.0, 0.0, CPU, 256)
    with pytest.raises(ArgumentError, match="needs 1 texts"):
        attack(model_of(16), [[3]], (1,), 1.0, 0.0, CPU, 256)


def test_it_repeats_and_leaves_the_model_alone() -> None:
    model = model_of(16)
    before = {n: p.clone() for n, p in model.named_parameters()}
    first = attack(model, texts(), (1, 2), 1.0, 0.01, CPU, 256, wanted=3, seed=5)
    assert first == attack(model, texts(), (1, 2), 1.0, 0.01, CPU, 256, wanted=3, seed=5)
    assert first.shares[0].texts == 3
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    document = json.loads(json.dumps(first.document(), allow_nan=False))
    assert [s["noise"] for s in document["shares"]] == [False, True, False, True]


# --- updates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [1e-3, 1e6])
def test_updates_are_those_of_the_training(clip_norm: float) -> None:
    """The simulated user's clipped gradient is the one that the training would sum. Broken by clipping a part of it."""
    given = texts(3, 9, 128)
    model = adapted(targets=["q_proj", "v_proj"], r=4, freeze_a=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    names = tuple(n for n, p in model.named_parameters() if p.requires_grad and "layers.0." in n)
    found = reconstruction._Gradients(model, given, clip_norm, names, CPU).summed([0, 1, 2])
    trainables = find_trainables(model)
    sink = UnitGradients(trainables, CPU)
    sink.begin(Layout.of_rows(range(3), CPU))
    weighted_loss(pad(given, CPU), [1 / 8] * 3)(model).backward()
    sink.finish(torch.full((3,), clip_norm, dtype=torch.float64), continues=False)
    for trainable in trainables:
        if trainable.name in names:
            expected = trainable.view(sink.total)
            assert torch.allclose(found[trainable.name], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_large_gradients_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = attack(model_of(16), texts(4), (1, 2), 1.0, 0.0, CPU, 256)
    monkeypatch.setattr(reconstruction, "_KEPT_BYTES", 0)
    assert attack(model_of(16), texts(4), (1, 2), 1.0, 0.0, CPU, 256) == kept


# --- pursuit ------------------------------------------------------------------------------------------------


def mixed(
    rng: np.random.Generator, rank: int, tokens: int, dimensions: int
) -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    entries = torch.from_numpy(rng.normal(size=(2000, dimensions)).astype(np.float32))
    chosen = rng.choice(2000, tokens, replace=False)
    mixing = torch.from_numpy(rng.normal(size=(rank, tokens)).astype(np.float32))
    return mixing @ entries[chosen], entries, set(chosen.tolist())


@pytest.mark.parametrize(
    ("rank", "tokens", "dimensions"), [(40, 10, 16), (10, 10, 14), (30, 30, 64), (4, 6, 64), (1, 4, 64)]
)
def test_pursuit_finds_what_can_be_found(rank: int, tokens: int, dimensions: int) -> None:
    """Full rank: all of it, where dimensions are to spare. Low rank: by picking one after another."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        update, entries, chosen = mixed(rng, rank, tokens, dimensions)
        assert set(pursue([Block(update, entries, 0.0)], tokens)) == chosen


def test_sources_help_each_other() -> None:
    """Two blocks of few dimensions, each of which alone leaves doubts."""
    rng = np.random.default_rng(1)
    alone, together = 0, 0
    for _ in range(10):
        first, entries, chosen = mixed(rng, 3, 4, 7)
        other = torch.from_numpy(rng.normal(size=(2000, 7)).astype(np.float32))
        mixing = torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32))
        second = mixing @ other[sorted(chosen)]
        alone += len(chosen & set(pursue([Block(first, entries, 0.0)], 4)))
        together += len(chosen & set(pursue([Block(first, entries, 0.0), Block(second, other, 0.0)], 4)))
    assert together > alone + 5


def test_an_update_of_nothing_still_gives_different_tokens() -> None:
    entries = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    entries[3] = 0
    found = pursue([Block(torch.zeros(7, 5), entries, 0.0)], 30)
    assert sorted(found) == list(range(30))
    assert pursue([Block(entries[4:6], entries, 0.0)], 2) in ([4, 5], [5, 4])


def test_noise_that_is_known_is_not_taken_for_signal() -> None:
    """Broken by taking all singular values: with noise, all dimensions are spanned."""
    rng = np.random.default_rng(2)
    update, entries, chosen = mixed(rng, 40, 8, 32)
    noisy = update + 0.1 * torch.from_numpy(rng.normal(size=update.shape).astype(np.float32))
    assert set(pursue([Block(noisy, entries, 0.1)], 8)) == chosen
    assert not Block(noisy, entries, 0.0).spans
    assert Block(noisy, entries, 0.1).spans
