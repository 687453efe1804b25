"""A Ray cluster of several nodes, here on one machine: one is lost or joins in the middle of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.privacy.ledger import Ledger
from harness.training.job import Folder
from tests.clusters import Nodes
from tests.launching import KEY, SCRIPT, Process, Run, Workplace, adapter, ended, released_step, rows

pytestmark = [pytest.mark.timeout(1800), pytest.mark.ray, pytest.mark.slow]

STEPS, EVERY = 60, 4
LOOKING = SCRIPT.replace("main.main()", "from harness.training import ray\nray.RESIZE_SECONDS = 3.0\nmain.main()")
"""The command with a known key, which looks more often whether there is room for more workers."""


def workplace(folder: Path, workers: Any, **compute: Any) -> Workplace:
    return Workplace(
        folder,
        train={"steps": STEPS, "checkpoint_every": EVERY},
        # One example at a time: there is nothing to halve, and no restart for it.
        compute={"workers": workers, "deepspeed": {"stage": 2}, "microbatch_tokens": 32, "retries": 3, **compute},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two workers on one machine."""
    place = workplace(tmp_path_factory.mktemp("undisturbed") / "place", 2)
    try:
        run = ended(place, place.start_with_key(KEY))
        assert run.code == 0, run.err
        yield run
    finally:
        place.clean()


def start(place: Workplace, nodes: Nodes, *arguments: str) -> Process:
    """``uudp run`` on the cluster."""
    path = place.folder / "key-of-the-test"
    path.write_bytes(KEY)
    whole = ["run", str(place.spec), *arguments, "--yes", "--out", str(place.out)]
    return place._start([sys.executable, "-c", LOOKING, str(path), *whole], {"RAY_ADDRESS": nodes.address})


def assert_same(place: Workplace, undisturbed: Run, tolerance: float) -> None:
    """The same weights and released steps, and charged once."""
    folder = place.run_folder()
    ours, theirs = adapter(folder), adapter(undisturbed.folder)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance)
    assert [(row["series"], row["step"]) for row in rows(folder)] == [
        (row["series"], row["step"]) for row in rows(undisturbed.folder)
    ]
    if not tolerance:
        assert rows(folder) == rows(undisturbed.folder)
    ledger = Ledger(place.ledger)
    (account,) = ledger.accounts()
    assert [(run.reservation.run, run.status) for run in account.runs] == [(folder.name, "finished")]
    assert ledger.verify()[1] == []
    assert not Folder(folder).key.exists()


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Callable[..., Workplace]]:
    made: list[Workplace] = []

    def make(workers: Any, **compute: Any) -> Workplace:
        made.append(workplace(tmp_path / "place", workers, **compute))
        return made[-1]

    yield make
    for place in made:
        place.clean()


def test_a_lost_node_that_comes_back(undisturbed: Run, nodes: Nodes, new_place: Callable[..., Workplace]) -> None:
    """Two workers on two nodes, of which one is lost and another joins: bitwise the same adapter."""
    nodes.add()
    nodes.add()
    place = new_place(2)
    process = start(place, nodes)
    process.until(lambda: released_step(place) >= EVERY, "a step was released")
    with nodes.paused():
        assert released_step(place) < STEPS
        nodes.lose()
        nodes.add()
    assert process.wait() == 0, process.err
    # 300 s are long: it is said why nothing happens.
    assert (
        "a machine of the Ray cluster was lost; if it held workers, they wait up to 300 s" in process.out + process.err
    )
    assert_same(place, undisturbed, 0.0)


def test_a_lost_node_without_another(undisturbed: Run, nodes: Nodes, new_place: Callable[..., Workplace]) -> None:
    """It stops, resumable, with exit code 4 and a sentence; then a node joins, and it is gone on with."""
    nodes.add()
    nodes.add()
    place = new_place(2, retries=0)
    process = start(place, nodes)
    process.until(lambda: released_step(place) >= EVERY, "a step was released")
    with nodes.paused():
        nodes.lose()
    assert process.wait() == 4, process.err
    said, how = process.err.splitlines()[-2:]
    assert said.startswith("uudp: a process of Ray's was killed, or its machine was lost; go on with --resume")
    assert f"--resume --run {place.run_folder().name}" in how
    assert "Traceback" not in process.err
    assert released_step(place) < STEPS
    nodes.add()
    resumed = start(place, nodes, "--resume")
    assert resumed.wait() == 0, resumed.err
    assert_same(place, undisturbed, 0.0)


def test_workers_that_come_and_go(undisturbed: Run, nodes: Nodes, new_place: Callable[..., Workplace]) -> None:
    """{min: 1, max: 2}: the second node that joins gets a worker, its loss takes it away; the draws stay the same."""
    nodes.add()
    place = new_place({"min": 1, "max": 2})
    process = start(place, nodes)
    process.until(lambda: released_step(place) >= EVERY, "a step was released")
    with nodes.paused():
        assert len(nodes.workers()) == 1
        nodes.add()
        process.until(lambda: len(nodes.workers()) == 2, "a second worker came")
    grown_at = released_step(place)
    process.until(lambda: released_step(place) > grown_at, "two workers released a step")
    with nodes.paused():
        assert released_step(place) < STEPS
        assert len(nodes.workers()) == 2
        nodes.lose()
    assert process.wait() == 0, process.err
    assert "training: 1 to 2 worker(s)" in process.err
    assert_same(place, undisturbed, 1e-5)
