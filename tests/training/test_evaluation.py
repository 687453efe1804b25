"""Losses on hold-out users: what a direct computation gives, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from harness.data.store import Corpus
from harness.training.evaluation import HoldoutSet, _batches, evaluate, is_finite
from harness.training.inputs import Inputs
from harness.training.job import Folder, Job
from tests.tiny import GROUPS
from tests.training import checks
from tests.training.reference import plain_model

BUDGETS = (1, 100, 100_000)


def direct(run_dir: Path) -> dict[str, float]:
    """The same numbers, one text at a time in float64."""
    job = Job.load(run_dir)
    inputs = Inputs.load(job, Folder(run_dir))
    model = plain_model(job.base, job.spec)
    sums = {name: [0.0, 0] for name in GROUPS}
    for example, group in zip(inputs.holdout.examples, inputs.holdout.groups, strict=True):
        ids = torch.tensor(inputs.corpus.tokens(example).tolist())
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        sums[GROUPS[group]][0] += float(functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        sums[GROUPS[group]][1] += len(ids) - 1
    total, tokens = (sum(s[i] for s in sums.values()) for i in (0, 1))
    by_group = {f"eval/loss/{name}": loss / count for name, (loss, count) in sums.items() if count}
    return {"eval/loss": total / tokens, "eval/tokens": tokens, **by_group}


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 0), (2, 3)])
def test_it_equals_a_direct_computation_on_every_rank(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Broken by averaging over users or ranks instead of tokens, or by counting a rank's filler."""
    run_dir = new_run(compute={"deepspeed": {"stage": stage}}, evaluation={"users": 100})
    expected = direct(run_dir)
    assert len(expected) == 4
    ranks = workers(world)(checks.evaluated, run_dir, BUDGETS)
    for rank in ranks:
        assert rank == ranks[0]
        for found in rank:
            assert found == pytest.approx(expected, rel=1e-5)
            assert found["eval/tokens"] == expected["eval/tokens"]


@pytest.mark.parametrize(("world", "expected"), [(1, [8]), (2, [4, 4]), (3, [3, 3, 2])])
def test_few_examples_are_shared_among_all_ranks(world: int, expected: list[int]) -> None:
    """All of them would fit into the micro-batch of one rank."""
    holdout = HoldoutSet(tuple(range(8)), (0,) * 8, ("all",))
    found = _batches(holdout, np.full(8, 64, dtype=np.int32), 2048, world)
    assert [len(batch) for batch in found] == expected


def test_more_ranks_than_hold_out_users_agree_too(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    run_dir = new_run(compute={"deepspeed": {"stage": 3}}, evaluation={"users": 1})
    expected = direct(run_dir)
    for rank in workers(2)(checks.evaluated, run_dir, BUDGETS):
        for found in rank:
            assert found == pytest.approx(expected, rel=1e-5)


def test_hold_out_users_are_public_ones_and_never_trained_on(new_run: Callable[..., Path]) -> None:
    """Broken by taking the members of all users."""
    run_dir = new_run(evaluation={"users": 5})
    job = Job.load(run_dir)
    inputs = Inputs.load(job, Folder(run_dir))
    corpus = Corpus.load(job.corpus)
    owner = {e: u for u in range(corpus.n_users) for e in range(*corpus.examples_of(u))}
    held = [owner[e] for e in inputs.holdout.examples]
    assert len(held) == len(set(held)) == 5
    assert all(corpus.holdout[u] for u in held)
    assert held == corpus.holdout_by_order(5).tolist()
    trained = {int(u) for members in inputs.members for u in members}
    assert trained == {u for u in range(corpus.n_users) if not corpus.holdout[u]}
    for group, members in zip(GROUPS, inputs.members, strict=True):
        assert {corpus.attributes(int(u))["plan"] for u in members} == {group}


def test_without_hold_out_users_there_is_nothing_to_say() -> None:
    empty = HoldoutSet((), (), GROUPS)
    assert evaluate(None, None, None, empty, 100, torch.device("cpu")) == {}  # type: ignore[arg-type]


def test_a_run_without_hold_out_users_releases_steps_alone(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    run_dir = new_run(data={"holdout": {"users": 0.0}}, compute={"deepspeed": {"stage": 0}})
    for rank in workers(2)(checks.released, run_dir):
        assert rank == [("private", step) for step in range(4)]
    assert "eval" not in Folder(run_dir).metrics.read_text()


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (math.nan, False), (math.inf, False)])
def test_a_row_is_finite_if_every_number_is(value: float, finite: bool) -> None:
    assert is_finite({"a": 0.0, "b": value}) == finite
