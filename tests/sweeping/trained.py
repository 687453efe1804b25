"""Sweeps without Ray: what trains a trial is replaced by what it would leave, so that kills can be tried one by one."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from harness.planning import room
from harness.privacy.ledger import Ledger
from harness.privacy.randomness import Randomness
from harness.privacy.search import Trials
from harness.sweeping import flow, trials
from harness.sweeping.costing import SweepPlan
from harness.sweeping.laws import draw_number
from harness.sweeping.space import Candidate
from harness.sweeping.tune import How
from harness.training.job import Folder, Job
from tests.launching import Workplace

LAW = Trials("geometric", 3.0)
SPACE = {"clipping.norm": {"loguniform": [0.1, 2.0]}, "train.steps": {"choice": [4, 6]}}
KILLED = 9
Train = Callable[[Folder, int], How | None]
"""Stands for the training of one trial, whose number it gets; how it ended (None: ``ended``)."""


def key_of(number: int, law: Trials = LAW) -> bytes:
    """A key with which so many trials are drawn."""
    for n in itertools.count():
        key = hashlib.sha256(b"made %d" % n).digest()
        if draw_number(law, Randomness(key)) == number:
            return key
    raise AssertionError


def made_place(folder: Path, law: Trials = LAW, *, space: Any = None, audit: Any = None, **sweep: Any) -> Workplace:
    """Users, a tiny model, and a spec with a sweep."""
    search = {"type": "random", "trials": {"law": law.law, "mean": law.mean}}
    return Workplace(
        folder,
        name="made",
        noise={"type": "scale", "epsilon": {"free": 8, "paid": 4}},
        train={"steps": 6, "checkpoint_every": 2},
        compute={"retries": 1},
        blocks={
            "sweep": {"space": space or SPACE, "search": search, **sweep},
            **({"audit": audit} if audit else {}),
        },
    )


def leave(folder: Folder, score: float | None) -> None:
    """What a trial that was trained to its end leaves."""
    job = Job.load(folder.root)
    steps = job.mechanism.steps
    for step, loss in ((0, 5.0), (steps, score)):
        losses = {"eval/loss": loss, "eval/loss/free": loss, "eval/loss/paid": loss, "eval/tokens": 10}
        row = {"series": "private", "step": step, "epsilon": job.epsilon_after(step), **losses}
        with folder.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
    folder.adapter.mkdir()
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"weights of " + folder.root.name.encode())
    (folder.private / "diagnostics.jsonl").write_text("{}\n")
    (folder.private / "checkpoints").mkdir()


def scored(folder: Folder, place: int) -> None:
    """Every trial ends; the second one is the best."""
    leave(folder, 4.0 + abs(place - 1))


def train_with(monkeypatch: pytest.MonkeyPatch, train: Train) -> list[list[int]]:
    """Puts `train` in the place of Ray.

    Returns:
        Of each search, the trials that it trained, after -1 those with the machine to themselves; filled as it goes.
    """
    searches: list[list[int]] = []

    def search(what: Any, parts: Any, prepare: Any, ended: Any, tick: Any) -> None:
        searches.append([])
        for part in parts:
            searches[-1] += [-1] * part.alone
            while not what.folder.stop.exists() and (found := part.source.next()) is not None:
                place, candidate = found
                how: How | None = None
                if prepare(place, candidate):
                    searches[-1].append(place)
                    how = train(trials.trial_folder(what.folder, place), place)
                part.source.told(place, None)
                ended(place, how or "ended")
        tick()

    monkeypatch.setattr(flow, "search", search)
    return searches


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate is planned once, however often a test asks, and no disk is waited for."""
    known: dict[Candidate, Any] = {}
    whole = SweepPlan.plan_of

    def plan_of(self: SweepPlan, candidate: Candidate) -> Any:
        if candidate not in known:
            known[candidate] = whole(self, candidate)
        return known[candidate]

    monkeypatch.setattr(SweepPlan, "plan_of", plan_of)
    # A plan's document says how much memory is free, which changes from moment to moment.
    monkeypatch.setattr(room, "free_here", lambda: 16 * 2**30)
    # A process that is killed loses nothing that the system has taken; only a power cut would.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def killed_at(moment: int, codes: tuple[CodeType, ...], body: Callable[[], Any]) -> bool:
    """Does `body` in a process of its own, which ends without a word before the so-manyth line of these functions.

    Returns:
        Whether it was killed: not, if they have fewer lines.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, KILLED), f"the process ended with {code}"
        return code == KILLED
    left = moment

    def line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            if left == 0:
                os._exit(KILLED)
            left -= 1
        return line

    try:
        sys.settrace(lambda frame, *_: line if frame.f_code in codes else None)
        body()
        os._exit(0)
    except BaseException:
        os._exit(1)


def kills(codes: tuple[CodeType, ...], again: Callable[[], None], body: Callable[[], Any]) -> Iterator[int]:
    """For every line of these functions: puts everything back as it was, and does `body` with a kill right there."""
    for moment in itertools.count():
        again()
        if not killed_at(moment, codes, body):
            return
        yield moment


class Kept:
    """A place as it was at one moment, to be put back under the same path."""

    def __init__(self, place: Workplace, target: Path) -> None:
        self.place, self.target = place, target
        shutil.copytree(place.out, target / "runs")
        shutil.copy(place.folder / "ledger.db", target / "ledger.db")

    def put_back(self) -> None:
        shutil.rmtree(self.place.out)
        shutil.copytree(self.target / "runs", self.place.out)
        shutil.copy(self.target / "ledger.db", self.place.folder / "ledger.db")


def released_files(run: Path) -> dict[str, bytes]:
    """What whoever gets the run's folder without its private part can read."""
    files = [p for p in run.rglob("*") if p.is_file() and "private" not in p.relative_to(run).parts]
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(files)}


def ledger_rows(place: Workplace) -> list[tuple[str, str, float]]:
    """Of the only data set: the runs."""
    (account,) = Ledger(place.ledger).accounts()
    return [(row.reservation.run, row.status, float(row.reservation.epsilon)) for row in account.runs]
