"""The tutorial, run as written, on somebody's own CSV and a tiny model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.cli import main
from harness.planning import make_plan
from tests.launching import ROOT
from tests.tiny import save_base

pytestmark = pytest.mark.ray

SCRIPT = ROOT / "scripts" / "tutorial.py"
SMALL = (
    "train.steps=2", "train.checkpoint_every=1", "data.max_tokens=64", "model.dtype=float32", "sampling.expected=8",
    "compute.accelerator=cpu", "compute.retries=0",
)  # fmt: skip


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_from_ones_own_csv_of_users_and_texts_to_a_report(tmp_path: Path) -> None:
    """As a spreadsheet writes it: semicolons, an old encoding, spaces in the header, quoted line breaks."""
    base = save_base(tmp_path / "base")
    rows = "".join(f'u{n % 30};"My \x80 {n}\nis at the caf\xe9"\n' for n in range(90))
    (tmp_path / "mine.csv").write_bytes(f" user ; text \n{rows}".replace("\x80", "€").encode("cp1252"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UUDP_CACHE": str(tmp_path / "cache"), "COLUMNS": "80"}
    command = [sys.executable, str(SCRIPT), "mine.csv", "--folder", "here", "--base", str(base), *SMALL]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, said
    (report,) = (tmp_path / "here" / "runs" / "mine").glob("*/report.html")
    commands = [line for line in answer.stdout.splitlines() if line.startswith("$ uudp ")]
    assert [line.split()[2] for line in commands] == ["init", "validate", "plan", "run", "report"]
    assert commands[0] == "$ uudp init mine --data ../mine.csv"
    assert commands[-1] == f"$ uudp report runs/mine/{report.parent.name}"
    assert [line for line in answer.stdout.splitlines() if line.startswith("report: ")] == [f"report: {report}"] * 2
    assert "is at the caf" not in said
    for control in ("\x1b", "\r"):
        assert control not in said


def test_the_tickets_that_it_makes_without_a_file_plan_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script().make_tickets(Path("tickets.csv"))
    assert main.run_app(["init", "first", "--data", "tickets.csv"]) == 0
    plan = make_plan("first.yaml", ["privacy.accountant=rdp", "train.steps=2"])
    assert (plan.spec.data.user, plan.spec.data.text) == ("customer", "text")
    assert plan.population.users > 64


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.csv").touch()
    assert script().split(["a=b.csv", "train.steps=1"]) == (Path("a=b.csv"), ["train.steps=1"])
    with pytest.raises(SystemExit, match=r"^tutorial: there is no file nothing\.csv$"):
        script().split(["nothing.csv"])


def test_each_file_has_a_spec_and_one_for_other_data_stops_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: keep whatever spec is there, and train on the data of the last time."""
    monkeypatch.chdir(tmp_path)
    found = script()
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(found, "uudp", lambda folder, *arguments: ran.append(arguments))
    for folder in ("here/runs/mine/x", "here/runs/My-2nd/x", "b"):
        Path(folder).mkdir(parents=True)
    for name in ("mine.csv", "b/mine.csv", "My 2nd.v1.csv"):
        Path(name).touch()

    def run(*arguments: str) -> str | None:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["tutorial.py", *arguments, "--folder", "here"])
        try:
            found.main()
        except SystemExit as stop:
            return str(stop.code)
        return None

    spec = "data: {source: {type: csv, path: ../mine.csv}, user: ann, text: {prompt: p, completion: c}}\n"
    assert run("mine.csv") is None
    assert ran[0] == ("init", "mine", "--data", "../mine.csv")
    Path("here/mine.yaml").write_text(spec)
    assert run("mine.csv", "--user", "ann") is None
    assert ran[0] == ("validate", "mine.yaml")
    assert run("My 2nd.v1.csv") is None
    assert ran[0] == ("init", "My-2nd", "--data", "../My 2nd.v1.csv")
    tail = "; change it, move it away, or give another --folder"
    for arguments, why in (
        (["b/mine.csv"], "is for other data, ../mine.csv"),
        (["mine.csv", "--user", "bob"], "has another column of users, ann"),
        (["mine.csv", "--text", "p"], "has another column of texts, {'prompt': 'p', 'completion': 'c'}"),
    ):
        assert run(*arguments) == f"tutorial: here/mine.yaml {why}{tail}"
        assert not ran
    Path("here/mine.yaml").write_text("data: 3")
    assert run("mine.csv") == f"tutorial: here/mine.yaml does not say that it is for these data{tail}"
    capsys.readouterr()
