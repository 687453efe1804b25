"""The README's table is the one of the results that are kept."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.launching import ROOT

SCRIPT = ROOT / "scripts" / "bench" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def place(tmp_path: Path, table: ModuleType) -> Path:
    """A README without a table, and results of two machines."""
    (tmp_path / "README.md").write_text(f"# Title\n\n{table.BEGIN}\n{table.END}\n\nThe end.\n")
    results = tmp_path / "results"
    results.mkdir()
    row: dict[str, Any] = {"what": "speed", "figure": "0.97", "to_reach": "≥ 0.95", "reached": True}
    model = {"name": "owner/model", "dtype": "bfloat16"}
    (results / "step-laptop.json").write_text(json.dumps({"rows": [row], "model": model, "cores": 2}))
    missed = row | {"figure": "0.9", "reached": False}
    (results / "step-server.json").write_text(json.dumps({"rows": [missed], "cores": 64, "gpu": "Some GPU"}))
    return tmp_path


def options(place: Path) -> tuple[str, ...]:
    return ("--readme", str(place / "README.md"), "--results", str(place / "results"))


def test_the_readmes_table_is_fresh() -> None:
    """Red when a result is added, or a script, and the table is not made again."""
    done = call("--check")
    assert done.returncode == 0, done.stderr


def test_a_table_has_a_line_per_row_and_says_what_is_missing(place: Path) -> None:
    """Red when a miss is not marked, and when a script without a result goes unmentioned."""
    assert call(*options(place)).returncode == 0
    text = (place / "README.md").read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nThe end.\n")
    lines = text.splitlines()
    assert "| speed | 0.97 | ≥ 0.95 | model bfloat16, 2 cores |" in lines
    assert "| speed | 0.9 (missed) | ≥ 0.95 | Some GPU |" in lines
    assert sum("still to be measured" in line for line in lines) >= 3


def test_a_stale_table_fails_the_check_and_is_left_alone(place: Path) -> None:
    """Red when --check writes, or compares nothing."""
    call(*options(place))
    assert call("--check", *options(place)).returncode == 0
    result = place / "results" / "step-laptop.json"
    result.write_text(result.read_text().replace("0.97", "0.98"))
    before = (place / "README.md").read_text()
    done = call("--check", *options(place))
    assert done.returncode == 1
    assert done.stderr == "table: the table in README.md is stale: run python scripts/bench/table.py\n"
    assert (place / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("README.md", "nothing", "the README needs one line"),
        ("results/step-other.json", "{}", 'step-other.json has no "rows"'),
    ],
)
def test_what_is_wrong_is_one_line(place: Path, file: str, text: str, says: str) -> None:
    (place / file).write_text(text)
    done = call(*options(place))
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


# --- suites ---------------------------------------------------------------------------------------------------


def suites(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT.with_name("suites.py")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_readmes_suites_are_fresh() -> None:
    """Every ε of what is kept is computed again. Red when a kept run is edited, and when a table is not made again."""
    done = suites("--check")
    assert done.returncode == 0, done.stderr


def test_what_is_kept_of_a_suite_is_small_and_released(tmp_path: Path) -> None:
    """Red when ``private/`` or an adapter is copied, an unfinished run is kept, and when paths of a machine are."""
    suite = tmp_path / "runs" / "some"
    for cell, names in {"done": ("spec.yaml", "privacy.json", "metrics.jsonl"), "begun": ("spec.yaml",)}.items():
        run = suite / cell / "20260101-000000-abcdef"
        for folder in (run / "private", run / "adapter"):
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("{}\n")
        for name in names:
            (run / name).write_text("{}\n")
    (suite / "results.jsonl").write_text('{"run": "done/20260101-000000-abcdef"}\n')
    (suite / "done" / "20260101-000000-abcdef" / "plan.json").write_text(
        '{"name": "a", "origins": {"name": "/home/x:1:7"}}'
    )
    results = tmp_path / "results"
    done = suites("--keep", str(suite), "--results", str(results), "--readme", str(tmp_path / "README.md"))
    assert done.returncode != 0  # There is no README.
    kept = sorted(path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file())
    run = "some/done/20260101-000000-abcdef"
    assert kept == [f"{run}/{name}" for name in ("metrics.jsonl", "plan.json", "privacy.json", "spec.yaml")] + [
        "some/results.jsonl"
    ]
    assert json.loads((results / run / "plan.json").read_text()) == {"name": "a"}


def test_a_folder_without_results_is_refused_in_a_line(tmp_path: Path) -> None:
    """Red when what was kept before is removed first."""
    done = suites("--keep", str(tmp_path), "--results", str(tmp_path / "results"))
    assert done.returncode == 1
    assert done.stderr == f"suites: {tmp_path} has no results.jsonl: a folder that uudp bench wrote\n"
