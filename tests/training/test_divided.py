"""All parameters trained at ZeRO 3: no worker ever holds the whole model, and nothing else changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.training.checkpoints import load_newest
from harness.training.job import Failure, Folder
from tests.tiny import copy_run, make_mechanism, make_run
from tests.training import checks, divided
from tests.training.test_resume import last
from tests.training.whole import save_family

SGD = {"type": "sgd", "lr": 0.5}
ADAMW = {"type": "adamw", "lr": 1e-3, "weight_decay": 0.1}
FULL = {"adapter": {"type": "full"}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose two embeddings are one matrix."""
    return save_family(tmp_path_factory.mktemp("families") / "llama", "llama")


def whole_run(target: Path, base: Path, cache: Path, optimizer: Any = SGD, stage: int = 3) -> Path:
    """A run of four steps with a checkpoint after two."""
    return make_run(
        target,
        base,
        cache=cache,
        mechanism=make_mechanism(steps=4, noise_std=0.1, clip_norms=(3.3, 4.0), examples_per_user=1),
        train={"checkpoint_every": 2, "optimizer": optimizer},
        model=FULL,
        compute={"deepspeed": {"stage": stage}, "microbatch_tokens": 70},
    )


@pytest.mark.slow
def test_no_worker_ever_holds_the_whole_model(
    deep_base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """From loading to saving, and where it goes on. The largest weight is 2 % of the model; on 2 workers each has half.

    Seen red, each alone: weights loaded whole; a zero gradient of the model's size in `restore`; `parameters` as
    a dictionary; a file of everything; every rank materialising all weights when it verifies.
    """
    run_dir = make_run(
        tmp_path / "run",
        deep_base,
        cache=cache,
        mechanism=make_mechanism(steps=2, noise_std=0.1, rates=(0.15, 0.15), examples_per_user=1),
        train={"checkpoint_every": 1, "optimizer": SGD},
        model=FULL,
        compute={"deepspeed": {"stage": 3}, "microbatch_tokens": 70, "gradient_checkpointing": True},
        evaluation={"users": 1},
    )
    for most, size in workers(2)(divided.most_beside, run_dir):
        assert size["part"] == pytest.approx(size["whole"] / 2, rel=1e-3)
        assert set(most) == set(divided.PHASES)
        shares = {phase: bytes_ / size["whole"] for phase, bytes_ in most.items()}
        print({phase: round(share, 3) for phase, share in shares.items()})
        assert shares.pop("loading") < 0.75
        # Beside the half of the gradients that it looks at.
        assert shares.pop("verifying") - 0.5 < 0.35
        assert max(shares.values()) < 0.35, shares
    assert Folder(run_dir).model.exists()


@pytest.mark.slow
def test_no_worker_ever_holds_the_whole_base_of_an_adapter(
    deep_base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """With norms and biases of the base trained beside it. Seen red: the base loaded whole."""
    adapter = {"r": 1, "targets": ["v_proj"], "bias": "all", "also": ["norm", "input_layernorm"]}
    run_dir = make_run(
        tmp_path / "run",
        deep_base,
        cache=cache,
        mechanism=make_mechanism(steps=2, noise_std=0.1, rates=(0.15, 0.15), examples_per_user=1),
        train={"checkpoint_every": 1, "optimizer": SGD},
        model={"adapter": adapter},
        compute={
            "deepspeed": {"stage": 3}, "microbatch_tokens": 34, "gradient_checkpointing": True, "packing": "off"
        },
        evaluation={"users": 1},
    )  # fmt: skip
    for rank, (most, size) in enumerate(workers(2)(divided.most_beside, run_dir, adapter=True)):
        assert size["part"] == pytest.approx(size["whole"] / 2, rel=1e-2)
        assert set(most) == set(divided.ADAPTER_PHASES) - ({"saving"} if rank else set())
        shares = {phase: bytes_ / size["whole"] for phase, bytes_ in most.items()}
        print({phase: round(share, 3) for phase, share in shares.items()})
        assert shares.pop("loading") < 0.75
        assert max(shares.values()) < 0.4, shares
    assert Folder(run_dir).adapter.exists()


def test_it_is_the_same_training(llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]) -> None:
    """Whole at stage 0, divided at stage 3, where files are small."""
    plain = whole_run(tmp_path / "plain", llama, cache, stage=0)
    parted = copy_run(plain, tmp_path / "parted", compute={"deepspeed": {"stage": 3}})
    assert workers(1)(checks.train, plain) == [None]
    assert workers(2)(divided.train_in_pieces, parted) == [None] * 2
    assert last(plain).initial == last(parted).initial
    for name, value in last(plain).parameters.items():
        np.testing.assert_allclose(last(parted).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-5)
    assert "parameters-00002.safetensors" in divided.newest_files(parted)


@pytest.mark.parametrize("world", [1, 2])
def test_verifying_leaves_no_trace(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any], world: int
) -> None:
    """Weights and optimizer after two steps, bit for bit. Seen red: without forgetting the gradients."""
    runs = [whole_run(tmp_path / name, llama, cache, ADAMW) for name in ("verified", "trusted")]
    ranks = [workers(world)(divided.weights_and_state, run, verified=run is runs[0]) for run in runs]
    for (weights, state, steps), (others, other_state, other_steps) in zip(*ranks, strict=True):
        assert steps == other_steps == 2
        for found, expected in ((weights, others), (state, other_state)):
            assert found.keys() == expected.keys()
            assert found
            assert all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("world", [1, 2])
