"""Stopping, crashing and going on: the same draws, the same weights, no step released twice or too early."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.files import locked
from harness.training.checkpoints import Checkpoint, load_newest
from harness.training.job import Failure, Folder
from harness.training.released import append_missing
from tests.tiny import copy_run, make_mechanism, make_run
from tests.training import checks

ADAMW = {"type": "adamw", "lr": 1e-2, "weight_decay": 0.1}
MOMENTUM = {"type": "sgd", "lr": 0.5, "momentum": 0.9}
ALL = [("private", step) for step in (0, 2, 4, 5)]


def prepared(target: Path, base: Path, cache: Path, stage: int, optimizer: dict[str, Any], **more: Any) -> Path:
    return make_run(
        target,
        base,
        cache=cache,
        mechanism=make_mechanism(steps=5, noise_std=0.5),
        train={"checkpoint_every": 2, "optimizer": optimizer, "schedule": {"type": "linear", "warmup": 2}},
        compute={"deepspeed": {"stage": stage}, "microbatch_tokens": 70},
        **more,
    )


@pytest.fixture(scope="module")
def undisturbed(
    base: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory, workers: Callable[[int], Any]
) -> Callable[..., Path]:
    """A run that nothing interrupted."""
    known: dict[tuple[int, int, str], Path] = {}

    def get(world: int, stage: int, optimizer: dict[str, Any]) -> Path:
        key = (world, stage, optimizer["type"])
        if key not in known:
            run_dir = prepared(tmp_path_factory.mktemp("undisturbed") / "run", base, cache, stage, optimizer)
            workers(world)(checks.train, run_dir)
            known[key] = run_dir
        return known[key]

    return get


def last(run_dir: Path, series: str = "private") -> Checkpoint:
    checkpoint = load_newest(Folder(run_dir).checkpoints(series))
    assert checkpoint is not None
    return checkpoint


def released(run_dir: Path) -> list[tuple[str, int]]:
    lines = Folder(run_dir).metrics.read_text().splitlines()
    return [(row["series"], row["step"]) for row in map(json.loads, lines)]


def assert_same(found: Path, expected: Path, tolerance: float = 0.0) -> None:
    """The same weights, optimizer state and metrics."""
    a, b = last(found), last(expected)
    assert (a.step, a.optimizer_steps, a.initial) == (b.step, b.optimizer_steps, b.initial)
    for one, other in ((a.parameters, b.parameters), (a.optimizer, b.optimizer)):
        assert set(one) == set(other)
        assert one
        for name, value in other.items():
            np.testing.assert_allclose(one[name].numpy(), value.numpy(), rtol=0, atol=tolerance, err_msg=name)
    if not tolerance:
        assert Folder(found).metrics.read_bytes() == Folder(expected).metrics.read_bytes()
        adapters = [(Folder(r).adapter / "adapter_model.safetensors").read_bytes() for r in (found, expected)]
        assert adapters[0] == adapters[1]
    assert released(found) == released(expected) == ALL


@pytest.mark.parametrize(
    ("world", "stage", "optimizer"),
    [
        (1, 0, ADAMW),
        (1, 2, MOMENTUM),
        pytest.param(2, 0, MOMENTUM, marks=pytest.mark.slow),
        (2, 1, ADAMW),
        pytest.param(2, 2, ADAMW, marks=pytest.mark.slow),
        (2, 3, ADAMW),
        pytest.param(2, 3, MOMENTUM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    base: Path,
    cache: Path,
    tmp_path: Path,
    workers: Callable[[int], Any],
    undisturbed: Callable[..., Path],
    world: int,
    stage: int,
    optimizer: dict[str, Any],
) -> None:
    """Stopped after step 3, between two checkpoints. Broken by losing optimizer state, its step count, or by draws that
    count what was drawn before.
    """
    run_dir = prepared(tmp_path / "run", base, cache, stage, optimizer)
    for rank in workers(world)(checks.stopped_after_release_of, run_dir, 2):
        assert rank[:2] == ALL[:2]
    assert last(run_dir).step == 3
    assert released(run_dir) == ALL[:2]
    assert not Folder(run_dir).adapter.exists()
    assert workers(world)(checks.train, run_dir) == [None] * world
    assert_same(run_dir, undisturbed(world, stage, optimizer))


@pytest.mark.parametrize(
    ("first", "then", "optimizer"),
    [((2, 3), (1, 0), ADAMW), ((1, 0), (2, 2), MOMENTUM), ((1, 1), (2, 3), ADAMW), ((2, 2), (2, 1), MOMENTUM)],
)
def test_workers_and_stage_may_change_in_between(
    base: Path,
    cache: Path,
    tmp_path: Path,
    workers: Callable[[int], Any],
    undisturbed: Callable[..., Path],
    first: tuple[int, int],
    then: tuple[int, int],
    optimizer: dict[str, Any],
) -> None:
    run_dir = prepared(tmp_path / "run", base, cache, first[1], optimizer)
    workers(first[0])(checks.stopped_after_release_of, run_dir, 2)
    moved = copy_run(run_dir, tmp_path / "moved", compute={"deepspeed": {"stage": then[1]}})
    assert workers(then[0])(checks.train, moved) == [None] * then[0]
    assert_same(moved, undisturbed(1, 0, optimizer), tolerance=1e-5)


@pytest.mark.parametrize(("world", "stage", "step"), [(1, 0, 0), (1, 2, 3), (2, 3, 4)])
def test_a_crash_in_the_middle_of_a_step_changes_nothing(
    base: Path,
    cache: Path,
    tmp_path: Path,
    workers: Callable[[int], Any],
    undisturbed: Callable[..., Path],
    world: int,
    stage: int,
    step: int,
) -> None:
    """Steps since the last checkpoint are taken again, with the same draws, and were never released."""
    run_dir = prepared(tmp_path / "run", base, cache, stage, ADAMW)
    assert workers(world)(checks.crashed_in_step, run_dir, step) == [True] * world
    assert last(run_dir).step == step // 2 * 2
    assert released(run_dir) == [row for row in ALL if row[1] <= step]
    workers(world)(checks.train, run_dir)
    assert_same(run_dir, undisturbed(world, stage, ADAMW))


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("optimizer", [MOMENTUM, {"type": "adam", "lr": 1e-2}], ids=["sgd", "adam"])
def test_a_run_that_dies_in_its_first_step_has_no_memory_of_it(
    tmp_path: Path,
    base: Path,
    cache: Path,
    workers: Callable[[int], Any],
    stage: int,
    optimizer: dict[str, Any],
) -> None:
    """No gradient has gone into the optimizer's state yet, nor may weight decay have when it goes on.

    Broken by leaving there what the step that restores weights made of it.
    """
    decaying = {**optimizer, "weight_decay": 0.1}
    run_dir, other = (prepared(tmp_path / name, base, cache, stage, decaying) for name in ("run", "undisturbed"))
    assert workers(1)(checks.crashed_in_step, run_dir, 0) == [True]
    for each in (run_dir, other):
        workers(1)(checks.train, each)
    assert_same(run_dir, other)


KILLED = [(1, 0, ADAMW), (2, 2, ADAMW), (2, 3, MOMENTUM), (1, 3, MOMENTUM)]


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=() if seed < 2 else pytest.mark.slow) for seed in range(20)])
def test_ranks_that_are_killed_again_and_again(
    base: Path,
    cache: Path,
    tmp_path: Path,
    workers: Callable[[int], Any],
    undisturbed: Callable[..., Path],
    seed: int,
) -> None:
    """SIGKILL to a rank at random moments, four times: what is left always leads to the same end, bit for bit.

    Broken by checkpoints that are written in place, and by rows that are appended without looking which are there.
    """
    world, stage, optimizer = KILLED[seed % len(KILLED)]
    rng, kills, before = random.Random(seed), 0, b""
    expected = undisturbed(world, stage, optimizer)
    run_dir = prepared(tmp_path / "run", base, cache, stage, optimizer)
    group, metrics = workers(world), Folder(run_dir).metrics
    while kills < 4:
        moment = rng.choice(("while it builds", "between steps", "in a checkpoint"))
        delay = rng.uniform(0, 0.4 if moment == "while it builds" else 0.1 if moment == "between steps" else 0.01)
        victim = rng.randrange(world)
        begun = time.time()
        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(group, checks.train, run_dir)
            while not (training.done() or _is_at(moment, run_dir, group, begun)):
                time.sleep(0.001)
            time.sleep(delay)
            if training.done():
                break
            print(f"seed {seed}: rank {victim} of {world} is killed {moment} + {delay:.3f} s")
            group.kill(victim)
            if (error := training.exception()) is not None:
                assert re.match(r"rank \d (died|of 2:)", str(error)), error  # the other one fails in a collective
            group.close()
        kills += 1
        now = metrics.read_bytes() if metrics.exists() else b""
        assert now.startswith(before)
        before = now
    print(f"seed {seed}: {kills} kills")
    assert kills
    assert workers(world)(checks.train, run_dir) == [None] * world
    assert_same(run_dir, expected)


def _is_at(moment: str, run_dir: Path, group: Any, begun: float) -> bool:
    if moment == "in a checkpoint":
        # One that was killed in the middle of another may have left its folder.
        return group.up and any(map(begun.__lt__, map(_made, Folder(run_dir).checkpoints("private").glob(".step-*"))))
    return group.up and (moment != "between steps" or Folder(run_dir).progress.exists())


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@pytest.mark.parametrize("world", [1, 2])
def test_nothing_is_released_that_is_not_durable(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any], undisturbed: Callable[..., Path], world: int
) -> None:
    """The disk is full at step 4. Broken by releasing a row before its checkpoint is saved."""
    run_dir = prepared(tmp_path / "run", base, cache, 1, ADAMW)
    for how, told in workers(world)(checks.crashed_in_checkpoint, run_dir, 4, orderly=True):
        assert how == "returned"
        assert told == ALL[:2]
    assert released(run_dir) == ALL[:2]
    assert last(run_dir).step == 2
    assert Failure.load(run_dir) == Failure("the disk is full", exit_code=4)
    Folder(run_dir).failure.unlink()
    workers(world)(checks.train, run_dir)
    assert_same(run_dir, undisturbed(world, 1, ADAMW))


@pytest.mark.parametrize(
    ("what", "released_before"),
    [("checkpoints.save", 2), ("append_missing", 2), ("save_adapter", 4), ("write_private", 4), ("append_private", 4)],
)
def test_a_disk_that_takes_no_more(
    base: Path,
    cache: Path,
    tmp_path: Path,
    workers: Callable[[int], Any],
    undisturbed: Callable[..., Path],
    what: str,
    released_before: int,
) -> None:
    """The system refuses a checkpoint, the metrics, the adapter: all ranks give up with one sentence, and it goes on.

    Progress and diagnostics are only for looking: a run does without. Broken by a rank that waits for rank 0 for ever,
    and by a row that is released before its checkpoint is.
    """
    run_dir = prepared(tmp_path / "run", base, cache, 1, ADAMW)
    said = workers(2)(checks.train_on_a_full_disk, run_dir, what)
    assert released(run_dir) == ALL[:released_before]
    if what in ("write_private", "append_private"):
        assert said == [None, None]
    else:
        failure = Failure.load(run_dir)
        assert failure is not None
        assert failure.exit_code == 4
        assert "could not be written: " in failure.message
        assert "File too large" in failure.message
        assert said[0] == failure.message
        assert said[1] is not None
        Folder(run_dir).failure.unlink()
        assert workers(2)(checks.train, run_dir) == [None, None]
    assert_same(run_dir, undisturbed(2, 1, ADAMW))


def test_a_crash_in_a_checkpoint_releases_nothing(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    run_dir = prepared(tmp_path / "run", base, cache, 0, ADAMW)
    assert workers(1)(checks.crashed_in_checkpoint, run_dir, 4, orderly=False) == [("crashed", ALL[:2])]
    assert released(run_dir) == ALL[:2]


def damage(checkpoint: Path) -> None:
    path = checkpoint / "parameters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_checkpoint_that_released_nothing_is_passed_over(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any], undisturbed: Callable[..., Path]
) -> None:
    run_dir = prepared(tmp_path / "run", base, cache, 0, ADAMW)
    workers(1)(checks.stopped_after_release_of, run_dir, 2)
    damage(Folder(run_dir).checkpoints("private") / "step-00000003")
    assert last(run_dir).step == 2
    assert workers(1)(checks.train, run_dir) == [None]
    assert_same(run_dir, undisturbed(1, 0, ADAMW))


def test_a_released_step_is_never_computed_again(
    tmp_path: Path, workers: Callable[[int], Any], undisturbed: Callable[..., Path]
) -> None:
    """Its checkpoint is damaged, and the one before it is whole. Broken by going back to that one."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed(2, 1, ADAMW), run_dir)
    before = Folder(run_dir).metrics.read_bytes()
    damage(Folder(run_dir).checkpoints("private") / "step-00000005")
    message = "the checkpoint of step 5, which is released, is damaged; start a new run"
    assert workers(2)(checks.train, run_dir) == [message] * 2
    assert Failure.load(run_dir) == Failure(message, exit_code=4, stuck=True)
    assert Folder(run_dir).metrics.read_bytes() == before


