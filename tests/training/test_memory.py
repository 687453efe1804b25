"""Little memory: micro-batches are halved, activations forgotten, and what is learnt stays the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import MachineError
from harness.training.job import Folder, Job, halvings
from harness.training.memory import MicroBatchTooLarge, halving, is_out_of_memory, keep_tokens, microbatch_tokens
from tests.tiny import copy_run, make_mechanism
from tests.training import checks
from tests.training.test_resume import last, released

LONG = [{"user": f"user-{u:02d}", "text": f"{u} tide lamp ember " * 30, "plan": "free"} for u in range(48)]


def starved(run_dir: Path, mib: int, what: str = "train") -> int:
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "LOCAL_RANK": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    command = [sys.executable, "-m", "tests.training.starved", str(run_dir), str(mib), what]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 3), done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1]) if what == "try" else done.returncode


def test_a_micro_batch_that_does_not_fit_is_halved_and_drops_nobody(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """With real limits on a process: attempts go on from the checkpoint until the same weights are reached.

    Red when the size found is not kept for the next attempt.
    """
    run_dir = new_run(
        posts=LONG,
        mechanism=make_mechanism(steps=3, noise_std=0.1, rates=(0.9, 0.9), users=(40.0, 8.0)),
        data={"max_tokens": 128},
        compute={"microbatch_tokens": 8192},
    )
    plenty = copy_run(run_dir, tmp_path / "plenty")
    assert workers(1)(checks.train, plenty) == [None]
    attempts = 0
    while (code := starved(run_dir, 40)) == 3:
        attempts += 1
        assert attempts <= halvings(8192, 128)
    assert code == 0
    assert attempts >= 1
    found = json.loads(Folder(run_dir).microbatch.read_text())["tokens"]
    assert found == 8192 // 2**attempts
    assert released(run_dir) == released(plenty)
    for name, value in last(plenty).parameters.items():
        np.testing.assert_allclose(last(run_dir).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-5)
    public = [p for p in run_dir.rglob("*") if p.is_file() and Folder(run_dir).private not in p.parents]
    assert not any(str(found) in p.read_text(errors="ignore") for p in public if p.suffix in {".json", ".jsonl"})


def test_nothing_left_to_halve_is_said(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(data={"max_tokens": 128})
    job, folder = Job.load(run_dir), Folder(run_dir)
    said = r"^out of memory with one example at a time \(data.max_tokens: 128\); try "
    with pytest.raises(MachineError, match=said), halving(job, folder, 128):
        torch.empty(2**58, dtype=torch.uint8)
    assert not folder.microbatch.exists()
    with pytest.raises(MicroBatchTooLarge), halving(job, folder, 200):
        torch.empty(2**58, dtype=torch.uint8)
    assert json.loads(folder.microbatch.read_text()) == {"tokens": 128}
    with pytest.raises(RuntimeError, match="shapes"), halving(job, folder, 100):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("tokens", "longest", "times"), [(128, 128, 0), (64, 128, 0), (129, 128, 1), (1024, 128, 3), (1000, 3, 8)]
)
def test_how_often_a_micro_batch_can_be_halved(tokens: int, longest: int, times: int) -> None:
    assert halvings(tokens, longest) == times


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 2), (1, 3), (2, 3)])
def test_checkpointed_activations_change_nothing(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path, world: int, stage: int
) -> None:
    """Red with re-entrant checkpoints, under which the first layer gets no gradient."""
    plain = new_run(
        mechanism=make_mechanism(noise_std=0.1), compute={"deepspeed": {"stage": stage}, "microbatch_tokens": 70}
    )
    spared = copy_run(plain, tmp_path / "spared", compute={"gradient_checkpointing": True})
    for run_dir in (plain, spared):
        assert workers(world)(checks.train, run_dir) == [None] * world
    for name, value in last(plain).parameters.items():
        np.testing.assert_allclose(last(spared).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-6)


def test_checkpointed_activations_are_forgotten(base: Path) -> None:
    """What a forward pass keeps for the backward is less than half. Red when the layers are not wrapped."""
    assert checks.saved_bytes(base, checkpointed=True) < 0.5 * checks.saved_bytes(base, checkpointed=False)


@pytest.mark.parametrize(
    ("world", "stage", "offload"),
    [(1, 1, "optimizer"), (2, 2, "optimizer"), (1, 3, "optimizer"), (2, 3, "parameters")],
)
def test_offloading_changes_nothing(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path, world: int, stage: int, offload: str
) -> None:
    """Nor does going on from a checkpoint. Red when the noisy gradient never reaches the optimizer."""
    plain = new_run(mechanism=make_mechanism(noise_std=0.1))
    sharding = {"stage": stage, "offload": offload}
    offloaded = copy_run(plain, tmp_path / "offloaded", compute={"deepspeed": sharding})
    assert workers(1)(checks.train, plain) == [None]
    Folder(offloaded).stop.touch()
    assert workers(world)(checks.train, offloaded) == [None] * world
    assert last(offloaded).step == 1
    Folder(offloaded).stop.unlink()
    assert workers(world)(checks.train, offloaded) == [None] * world
    for name, value in last(plain).parameters.items():
        np.testing.assert_allclose(last(offloaded).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-6)


def test_a_size_is_tried_out_on_made_up_tokens(new_run: Callable[..., Path]) -> None:
    """With a real limit: what is found fits, and twice of it does not. Red when nothing is tried."""
    run_dir = new_run(data={"max_tokens": 128}, compute={"microbatch_tokens": "auto"})
    assert 128 <= starved(run_dir, 20, "try") < 8192
    assert starved(run_dir, 4000, "try") == 8192
    assert not Folder(run_dir).microbatch.exists()


def test_an_automatic_size_is_kept(new_run: Callable[..., Path]) -> None:
    """What was chosen once stays, on whatever machine the run goes on; the spec's own is never exceeded."""
    run_dir = new_run(compute={"microbatch_tokens": "auto"})
    job, folder = Job.load(run_dir), Folder(run_dir)
    assert microbatch_tokens(job, folder) == 1024
    keep_tokens(folder, 4096)
    assert microbatch_tokens(job, folder) == 4096
    assert microbatch_tokens(Job.load(new_run(compute={"microbatch_tokens": 64})), folder) == 64