def test_what_can_not_be_trained_is_named_by_all_ranks(workers: Callable[[int], Any], world: int) -> None:
    """As where the model is whole (`test_ghost`): a weight that is used twice, whichever rank looks at it.

    Seen red: differences that are not added up over ranks.
    """
    unknown = "the model uses it in a way that is not known here; an adapter (type: lora) trains without it"
    starts = {
        "up_proj": f"model.layers.0.mlp.up_proj.weight: {unknown}",
        "down_proj": f"model.layers.0.mlp.down_proj.weight: {unknown}",
        "odd": f"model.norm.weight: {unknown}",
        "unused": "model.unused: the loss does not depend on it",
        "bilinear": "model.extra (Bilinear): only linear",
        "shared": "model.layers.0.mlp.gate_proj.weight: model.layers.0.mlp.gate_proj, model.layers.1.mlp.gate_proj",
    }
    for found in workers(world)(divided.refusals):
        assert found.keys() == starts.keys()
        for name, start in starts.items():
            assert found[name].startswith(f"model.adapter.type: full can't train {start}"), found[name]


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any], after: int
) -> None:
    """Its files are written while all ranks gather weights: all give up with one sentence, and the older one stays.

    Seen red: rank 0 raising at once, for which rank 1 waits.
    """
    run_dir = whole_run(tmp_path / "run", llama, cache)
    said = workers(2)(divided.full_in_the_middle, run_dir, after, timeout=200.0)
    failure = Failure.load(run_dir)
    assert failure is not None
    assert re.search(r"step-00000002 could not be written: .*File too large", failure.message)
    assert said == [failure.message, "the first worker could not write"]
    assert last(run_dir).step == 0
    Folder(run_dir).failure.unlink()
    assert workers(2)(divided.train_in_pieces, run_dir) == [None, None]
    assert last(run_dir).step == 4
    assert sorted(p.name for p in Folder(run_dir).checkpoints("private").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]


def test_a_checkpoint_that_not_every_worker_can_read(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """Seen red: each rank going on from what it can read itself."""
    run_dir = whole_run(tmp_path / "run", llama, cache)
    workers(2)(checks.stopped_after_release_of, run_dir, 2)
    message = "not every worker can read the checkpoint of step 3; all need this folder"
    said = workers(2)(divided.one_cannot_read, run_dir)
    assert [text is not None and text.endswith(message) for text in said] == [True, True]


def test_a_damaged_file_is_passed_over_by_all_ranks(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """A file of step 3 has another bit: all go on from step 2, and come to the same end."""
    plain = whole_run(tmp_path / "plain", llama, cache, ADAMW)
    run_dir = tmp_path / "run"
    shutil.copytree(plain, run_dir)
    assert workers(2)(checks.train, plain) == [None, None]
    workers(2)(checks.stopped_after_release_of, run_dir, 2)
    checkpoint = Folder(run_dir).checkpoints("private") / "step-00000003"
    path = max(checkpoint.glob("parameters*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert last(run_dir).step == 2
    assert workers(2)(checks.train, run_dir) == [None, None]
    for name, value in last(plain).parameters.items():
        assert torch.equal(last(run_dir).parameters[name], value)


@pytest.mark.slow
def test_sizes_that_do_not_divide_by_the_number_of_workers(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """Three workers, from and to one. Seen red: DeepSpeed's own setters, which reach beyond a weight's end."""
    run_dir = whole_run(tmp_path / "run", llama, cache, ADAMW)
    workers(3)(checks.stopped_after_release_of, run_dir, 2)
    moved = copy_run(run_dir, tmp_path / "moved", compute={"deepspeed": {"stage": 0}})
    assert workers(3)(checks.train, run_dir) == [None] * 3
    assert workers(1)(checks.train, moved) == [None]
    for name, value in last(moved).parameters.items():
        np.testing.assert_allclose(last(run_dir).parameters[name].numpy(), value.numpy(), rtol=0, atol=5e-6)


def test_the_model_in_many_files_is_the_one_that_was_trained(
    llama: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """With an index, as transformers has it; tied weights once."""
    from transformers import AutoModelForCausalLM

    run_dir = whole_run(tmp_path / "run", llama, cache)
    with_small_files = workers(2)(divided.train_in_pieces, run_dir)
    assert with_small_files == [None, None]
    folder = Folder(run_dir).model
    names = {path.name for path in folder.glob("model*")}
    count = len(names) - 1
    assert count > 1
    assert names == {"model.safetensors.index.json"} | {
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    }
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found = dict(model.named_parameters())
    assert set(found) == set(checkpoint.parameters)
    assert all(torch.equal(found[name], value) for name, value in checkpoint.parameters.items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
