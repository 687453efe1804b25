"""The base model with its adapter: built the same everywhere, refused where it would couple users, saved for peft."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import ArgumentError
from harness.spec.models import AdapterBlock, ModelBlock
from harness.training import tokenizer as tokenizer_module
from harness.training.adapters import check_supported as _check_supported
from harness.training.checkpoints import load_newest
from harness.training.job import Folder
from harness.training.model import Base, build_model, find_base, frozen_factors
from harness.training.tokenizer import Facts, LazyTokenizer, check_fits, load_tokenizer
from tests.tiny import save_base
from tests.training import checks


def block(base: Path, dtype: str = "float32", **adapter: Any) -> ModelBlock:
    return ModelBlock(
        base=str(base),
        dtype=dtype,
        adapter=AdapterBlock(**{"r": 4, "alpha": 16, "targets": ("q_proj", "v_proj"), "freeze_a": False, **adapter}),
    )


# --- saved for plain peft -----------------------------------------------------------------------------------


def test_what_some_record_could_break_is_refused_beforehand(base: Path, tmp_path: Path) -> None:
    """Whether a run ends must not depend on what a user wrote. Break: either check taken out."""
    found, tokenizer = Base(base, ""), load_tokenizer(Base(base, ""))
    check_fits(Facts.of(found), 256)
    with pytest.raises(ArgumentError, match=r"data.max_tokens: 257, but the model's context has 256 tokens"):
        check_fits(Facts.of(found), 257)
    short = tmp_path / "short"
    shutil.copytree(base, short)
    config = json.loads((short / "config.json").read_text())
    highest = max(tokenizer.get_vocab().values())
    (short / "config.json").write_text(json.dumps({**config, "vocab_size": highest}))
    with pytest.raises(ArgumentError, match=f"tokens up to {highest}, its embeddings only {highest}"):
        check_fits(Facts.of(Base(short, "")), 8)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_follow_the_longest_row_are_refused(base: Path, tmp_path: Path, kind: str) -> None:
    """Beyond their first context, one user's long example would change the others' gradients: seen of `longrope`.

    Break: the check taken out.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "positions"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    heads = config["hidden_size"] // config["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * heads, "long_factor": [4.0] * heads} if kind == "longrope" else {"factor": 2.0}
    positions = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": positions}))
    found = Base(folder, "")
    check_fits(Facts.of(found), 64)
    with pytest.raises(ArgumentError, match=r"data.max_tokens: 65, but the model's positions .* at most 64"):
        check_fits(Facts.of(found), 65)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    ids = torch.arange(40)[None] % 90
    narrow = model(ids, use_cache=False).logits
    wide = model(torch.nn.functional.pad(ids, (0, 60)), use_cache=False).logits[:, :40]
    if kind == "longrope":
        assert float((narrow - wide).detach().abs().max()) > 1e-4  # what is refused


