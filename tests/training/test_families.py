"""Every family of models and every kind of trainable parameter, against a loop over users in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.data.cohorts import MicroBatch, micro_batches
from harness.errors import ArgumentError
from harness.spec.adapter_block import AdapterBlock
from harness.spec.models import ModelBlock
from harness.training.adapters import add_adapter, check_supported
from harness.training.batches import collate_units, summed_loss
from harness.training.checkpoints import load_newest
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.job import Folder
from harness.training.memory import checkpoint_layers
from harness.training.model import build_model, save_adapter
from tests.training import checks
from tests.training.families import EXPERTS, FAMILIES, move, saved
from tests.training.reference import unit_gradient
from tests.training.test_gradients import CPU, Texts, relative_error

LENGTHS = ((5, 9, 3), (9,), (16, 4, 7))
EVERYTHING = "lora, norms, biases, embeddings"
BIASED = [name for name, family in FAMILIES.items() if family.bias]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return saved(lambda name: tmp_path_factory.mktemp("families") / name)


def adapter_of(name: str, what: str) -> AdapterBlock:
    """LoRA on every linear layer with all else beside it, or biases or norms alone."""
    if what != EVERYTHING:
        return AdapterBlock(type=what)  # type: ignore[arg-type]
    family = FAMILIES[name]
    bias = "all" if family.bias else "none"
    return AdapterBlock(r=3, alpha=16, freeze_a=False, targets="all-linear", bias=bias, also=family.also)  # type: ignore[arg-type]


class Adapted:
    """A model whose adapter has moved, what collects its gradients, and a copy for the reference."""

    def __init__(self, folder: Path, adapter: AdapterBlock, *, dtype: str = "float32", forgets: bool = False) -> None:
        self.model = build_model(folder, ModelBlock(base=str(folder), dtype=dtype, adapter=adapter), seed=2)  # type: ignore[arg-type]
        move(self.model)
        self.plain = copy.deepcopy(self.model)
        if forgets:
            assert checkpoint_layers(self.model) == 2
        self.trainables = find_trainables(self.model)
        self.sink = UnitGradients(self.trainables, CPU, getattr(torch, dtype))

    def of_each_user(self, texts: Texts, batches: Sequence[MicroBatch], clip_norm: float = math.inf) -> list[Tensor]:
        """Every user's (clipped) gradient, in one pass over the micro-batches: what is added as a unit is completed."""
        found: dict[int, Tensor] = {}
        self.sink.reset()
        for batch in batches:
            rows, layout = collate_units(texts, batch, CPU)
            self.sink.begin(layout)
            weights = torch.tensor([1.0 / unit.targets for unit in batch.units])
            torch.autograd.backward(summed_loss(rows, layout, weights)(self.model))
            done = batch.units[: len(batch.units) - batch.continues]
            held, carried = self.sink._units, self.sink._carried
            assert held is not None
            for i, unit in enumerate(done):
                # One at a time: all others are clipped to nothing.
                self.sink._units, self.sink._carried = held.clone(), carried
                limits = [clip_norm if other is unit else 0.0 for other in batch.units]
                self.sink.total.zero_()
                norms = self.sink.finish(torch.tensor(limits, dtype=torch.float64), continues=batch.continues)
                found[unit.user] = self.sink.total.clone()
                assert float(norms[i]) > 0
            if not done:
                self.sink._units, self.sink._carried = held, carried
                self.sink.finish(torch.tensor([0.0], dtype=torch.float64), continues=True)
            for parameter in self.model.parameters():
                assert parameter.grad is None
        return [found[user] for user in range(len(texts.users))]

    def reference(self, texts: Texts) -> list[Tensor]:
        plain = copy.deepcopy(self.plain).double()
        return [unit_gradient(plain, [t.tolist() for t in own]) for own in texts.users]


def cut(texts: Texts, budget: int, *, pack: bool = False) -> list[MicroBatch]:
    return micro_batches(texts.units(), texts.lengths, budget, pack=pack)


CASES = [(name, what) for name in FAMILIES for what in (EVERYTHING, "norms")] + [(name, "bias") for name in BIASED]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_users_gradients_equal_a_loop_over_users(folder: Any, name: str, what: str) -> None:
    """Seen red: positions that all rows share (gpt2); Gemma's norms as if they scaled by the weight itself; the row of
    the padding token learnt (opt).
    """
    adapted = Adapted(folder(name), adapter_of(name, what))
    texts = Texts(LENGTHS)
    references = adapted.reference(texts)
    for budget in (24, 100_000):
        batches = cut(texts, budget)
        assert any(b.continues for b in batches) == (budget == 24)
        for found, expected in zip(adapted.of_each_user(texts, batches), references, strict=True):
            assert expected.norm() > 1e-3
            assert relative_error(found, expected) < 1e-5
            for trainable in adapted.trainables:
                own, true = trainable.view(found), trainable.view(expected)
                # By itself too, or a small one could be wrong; a key's bias alone has no gradient but rounding.
                assert float((own - true).norm()) < 1e-5 * float(true.norm()) + 1e-7 * float(expected.norm()), (
                    trainable.name
                )