def test_workers_that_outlive_their_driver_keep_others_out(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    """Two sets of workers on one run would release a step twice. Break: train without the workers' lease."""
    run_dir = prepared(tmp_path / "run", base, cache, 0, ADAMW)
    with locked(Folder(run_dir).worker_lease):
        message = "workers of an earlier try of this run are still at work; wait until they have ended"
        assert workers(2)(checks.train_beside_others, run_dir) == [message] * 2
        assert Failure.load(run_dir) == Failure(message, exit_code=4)
        assert not Folder(run_dir).metrics.exists()
    Folder(run_dir).failure.unlink()
    assert workers(2)(checks.train_beside_others, run_dir) == [None] * 2
    assert released(run_dir) == ALL


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, workers: Callable[[int], Any], undisturbed: Callable[..., Path]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed(1, 0, ADAMW), run_dir)
    before = (Folder(run_dir).private / "diagnostics.jsonl").read_bytes()
    workers(1)(checks.train, run_dir)
    assert (Folder(run_dir).private / "diagnostics.jsonl").read_bytes() == before
    assert_same(run_dir, undisturbed(1, 0, ADAMW))


def test_a_run_that_stopped_in_its_ordinary_series_goes_on_there(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any]
) -> None:
    both = {"evaluation": {"ordinary": True}}
    whole = prepared(tmp_path / "whole", base, cache, 1, ADAMW, **both)
    workers(2)(checks.train, whole)
    run_dir = prepared(tmp_path / "run", base, cache, 1, ADAMW, **both)
    workers(2)(checks.stopped_after_release_of, run_dir, 2, series="ordinary")
    assert last(run_dir).step == 5
    assert last(run_dir, "ordinary").step == 3
    workers(2)(checks.train, run_dir)
    for series in ("private", "ordinary"):
        for name, value in last(whole, series).parameters.items():
            np.testing.assert_array_equal(last(run_dir, series).parameters[name].numpy(), value.numpy())
    assert Folder(run_dir).metrics.read_bytes() == Folder(whole).metrics.read_bytes()


