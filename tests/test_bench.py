"""A whole suite through the command line: each cell once, one ledger row each, whatever is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.privacy.ledger import Ledger
from tests.launching import Process, Workplace, adapter, read_json
from tests.launching import rows as released

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

TARGETS = {"free": "100%", "paid": "50%"}
POLICIES: dict[str, Any] = {
    "scale": {"noise": {"type": "scale", "epsilon": TARGETS}},
    "broken": {"noise": {"type": "uniform"}, "model": {"adapter": {"targets": ["no_such_layer"]}}},
    "sample": {"noise": {"type": "sample", "epsilon": TARGETS}},
}
CELLS = ["small-scale-e4-s1", "small-broken-e4-s1", "small-sample-e4-s1", "small-non-private-s1",
         "small-uniform-strictest-e4-s1", "small-drop-strict-e4-s1"]  # fmt: skip
FINISHED = [name for name in CELLS if "broken" not in name]
STEPS = 8


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    found = Workplace(
        tmp_path / "place",
        name="tiny",
        data={"visibility": "public"},
        train={"steps": STEPS, "checkpoint_every": 1},
        compute={"retries": 1},
    )
    _write(found, [1])
    yield found
    found.clean()


def _write(place: Workplace, seeds: list[int]) -> None:
    document = {
        "version": 1,
        "suite": "small",
        "spec": "spec.yaml",
        "policies": POLICIES,
        "budgets": [4],
        "seeds": seeds,
        "baselines": ["non-private", "uniform-strictest", "drop-strict"],
    }
    (place.folder / "suite.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def _start(place: Workplace, *more: str) -> Process:
    return place.start("bench", str(place.folder / "suite.yaml"), "--yes", "--out", str(place.out), *more)


def _lines(place: Workplace) -> list[dict[str, Any]]:
    path = place.out / "small" / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _under_way(place: Workplace) -> dict[Path, list[dict[str, Any]]]:
    """Cells that have released some steps, and not all."""
    found = {path.parent: released(path.parent) for path in place.out.glob("small/*/*/metrics.jsonl")}
    return {run: rows for run, rows in found.items() if rows and 0 < rows[-1]["step"] < STEPS}


def test_a_suite_is_stopped_killed_and_gone_on_with(place: Workplace) -> None:
    """Ctrl-C, then a kill, then the end: no step is released twice, no cell is charged twice, each has one line.

    Red when a cell that was begun gets a new run, or a finished cell is trained again.
    """
    root = place.out / "small"
    process = _start(place)
    process.until(lambda: _under_way(place), "a cell had released a step")
    process.interrupt()
    assert process.wait() == 130, process.err
    assert "go on with: uudp bench" in process.err
    stopped = _under_way(place)
    assert stopped
    assert {read_json(run / "privacy.json")["status"] for run in stopped} == {"interrupted"}

    process = _start(place, "--resume")
    process.until(lambda: _lines(place) and _under_way(place), "a cell had finished, and another released a step")
    process.kill()
    process.clean()
    killed = _under_way(place)
    with (root / "results.jsonl").open("a") as file:  # as if the kill had come in the middle of a line
        file.write('{"version": 1, "cell": "small-sam')

    process = _start(place, "--resume", "--json")
    assert process.wait() == 1, process.err  # one of them can't be trained
    document = json.loads(process.out)
    assert [cell["name"] for cell in document["cells"]] == CELLS
    assert [cell["name"] for cell in document["cells"] if cell["status"] == "finished"] == FINISHED
    _check(place, document, {**stopped, **killed})

    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lease"}
    process = _start(place, "--resume")
    assert process.wait() == 1, process.err
    assert "begins" not in process.err
    assert "goes on" not in process.err
    assert {path: path.read_bytes() for path in before} == before

    _write(place, [1, 2])
    process = _start(place, "--resume", "--only", "small-scale-*")
    assert process.wait() == 0, process.err
    assert [line["cell"] for line in _lines(place)] == [*FINISHED, "small-scale-e4-s2"]
    one, two = (adapter(root / line["run"]) for line in _lines(place) if line["policy"] == "scale")
    assert any((one[name] != two[name]).any() for name in one)


def _check(place: Workplace, document: dict[str, Any], begun: dict[Path, list[dict[str, Any]]]) -> None:
    root = place.out / "small"
    lines = _lines(place)
    assert [line["cell"] for line in lines] == FINISHED
    assert document["rows"] == lines
    for run, rows in begun.items():
        now = released(run)
        assert now[: len(rows)] == rows, "a released step was released again"
        assert len({(row["series"], row["step"]) for row in now}) == len(now)
    for line in lines:
        run = root / line["run"]
        assert [path.name for path in run.parent.iterdir()] == [line["run_id"]], "a cell has more than one run"
        assert read_json(run / "privacy.json")["mechanism_digest"] == line["mechanism_digest"]
        assert line["private"] is (line["policy"] != "non-private")
        assert (run / "report.html").exists() is read_json(run / "plan.json")["spec"]["report"]["html"]
    listed = place.start("runs", "--out", str(place.out), "--json")
    assert listed.wait() == 0, listed.err
    assert {line["run_id"] for line in lines} <= {run["id"] for run in json.loads(listed.out)["runs"]}
    broken = next(cell for cell in document["cells"] if cell["status"] == "failed")
    assert "no_such_layer" in broken["reason"]
    assert str(place.folder) not in broken["reason"]
    rows = Ledger(place.ledger).accounts()[0].runs
    # Whatever was reserved is a cell's one run, and what began to train is charged whole.
    charged = {row.reservation.run: row for row in rows if row.status in ("touched", "finished")}
    assert {line["run_id"] for line in lines} <= set(charged)
    assert sorted(json.loads(row.reservation.details)["spec"] for row in charged.values()) == sorted(CELLS)
    for line in lines:
        epsilon = charged[line["run_id"]].reservation.epsilon
        assert float(epsilon) == (pytest.approx(line["epsilon"], rel=1e-6) if line["private"] else float("inf"))
    dropping = next(line for line in lines if line["policy"] == "drop-strict")
    assert dropping["dropped"] == ["paid"]
    assert dropping["groups"]["paid"]["epsilon"] is None
    assert dropping["groups"]["paid"]["trained_loss"] > 0, "they are evaluated all the same"
    assert not list(root.rglob("key"))
    assert not (root / "private" / "tune").exists()
