"""Lines about the work as JSON objects, for whoever collects a cluster's logs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import run_app
from harness.cli.run import lines_console


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def structured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UUDP_LOG", "json")


def test_errors_have_their_level(structured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: print errors as notes (`error` without its level)."""
    spec = tmp_path / "bad.yaml"
    spec.write_text('version: 1\nname: "a \\"b\\""\nstep: 3\n')
    assert run_app(["validate", str(spec)]) == 2
    found = lines(capsys)
    assert {line["level"] for line in found} == {"error"}
    assert any("did you mean" in line["message"] for line in found)


def test_a_released_row_is_there_whole(structured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: leave fields out."""
    row = {"series": "private", "step": 4, "epsilon": 1.25, "eval/loss": 4.5, "eval/loss/free": 4.25}
    watching = lines_console()
    watching.note("training")
    watching.note("")
    watching.released(row)
    assert lines(capsys) == [
        {"level": "info", "message": "training"},
        {"level": "info", "message": "private step 4: ε spent 1.250, hold-out loss 4.5000", "released": row},
    ]


def test_a_terminal_gets_no_bar(
    structured: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: leave the environment out where the bar is chosen."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    watching = lines_console()
    watching.note("training")
    assert lines(capsys) == [{"level": "info", "message": "training"}]


def test_what_is_no_number_is_no_broken_line(structured: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: hand every field to `json.dumps` as it is: NaN is not JSON."""
    lines_console().released({"series": "ordinary", "step": 1, "eval/loss": math.nan})
    text = capsys.readouterr().err
    assert "NaN" not in text
    assert json.loads(text)["message"] == "ordinary step 1, hold-out loss nan"


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: take any word for plain lines."""
    monkeypatch.setenv("UUDP_LOG", "jsno")
    assert run_app(["doctor"]) == 2
    assert capsys.readouterr().err == 'uudp: UUDP_LOG=jsno: it must be "text" or "json"\n'