def test_another_key_gives_other_weights(
    base: Path, cache: Path, tmp_path: Path, workers: Callable[[int], Any], undisturbed: Callable[..., Path]
) -> None:
    """Two runs of one spec share no draws."""
    run_dir = prepared(tmp_path / "run", base, cache, 0, ADAMW, key=bytes(32))
    workers(1)(checks.train, run_dir)
    other = last(undisturbed(1, 0, ADAMW)).parameters
    for name, value in last(run_dir).parameters.items():
        assert (value != other[name]).float().mean() > 0.99


# --- the file of released metrics ---------------------------------------------------------------------------


def row(step: int, series: str = "private") -> dict[str, Any]:
    return {"series": series, "step": step, "eval/loss": 1.0 / (step + 1)}


def test_rows_are_appended_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for upto in (1, 3, 3, 2, 4):
        append_missing(path, [row(s) for s in range(upto)])
    append_missing(path, [row(0, "ordinary")])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *(row(s) for s in range(4)),
        row(0, "ordinary"),
    ]


@pytest.mark.parametrize("left", [1, 10, 45])
def test_a_half_written_line_is_mended(tmp_path: Path, left: int) -> None:
    """Broken by appending behind the half line, which makes both unreadable."""
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(row(s)) + "\n" for s in range(3))
    assert left < len(json.dumps(row(2)))
    path.write_text(whole[: -len(json.dumps(row(2))) - 1 + left])
    append_missing(path, [row(0), row(1)])
    assert path.read_text() == "".join(json.dumps(row(s)) + "\n" for s in range(2))
    append_missing(path, [row(s) for s in range(3)])
    assert path.read_text() == whole


def test_a_released_row_is_never_rewritten(tmp_path: Path) -> None:
    """Broken by writing the rows of a later computation over those that are out."""
    path = tmp_path / "metrics.jsonl"
    append_missing(path, [row(0)])
    append_missing(path, [{**row(0), "eval/loss": 7.0}, row(1)])
    assert [json.loads(line)["eval/loss"] for line in path.read_text().splitlines()] == [1.0, 0.5]