@pytest.mark.parametrize("name", FAMILIES)
def test_another_users_text_changes_no_gradient_bit_for_bit(folder: Any, name: str) -> None:
    """With all kinds at once. Broken by adding a row to the wrong unit, or dividing by what the micro-batch holds."""
    adapted = Adapted(folder(name), adapter_of(name, EVERYTHING))
    before, after = Texts(LENGTHS), Texts(LENGTHS)
    changed = 0
    after.users[changed] = [(t + 17) % 96 for t in after.users[changed]]
    for budget in (24, 100_000):
        first, second = (adapted.of_each_user(t, cut(t, budget)) for t in (before, after))
        for user, (a, b) in enumerate(zip(first, second, strict=True)):
            assert torch.equal(a, b) == (user != changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bfloat16_base_gives_float32_gradients_that_are_close(folder: Any, name: str) -> None:
    """Against the loop over users with the same rounded weights; and no clipped norm is beyond its bound."""
    half = Adapted(folder(name), adapter_of(name, EVERYTHING), dtype="bfloat16")
    kinds = {(p.requires_grad, p.dtype) for p in half.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    texts = Texts(LENGTHS)
    found, references = half.of_each_user(texts, cut(texts, 24)), half.reference(texts)
    for gradient, expected in zip(found, references, strict=True):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, expected) < 0.1
    for gradient in half.of_each_user(texts, cut(texts, 24), clip_norm=0.01):
        assert float(gradient.double().norm()) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_forgotten_activations_change_nothing(folder: Any, name: str) -> None:
    """The forward pass of every layer runs twice. Broken by recording in it."""
    adapter = adapter_of(name, EVERYTHING)
    plain, forgetful = Adapted(folder(name), adapter), Adapted(folder(name), adapter, forgets=True)
    texts = Texts(LENGTHS)
    batches = cut(texts, 24)
    for a, b in zip(plain.of_each_user(texts, batches), forgetful.of_each_user(texts, batches), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma3", "gpt2", "pythia"])
def test_users_who_share_a_row_have_the_gradients_that_they_have_alone(folder: Any, name: str) -> None:
    """Seen red: the norm of attention heads with tokens and heads taken for each other (qwen3, gemma3)."""
    adapted = Adapted(folder(name), adapter_of(name, EVERYTHING))
    texts = Texts(LENGTHS)
    references = adapted.reference(texts)
    for budget in (24, 100_000):
        batches = cut(texts, budget, pack=True)
        assert any(b.packed for b in batches)
        for found, expected in zip(adapted.of_each_user(texts, batches), references, strict=True):
            assert relative_error(found, expected) < 1e-5


def test_no_layer_keeps_a_copy_or_a_view_of_its_weight_for_the_backward_pass(folder: Any) -> None:
    """At ZeRO 3 it would hold every layer's weight whole until then. GPT-2's lie the other way round.

    Seen red: a product with the weight's transpose.
    """
    adapted = Adapted(folder("gpt2"), AdapterBlock(type="bias"))
    # What `nn.Linear` computes, as the LoRA beside biases, DeepSpeed computes with a function that keeps no view.
    named = [(n, p) for n, p in adapted.model.named_parameters() if p.dim() == 2 and "lora_" not in n]
    weights = {p.untyped_storage().data_ptr(): n for n, p in named}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    ids = torch.arange(8).unsqueeze(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted.model.get_base_model().transformer(input_ids=ids, use_cache=False)
    seen = [t for t in kept if t.untyped_storage().data_ptr() in weights]
    assert len(seen) >= 8
    for tensor in seen:
        assert tensor._base is None, weights[tensor.untyped_storage().data_ptr()]


# --- saved for plain peft -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), CASES)
def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(
    folder: Any, tmp_path: Path, name: str, what: str
) -> None:
    """Biases alone too, though PEFT has no such adapter. Broken by names that PEFT ignores, or by an untied copy."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = folder(name)
    adapted = Adapted(base, adapter_of(name, what))
    parameters = {t.name: t.parameter.detach().clone() for t in adapted.trainables}
    save_adapter(adapted.model, parameters, str(base), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.randint(2, 95, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        untuned = plain(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        expected, found = adapted.plain(input_ids=ids).logits, loaded(input_ids=ids).logits
        assert torch.equal(found, expected)
        assert (found - untuned).abs().max() > 1e-2
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)


def test_the_layers_that_are_taken_over_compute_what_they_did(folder: Any) -> None:
    ids = torch.randint(2, 95, (2, 12), generator=torch.Generator().manual_seed(3))
    for name in FAMILIES:
        adapted = Adapted(folder(name), adapter_of(name, EVERYTHING))
        with torch.no_grad():
            expected = adapted.plain(input_ids=ids).logits
            torch.testing.assert_close(adapted.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adapted.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


# --- sharded ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_one_loop(folder: Any) -> Callable[[str], tuple[dict[str, Tensor], list[Any]]]:
    """What three steps over users must come to, in float64 and one process; and the users' texts."""
    known: dict[str, tuple[dict[str, Tensor], list[Any]]] = {}

    def get(name: str) -> tuple[dict[str, Tensor], list[Any]]:
        if name in known:
            return known[name]
        cohorts = [[[t.tolist() for t in own] for own in Texts(LENGTHS, seed).users] for seed in (1, 2, 3)]
        cohorts[1] = cohorts[1][:1]  # a rank without a user
        plain = Adapted(folder(name), adapter_of(name, EVERYTHING)).plain.double()
        trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
        for cohort in cohorts:
            gradients = [unit_gradient(plain, user) for user in cohort]
            assert max(float(g.norm()) for g in gradients) > 0.5
            total = torch.stack([g * min(1.0, 0.5 / float(g.norm())) for g in gradients]).sum(0) / 4
            offset = 0
            for parameter in trained.values():
                parameter.data -= total[offset : offset + parameter.numel()].view_as(parameter)
                offset += parameter.numel()
        known[name] = ({n: p.detach() for n, p in trained.items()}, cohorts)
        return known[name]

    return get


SHARDED = [("qwen2", world, stage) for world in (1, 2) for stage in (0, 1, 2, 3)]
SHARDED += [("gpt2", 2, 3), ("gemma3", 2, 3), ("opt", 1, 2), ("pythia", 2, 1)]


@pytest.mark.parametrize(("name", "world", "stage"), SHARDED)
def test_sharded_steps_equal_a_loop_over_users(
    folder: Any, in_one_loop: Any, workers: Any, name: str, world: int, stage: int
) -> None:
    """All kinds at once, tied weights among them; and the optimizer never sees a gradient that is not zero.

    Seen red: layers that hand ones to autograd in place of zeros.
    """
    expected, cohorts = in_one_loop(name)
    for rank in workers(world)(checks.adapted, folder(name), adapter_of(name, EVERYTHING), stage, cohorts):
        assert list(rank["weights"]) == list(expected)
        for parameter, weight in rank["weights"].items():
            assert np.abs(weight - expected[parameter].numpy()).max() < 1e-5, parameter
        assert len(rank["raw"]) >= 3 * len(expected)
        assert set(rank["raw"]) == {0.0}


@pytest.mark.parametrize(("name", "what"), [("qwen2", "bias"), ("gpt2", EVERYTHING), ("gemma3", "norms")])
def test_a_whole_run_trains_it_and_saves_it_for_plain_peft(
    folder: Any, new_run: Any, workers: Any, name: str, what: str
) -> None:
    """Two workers, ZeRO 3, noise. Broken by a kind that noise, checkpoints or the saved adapter miss."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = adapter_of(name, what).model_dump(mode="json")
    run_dir = new_run(folder(name), model={"adapter": adapter}, compute={"deepspeed": {"stage": 3}})
    assert workers(2)(checks.train, run_dir) == [None, None]
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    plain = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32).eval()
    loaded = PeftModel.from_pretrained(plain, Folder(run_dir).adapter)
    held = dict(loaded.named_parameters())
    for parameter, value in checkpoint.parameters.items():
        assert torch.equal(held[parameter], value), parameter


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPERTS)
def test_mixtures_of_experts_are_refused(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, vocab_size=128, **EXPERTS[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        build_model(tmp_path, ModelBlock(base=str(tmp_path)), 0)
    assert str(caught.value) == "model.base: mixture-of-experts models are not supported: routing couples users"


@pytest.mark.parametrize(
    ("name", "adapter", "message"),
    [
        ("llama", {"type": "bias"}, "type: this model has no biases; norms is as small an adapter"),
        ("llama", {"bias": "all"}, "bias: this model has no biases; leave it out"),
        ("qwen2", {"bias": "lora_only", "targets": ("o_proj",)}, "bias: none of the targets has a bias; leave it out"),
        ("llama", {"also": ("nrm",)}, 'also.0: the model has no layer "nrm"; did you mean "norm"?'),
        ("llama", {"also": ("norm", "q_proj")}, 'also.1: "q_proj" is among the targets of the adapter already'),
        (
            "llama",
            {"also": ("mlp",)},
            'also.0: "mlp" is a LlamaMLP, which can\'t be trained privately; norms, embeddings and linear layers can',
        ),
        (
            "llama",
            {"rank_pattern": {"q_prj": 2}},
            'rank_pattern.q_prj: the model has no targeted layer "q_prj"; did you mean "q_proj"?',
        ),
        (
            "llama",
            {"alpha_pattern": {"v_prj": 2.0}},
            'alpha_pattern.v_prj: the model has no targeted layer "v_prj"; did you mean "v_proj"?',
        ),
        ("gpt2", {}, 'targets.0: the model has no linear layer "q_proj"; did you mean "c_proj"?'),
        ("gpt2", {"targets": ("wte",)}, 'targets.0: the model has no linear layer "wte" (there are: c_attn, c_fc, c_p'),
    ],
)
def test_what_a_model_does_not_have_is_refused_in_a_line(
    folder: Any, name: str, adapter: dict[str, Any], message: str
) -> None:
    block = ModelBlock(base=name, adapter=AdapterBlock(**{"targets": ("q_proj", "v_proj"), **adapter}))
    with pytest.raises(ArgumentError) as caught:
        build_model(folder(name), block, 0)
    assert str(caught.value).startswith(f"model.adapter.{message}")
    assert "\n" not in str(caught.value)


def test_a_quantised_base_is_refused(folder: Any) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder("llama"))
    block = ModelBlock(base="x")
    check_supported(model, block)
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ArgumentError, match=r"^model.base: is quantised, and .*; name the model that it was made from"):
        check_supported(model, block)


def test_a_norm_that_is_not_known_is_refused(folder: Any) -> None:
    """Broken by taking any module whose name ends in Norm for one."""

    class OwnNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(16))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.weight.exp()

    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder("llama"))
    model.model.norm = OwnNorm()
    with pytest.raises(ArgumentError) as caught:
        add_adapter(model, AdapterBlock(type="norms"))
    assert str(caught.value) == "model.adapter.type: its OwnNorm can't be trained privately; use lora"
    with pytest.raises(ArgumentError, match=r"it is used by a OwnNorm, and what can be are linear layers, norms and"):
        find_trainables(model)


# --- what PEFT is told --------------------------------------------------------------------------------------


def test_ranks_and_alphas_follow_their_patterns(folder: Any) -> None:
    adapter = AdapterBlock(
        r=4,
        alpha=16,
        freeze_a=False,
        targets=("q_proj", "v_proj"),
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"v_proj": 32.0},
        rslora=True,
    )
    adapted = Adapted(folder("llama"), adapter)
    ranks = {t.name: t.shape[0] for t in adapted.trainables if "lora_A" in t.name}
    assert sorted(ranks.values()) == [2, 4, 4, 4]
    assert next(n for n, r in ranks.items() if r == 2).endswith("layers.1.self_attn.q_proj.lora_A.default.weight")
    layers = adapted.model.get_base_model().model.layers
    assert layers[0].self_attn.q_proj.scaling["default"] == pytest.approx(16 / 4**0.5)
    assert layers[1].self_attn.q_proj.scaling["default"] == pytest.approx(16 / 2**0.5)
    assert layers[1].self_attn.v_proj.scaling["default"] == pytest.approx(32 / 4**0.5)
    texts = Texts(LENGTHS)
    for found, expected in zip(adapted.of_each_user(texts, cut(texts, 24)), adapted.reference(texts), strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora_only", 4), ("all", 6)])
def test_biases_beside_lora_are_those_that_were_asked_for(folder: Any, bias: str, expected: int) -> None:
    adapter = AdapterBlock(targets=("q_proj", "v_proj"), bias=bias)  # type: ignore[arg-type]
    adapted = Adapted(folder("qwen2"), adapter)
    assert sum(t.attribute == "bias" for t in adapted.trainables) == expected


def test_a_name_is_a_name_and_not_an_ending(folder: Any) -> None:
    """PEFT would take `norm` for every layer whose name ends so. Broken by handing it on as it is."""
    adapted = Adapted(folder("qwen3"), AdapterBlock(also=("norm",)))
    trained = [t.name for t in adapted.trainables if "lora_" not in t.name]
    assert trained == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_all_linear_leaves_the_output_layer_out(folder: Any) -> None:
    for name in FAMILIES:
        adapted = Adapted(folder(name), AdapterBlock(targets="all-linear"))
        layers = {t.name.split(".lora_")[0] for t in adapted.trainables}
        assert len(layers) == (8 if name in ("gpt2", "pythia") else 12 if name == "opt" else 14)
        assert not any("lm_head" in layer for layer in layers)