@pytest.mark.parametrize("kind", ["plain", "tied", "freeze_a"])
def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(
    new_run: Callable[..., Path], workers: Callable[[int], Any], base: Path, tied_base: Path, kind: str
) -> None:
    """After two workers at ZeRO 3. Broken by saving the weights of the beginning, under names that peft ignores, or
    without the factors that are not trained (peft would draw others).
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tied_base if kind == "tied" else base
    adapting = {"targets": ["q_proj", "v_proj", "down_proj"], "freeze_a": kind == "freeze_a"}
    run_dir = new_run(folder, model={"adapter": adapting}, compute={"deepspeed": {"stage": 3}})
    assert workers(2)(checks.train, run_dir) == [None, None]
    adapter = Folder(run_dir).adapter
    assert {p.name for p in adapter.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 95, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        untuned = plain(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(plain, adapter).eval()
    trained = build_model(folder, block(folder, alpha=8.0, **adapting), seed=3)
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(checkpoint.parameters[name])
    with torch.no_grad():
        expected, found = trained(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.equal(found, expected)
    assert (found - untuned).abs().max() > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("tide lamp", return_tensors="pt")
    written = loaded.generate(input_ids=prompt["input_ids"], max_new_tokens=5, do_sample=False)
    assert written.shape[1] > prompt["input_ids"].shape[1]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert config["inference_mode"]
    assert sorted(config["target_modules"]) == sorted(adapting["targets"])
    assert not list(run_dir.glob(".adapter*"))


# --- built the same everywhere ------------------------------------------------------------------------------


def test_the_adapter_is_a_function_of_the_seed_alone(base: Path) -> None:
    """Broken by the process's own random stream: ranks would begin from different adapters."""
    models = []
    for stream, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(stream)
        models.append({n: p for n, p in build_model(base, block(base), seed).named_parameters() if p.requires_grad})
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
    assert any(not torch.equal(models[0][n], models[2][n]) for n in models[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_frozen_in_its_type_and_the_adapter_is_float32(base: Path, dtype: str) -> None:
    model = build_model(base, block(base, dtype), 0)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else getattr(torch, dtype))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_only_the_adapters_dropout_is_in_training_mode(base: Path, dropout: float) -> None:
    model = build_model(base, block(base, dropout=dropout), 0)
    assert not model.training
    training = {n for n, m in model.named_modules() if m.training}
    assert all("lora_dropout" in n for n in training)
    assert bool(training) == (dropout > 0)


# --- refused ------------------------------------------------------------------------------------------------


def test_a_target_that_the_model_has_not_is_refused_with_a_suggestion(base: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        build_model(base, block(base, targets=("q_proj", "v_prj")), 0)
    assert str(caught.value) == (
        'model.adapter.targets.1: the model has no linear layer "v_prj"; did you mean "v_proj"?'
    )


def test_a_target_that_is_like_nothing_is_refused_with_the_layers_there_are(base: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        build_model(base, block(base, targets=("zzzzzz",)), 0)
    message = str(caught.value)
    assert message.startswith('model.adapter.targets.0: the model has no linear layer "zzzzzz" (there are: ')
    assert "q_proj" in message


class Odd(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(2, 2), nn.Linear(2, 2)
        self.config = type("Config", (), config)()


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_mixtures_of_experts_are_refused(base: Path, key: str) -> None:
    """Capacity-limited routing makes one user's gradient depend on another's."""
    _check_supported(Odd(**{key: 0}), block(base))
    with pytest.raises(ArgumentError) as caught:
        _check_supported(Odd(**{key: 8}), block(base))
    assert str(caught.value) == "model.base: mixture-of-experts models are not supported: routing couples users"


def test_batch_normalisation_is_refused(base: Path) -> None:
    odd = Odd()
    odd.norm = nn.BatchNorm1d(2)
    with pytest.raises(ArgumentError) as caught:
        _check_supported(odd, block(base))
    assert str(caught.value) == "model.base: batch normalisation couples users and can't be trained privately"


# --- found --------------------------------------------------------------------------------------------------


def test_a_folder_is_found_by_its_path_and_beside_the_spec(base: Path, tmp_path: Path) -> None:
    assert find_base(str(base), tmp_path, tmp_path) == Base(base.resolve(), "a local folder")
    assert find_base(base.name, base.parent, tmp_path).folder == base.resolve()


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "just-a-name"])
def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        find_base(name, tmp_path, tmp_path)
    form = "" if "/" in name else ", which is OWNER/NAME, as openai-community/gpt2"
    assert str(caught.value) == f'model.base: "{name}" is neither a folder with a config.json nor a hub id{form}'


def test_digests_tell_models_and_tokenizers_apart(base: Path, tied_base: Path, tmp_path: Path) -> None:
    """Broken by a digest of names and sizes: a run would be resumed on other weights."""
    same, other = save_base(tmp_path / "same"), save_base(tmp_path / "other", seed=1)
    bases = [Base(p, "") for p in (base, same, other, tied_base)]
    assert bases[0].digest == bases[1].digest
    assert len({b.digest for b in bases}) == 3
    assert len({b.tokenizer_digest for b in bases}) == 1
    path = other / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert Base(other, "").tokenizer_digest != bases[0].tokenizer_digest


def test_the_tokenizer_of_the_tiny_model_gives_texts_back(base: Path) -> None:
    tokenizer = load_tokenizer(Base(base, ""))
    ids = tokenizer("a lamp, 7 ~", add_special_tokens=False)["input_ids"]
    assert len(ids) == 11
    assert tokenizer.decode(ids) == "a lamp, 7 ~"
    assert tokenizer.eos_token_id == 95


def test_a_first_factor_that_is_frozen_is_not_trained(base: Path) -> None:
    free, frozen = (build_model(base, block(base, freeze_a=value), 0) for value in (False, True))
    names = {n for n, p in free.named_parameters() if p.requires_grad}
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {n for n in names if ".lora_B." in n}
    assert frozen_factors(free) == {}
    assert set(frozen_factors(frozen)) == {n for n in names if ".lora_A." in n}
    drawn = dict(free.named_parameters())
    assert all(torch.equal(value, drawn[name]) for name, value in frozen_factors(frozen).items())


def test_a_saved_adapter_replaces_an_older_one_as_a_whole(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from harness.training.model import save_adapter

    model = build_model(base, block(base), 0)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    target = tmp_path / "adapter"
    save_adapter(copy.deepcopy(model), weights, "first", target)
    (target / "stray").write_text("")
    save_adapter(model, {n: v + 1 for n, v in weights.items()}, "second", target)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
    assert not (target / "stray").exists()
    saved = load_file(str(target / "adapter_model.safetensors"))
    assert len(saved) == len(weights)
    for name, value in saved.items():
        np.testing.assert_array_equal(value, weights[name.replace(".weight", ".default.weight")] + 1)


def test_what_is_known_of_a_tokenizer_is_remembered(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without loading it again, until a file of it changes. Red when the digests are left out of the key."""
    monkeypatch.setenv("UUDP_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "base"
    shutil.copytree(base, own)
    first = Facts.of(Base(own, ""))
    whole = load_tokenizer(Base(own, ""))
    assert (first.eos, first.highest) == (whole.eos_token_id, max(whole.get_vocab().values()))
    loads: list[Base] = []
    monkeypatch.setattr(tokenizer_module, "load_tokenizer", lambda one: loads.append(one) or whole)
    assert Facts.of(Base(own, "")) == first
    lazy = LazyTokenizer(Base(own, ""), first)
    assert lazy.eos_token_id == first.eos
    sent = pickle.loads(pickle.dumps(lazy))
    assert sent.eos_token_id == first.eos
    assert not loads
    assert (
        lazy(["ab ab"], add_special_tokens=False)["input_ids"]
        == whole(["ab ab"], add_special_tokens=False)["input_ids"]
    )
    assert lazy.chat_template == whole.chat_template
    assert len(loads) == 1
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    assert Facts.of(Base(own, "")).context == 128
    assert len(loads) == 2
