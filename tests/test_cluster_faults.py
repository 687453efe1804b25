"""What goes wrong on real Ray clusters: a sweep loses a node, the head is restarted, one budget is wanted twice."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.privacy.ledger import Ledger
from tests.clusters import STEPS, Laptop, Nodes, RayHead, command_of
from tests.launching import SCRIPT, Process, Workplace, adapter, read_json, rows
from tests.test_sweeping import KEY, NUMBER, _place

pytestmark = [pytest.mark.timeout(1800), pytest.mark.ray, pytest.mark.slow]


# --- a sweep on three nodes ---------------------------------------------------------------------------------


def swept(place: Workplace, nodes: Nodes) -> Process:
    path = place.folder / "key-of-the-test"
    path.write_bytes(KEY)
    whole = ["sweep", str(place.spec), "--yes", "--out", str(place.out)]
    return place._start([sys.executable, "-c", SCRIPT, str(path), *whole], {"RAY_ADDRESS": nodes.address})


def trainers(nodes: Nodes) -> set[int]:
    """Processes of the cluster that train a trial."""
    children = psutil.Process(nodes.popen.pid).children(recursive=True)
    return {one.pid for one in children if "ImplicitFunc" in " ".join(command_of(one))}


def test_a_sweep_over_three_nodes_of_which_one_is_lost(tmp_path: Path, nodes: Nodes) -> None:
    """Bitwise what the same search finds on one machine, and one charge.

    Red where a trial of a lost node is given up (`max_failures=0`).
    """
    alone = _place(tmp_path / "alone")
    try:
        process = alone.start_with_key(KEY, verb="sweep")
        assert process.wait() == 0, process.err
    finally:
        alone.clean()
    for _ in range(3):
        nodes.add()
    place = _place(tmp_path / "place", concurrent=3)
    try:
        process = swept(place, nodes)
        process.until(lambda: len(trainers(nodes)) == 3, "three trials ran beside each other")
        nodes.lose()
        nodes.add()
        assert process.wait() == 0, process.err
        here, there = place.run_folder(), alone.run_folder()
        ours, theirs = adapter(here), adapter(there)
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert rows(here) == rows(there)
        found = read_json(here / "private" / "trials.json")["trials"]
        assert found == read_json(there / "private" / "trials.json")["trials"]
        assert len(found) == NUMBER
        (row,) = Ledger(place.ledger).accounts()[0].runs
        assert (row.reservation.run, row.status) == (here.name, "finished")
    finally:
        place.clean()


# --- submitted runs -----------------------------------------------------------------------------------------


def submitted(text: str) -> str:
    return next(line.removeprefix("submitted: ") for line in text.splitlines() if line.startswith("submitted: "))


def test_a_run_outlives_its_head(tmp_path: Path, head: RayHead) -> None:
    """The head is killed in the middle and started anew, knowing nothing: the run goes on, each step released once.

    Red where a job's id is looked up on the head alone (`--resume` of a forgotten job).
    """
    laptop = Laptop(tmp_path, head)
    run = submitted(laptop.run("submit", "sent.yaml", "--yes", "--send-data"))
    folder = laptop.storage / "runs" / "sent" / run
    deadline = time.monotonic() + 300
    while not (folder.exists() and any(row["step"] >= 4 for row in rows(folder))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with head.paused():
        head.kill()
    before = rows(folder)
    assert max(row["step"] for row in before) < STEPS
    said = laptop.run("jobs", code=4)
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said

    head.start()
    assert json.loads(laptop.run("jobs", "--json"))["jobs"] == []
    finished = laptop.run("submit", "sent.yaml", "--yes", "--send-data", "--wait", "--resume", run)
    assert f"private step {STEPS}: ε spent 8.000" in finished
    after = rows(folder)
    assert after[: len(before)] == before
    steps = [row["step"] for row in after]
    assert steps == sorted(set(steps))
    (row,) = Ledger(f"sqlite:///{laptop.storage}/ledger.db").accounts()[0].runs
    assert (row.reservation.run, row.status) == (run, "finished")
    assert f"report: runs/sent/{run}/report.html" in laptop.run("fetch", run)


@pytest.mark.postgres
def test_two_laptops_want_the_last_of_one_budget(tmp_path: Path, head: RayHead, postgres_server: Any) -> None:
    """Both look, both find enough, both submit at once: one trains, the other is refused with 3, nothing is overspent.

    Red where a reservation is made without looking at the budget again, in one transaction.
    """
    url = str(postgres_server.new_database())
    storage = tmp_path / "storage"
    laptops = [Laptop(tmp_path / name, head, storage) for name in ("one", "two")]
    secrets = storage / "secrets.env"
    secrets.touch(mode=0o600)
    secrets.write_text(f"UUDP_LEDGER={url}\n")
    ledger = Ledger(url)
    ledger.set_budget("made", 9.0, 1e-3)

    def submit(laptop: Laptop) -> tuple[int, str]:
        return laptop.try_to("submit", "sent.yaml", "train.steps=2", "--yes", "--send-data", "--wait")

    with ThreadPoolExecutor(2) as both:
        ended = sorted(both.map(submit, laptops))
    assert [code for code, _ in ended] == [0, 3], ended
    assert "Traceback" not in ended[1][1]
    account = ledger.account("made")
    assert [run.status for run in account.runs] == ["finished"]
    assert ledger.verify()[1] == []
    assert url not in "".join(text for _, text in ended) + head.get("/api/jobs/")
    assert (storage / "runs" / "sent" / account.runs[0].reservation.run / "report.html").exists()
