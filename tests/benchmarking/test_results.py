"""A suite's papers: repaired after a kill, only ever added to, and without anything that is nobody's business."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.benchmarking import results
from harness.benchmarking.machine import code, machine
from harness.benchmarking.planning import plan_suite
from harness.errors import ArgumentError, MachineError

Write = Callable[..., str]


def test_half_a_line_is_taken_away(tmp_path: Path) -> None:
    """What a kill leaves; whatever byte it ends at. Red without the truncation: the next line is glued to it."""
    path = tmp_path / "results.jsonl"
    rows = [{"cell": f"ε-{n}", "value": n} for n in range(3)]
    for row in rows:
        results.append(path, row)
    content = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        found = results.repaired(path)
        assert found == rows[: content[:length].count(b"\n")]
        results.append(path, rows[0])
        assert results.repaired(path) == [*found, rows[0]]


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nonsense", b'{"cell": 3}', b"", b"\xff", b"[" * 100_000])
def test_a_whole_line_that_is_no_result_is_refused(tmp_path: Path, line: bytes) -> None:
    """It is somebody else's file; nothing of it is changed."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"cell": "a"}\n' + line + b"\n")
    with pytest.raises(MachineError, match=r"results\.jsonl:2: is no result"):
        results.repaired(path)
    assert path.read_bytes() == b'{"cell": "a"}\n' + line + b"\n"


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        results.append(tmp_path / "results.jsonl", {"cell": "a", "loss": float("nan")})
    assert not (tmp_path / "results.jsonl").exists()


def test_a_suite_may_add_cells_and_change_none(suite: Write, tmp_path: Path) -> None:
    """Red without the comparison in `begin`: results of two suites would stand in one table."""
    plan = plan_suite(suite())
    begun = results.begin(tmp_path, "small", "A small suite", plan.cells)
    begun.note("small-scale-e2-s1", results.FAILED, reason="why")
    for line in ("seeds: [1, 2, 3]", "seeds: [3, 2, 1]"):
        more = plan_suite(suite("seeds: [1, 2]", line))
        again = results.begin(tmp_path, "small", "A small suite", more.cells)
        assert len(again.cells) == 18
        assert again.cells["small-scale-e2-s1"]["status"] == results.FAILED
        assert again.cells["small-scale-e2-s1"]["reason"] == "why"
    for replace, by, says in (
        ("  train.steps: 5", "  train.steps: 6", "small-uniform-e2-s3 is another one now (and 17 more cells)"),
        ("paid: 50%", "paid: 40%", "small-scale-e2-s3 is another one now (and"),
        ("seeds: [1, 2]", "seeds: [1, 2]", "small-uniform-e2-s3 is not in it any more (and 5 more cells)"),
    ):
        more = plan_suite(suite(replace, by))
        if "seeds" not in replace:
            text = Path("suite.yaml").read_text().replace("seeds: [1, 2]", "seeds: [1, 2, 3]")
            Path("suite.yaml").write_text(text)
            more = plan_suite("suite.yaml")
        with pytest.raises(ArgumentError, match=re.escape(says)):
            results.begin(tmp_path, "small", "A small suite", more.cells)


def test_damaged_papers_are_refused(suite: Write, tmp_path: Path) -> None:
    cells = plan_suite(suite()).cells
    for text in ("", "[]", "{", '{"cells": [{}]}', '{"cells": 3}'):
        (tmp_path / "suite.json").write_text(text)
        with pytest.raises(MachineError, match="is damaged"):
            results.begin(tmp_path, "small", "", cells)


def _run(root: Path, visibility: str, **privacy: Any) -> Path:
    run = root / "small-scale-e8-s1" / "20260101-000000-abcdef"
    run.mkdir(parents=True)
    groups = [{"name": "free", "epsilon": 8.0}, {"name": "paid", "epsilon": 4.0}]
    data = {"name": "posts", "visibility": visibility}
    stated = {"private": True, "epsilon": 8.0, "delta": 1e-5, "groups": groups, "mechanism_digest": "d", "data": data}
    stated |= {"status": "finished", "steps_completed": 5}
    (run / "privacy.json").write_text(json.dumps({**stated, **privacy}))
    (run / "plan.json").write_text(json.dumps({"name": "x", "groups": groups, "spec": {}}))
    losses = {"eval/loss/free": 4.0, "eval/loss/paid": 6.0}
    rows = [{"series": "private", "step": step, "eval/loss": 5.0 - step / 10, **losses} for step in (0, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


CELL = {"name": "small-scale-e8-s1", "data": "posts", "policy": "scale", "baseline": False, "budget": 8.0, "seed": 1,
        "spec_digest": "s"}  # fmt: skip


@pytest.mark.parametrize(("visibility", "seconds"), [("public", 12.3), ("private", None)])
def test_how_long_it_took_is_said_of_public_data_alone(tmp_path: Path, visibility: str, seconds: float | None) -> None:
    """Red when seconds are written whatever the data are."""
    run = _run(tmp_path, visibility)
    row = results.result_of("small", CELL, tmp_path, run, {"code": code(), "machine": machine("cpu")}, 12.34)
    assert row["seconds"] == seconds
    assert row["run"] == "small-scale-e8-s1/20260101-000000-abcdef"
    assert (row["epsilon"], row["delta"], row["steps"], row["mechanism_digest"]) == (8.0, 1e-5, 5, "d")
    assert (row["base_loss"], row["trained_loss"], row["ordinary_loss"]) == (5.0, 4.5, None)
    paid = {"epsilon": 4.0, "base_loss": 6.0, "trained_loss": 6.0, "ordinary_loss": None}
    assert row["groups"]["paid"] == paid
    assert row["audit"] is None
    assert str(tmp_path) not in json.dumps(row)


def test_what_claims_nothing_is_said_to_be_not_private(tmp_path: Path) -> None:
    run = _run(tmp_path, "public", private=False, epsilon=None)
    row = results.result_of("small", CELL, tmp_path, run, {}, None)
    assert (row["private"], row["epsilon"], row["delta"]) == (False, None, None)
    assert row["groups"]["free"]["epsilon"] is None


def test_what_an_audit_found_is_told_in_short(tmp_path: Path) -> None:
    run = _run(tmp_path, "public")
    test = {"kind": "gradient", "score": "dot", "group": None, "canaries": 100, "bound": 1.2, "ceiling": 3.4}
    audit = {"version": 1, "claimed": 8.0, "verdict": "consistent", "one_run": [test]}
    (run / "audit.json").write_text(json.dumps(audit))
    found = results.audit_of(run)
    bounds = [{"kind": "gradient", "score": "dot", "group": None, "bound": 1.2, "ceiling": 3.4}]
    assert found == {"verdict": "consistent", "bounds": bounds}
    for text in ("{", "[]", ""):
        (run / "audit.json").write_text(text)
        assert results.audit_of(run) == {"verdict": "unreadable", "bounds": []}


def test_what_made_a_result_names_no_host_and_no_path() -> None:
    import getpass
    import os
    import socket

    said = json.dumps({"code": code(), "machine": machine("cpu")})
    assert not any(word in said for word in (socket.gethostname(), os.getcwd(), str(Path.home())))
    assert getpass.getuser() not in code().values()
    assert machine("cpu")["cores"] >= 1
