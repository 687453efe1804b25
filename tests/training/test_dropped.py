"""Users of a group that is dropped: nothing that they wrote reaches the model, and held out they are evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.store import Corpus
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.training.job import Folder, Job, dropped_place
from tests.tiny import made_posts
from tests.training import checks

FREE = Mechanism(steps=3, noise_std=0.1, groups=(GroupMechanism("free", 21.0, 0.5, 0.5, 3, 4),), relation="zero_out")


def _trained(make: Callable[..., Path], workers: Any, posts: list[dict[str, str]]) -> tuple[Any, list[dict[str, Any]]]:
    run_dir = make(mechanism=FREE, posts=posts, groups={"drop": ["paid"]})
    folder = Folder(run_dir)
    corpus = Corpus.load(Job.load(run_dir).corpus)
    groups = [0 if corpus.attributes(u)["plan"] == "free" else dropped_place(0) for u in range(corpus.n_users)]
    with folder.members.open("wb") as file:
        np.save(file, np.array(groups, dtype=np.int16), allow_pickle=False)
    ((_, after),) = workers(1)(checks.trained, [run_dir])[0]
    return after, [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_what_they_wrote_changes_no_bit_of_the_model(new_run: Callable[..., Path], workers: Any) -> None:
    """Texts of those who are trained on do. Red when `dropped_place` gives a place of the mechanism's."""
    posts = made_posts()
    held = _held_out(new_run, posts)

    def other(plan: str) -> list[dict[str, str]]:
        return [{**p, "text": p["text"][::-1]} if p["plan"] == plan and p["user"] not in held else p for p in posts]

    before, rows = _trained(new_run, workers, posts)
    dropped, same = _trained(new_run, workers, other("paid"))
    kept, _ = _trained(new_run, workers, other("free"))
    assert all((before[name] == dropped[name]).all() for name in before)
    assert any((before[name] != kept[name]).any() for name in before)
    assert rows == same
    assert all({"eval/loss/free", "eval/loss/paid"} <= set(row) for row in rows)


def _held_out(new_run: Callable[..., Path], posts: list[dict[str, str]]) -> set[str]:
    corpus = Corpus.load(Job.load(new_run(mechanism=FREE, posts=posts)).corpus)
    return {corpus.user_id(int(u)) for u in corpus.users(holdout=True)}
