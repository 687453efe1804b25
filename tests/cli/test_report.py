"""``uudp report``: which run is meant, and that its page is written again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.cli import main
from tests.launching import Run

pytestmark = pytest.mark.ray

IDS = ("20260102-030405-aaaaaa", "20260102-030405-bbbbbb", "20270102-030405-cccccc")


@pytest.fixture
def runs(whole_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three finished runs in ``runs/``."""
    monkeypatch.chdir(tmp_path)
    for run_id in IDS:
        name = "whole" if run_id != IDS[2] else "other"
        shutil.copytree(whole_run.folder, tmp_path / "runs" / name / run_id)
    return tmp_path / "runs"


def test_it_writes_the_same_page_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "other" / IDS[2]
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main.run_app(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text() == before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (IDS[0], IDS[0]),
        (IDS[1], IDS[1]),
        ("2027", IDS[2]),
        ("20260102-030405-b", IDS[1]),
        ("runs/whole/" + IDS[0],) * 2,
    ],
)
def test_a_run_is_a_folder_an_id_or_the_beginning_of_one(
    runs: Path, name: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run_app(["report", name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (folder,) = runs.glob(f"*/{Path(found).name}")
    assert document["run"] == str(folder)
    assert document["report"] == str(folder / "report.html")
    assert document["summary"]["name"] == "whole"


def test_runs_that_are_kept_elsewhere(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.rename(runs.with_name("kept"))
    assert main.run_app(["report", "2027", "--out", "kept"]) == 0
    assert main.run_app(["report", "2027"]) == 2
    assert 'uudp: there is no run "2027" in runs' in capsys.readouterr().err


def test_an_unknown_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["report", "20260102-030405-aaaaab"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f'uudp: there is no run "20260102-030405-aaaaab" in runs; did you mean "{IDS[0]}"?\n'


def test_a_beginning_that_several_runs_share(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["report", "2026"]) == 2
    assert capsys.readouterr().err == f'uudp: several runs begin with "2026": {IDS[0]}, {IDS[1]}\n'


def test_a_folder_that_is_no_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["report", str(runs)]) == 2
    assert "there is no run" in capsys.readouterr().err


def test_the_page_of_a_run_without_noise_stays_marked(
    unprotected_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: let `build` take the guarantee's words from anywhere but the run's own documents."""
    folder = tmp_path / "copy"
    shutil.copytree(unprotected_run.folder, folder)
    (folder / "report.html").unlink()
    assert main.run_app(["report", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert (summary["private"], summary["epsilon"]) == (False, None)
    assert "NOT PRIVATE" in (folder / "report.html").read_text()
