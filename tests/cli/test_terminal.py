"""What people see: 80 columns, no colour, no control characters in a log; completion; packaged specs by name."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.plan import origin_line
from harness.spec import load_spec
from tests.launching import ROOT
from tests.plans import write_spec

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """What ``uudp …`` shows on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("verb", [("--help",), ("run", "--help"), ("plan", "spec.yaml"), ("runs",)])
def test_80_columns_without_colour(tmp_path: Path, verb: tuple[str, ...]) -> None:
    """Break: print whole values, or absolute paths of origins."""
    deep = tmp_path / ("a-folder-with-a-long-name-" * 3)
    deep.mkdir()
    spec = write_spec(deep, model={"base": "somebody/" + "a-model-with-a-very-long-name" * 3})
    verb = tuple(str(spec) if word == "spec.yaml" else word for word in verb)
    shown = on_a_terminal(tmp_path, *verb, NO_COLOR="1")
    assert len(shown.splitlines()) >= 1
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "\x1b" not in shown
    if "plan" in verb:
        assert "  train.steps = 10  (" in shown
        assert "(…" in shown  # the end of a path says more than its beginning


def test_error_lines_are_never_cut(tmp_path: Path) -> None:
    name = "x" * 150
    shown = on_a_terminal(tmp_path, "validate", f"{name}.yaml")
    assert f"{name}.yaml" in shown


@pytest.mark.parametrize(
    ("value", "origin", "line"),
    [
        (3, "default", "  a.key = 3  (default)"),
        ("v" * 100, "s.yaml:1:2", f"  a.key = {'v' * 55}…  (s.yaml:1:2)"),
        ("a\nb\x1b", "default", "  a.key = a b\\x1b  (default)"),
        ("v" * 100, "/p" * 60 + ":1:2", f"  a.key = {'v' * 11}…  (…{('/p' * 60 + ':1:2')[-53:]})"),
    ],
)
def test_origin_lines(value: object, origin: str, line: str) -> None:
    assert origin_line("a.key", value, origin) == line
    assert len(line) <= 81


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_the_verbs(tmp_path: Path, shell: str) -> None:
    """Break: switch completion off again."""
    environment = {
        **ENVIRONMENT, "_UUDP_COMPLETE": f"complete_{shell}", "COMP_WORDS": "uudp ru", "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "uudp ru", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    answer = subprocess.run(
        [sys.executable, "-m", "harness"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "runs" in answer.stdout
    assert "validate" not in answer.stdout


def test_a_packaged_spec_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A local file comes first. Break: look among the packaged specs before."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.yaml"):
        assert load_spec(name).path == ROOT / "specs" / "quickstart.yaml"
    Path("quickstart.yaml").write_text((ROOT / "specs" / "quickstart.yaml").read_text())
    assert load_spec("quickstart.yaml").path == Path("quickstart.yaml")
    for wrong in ("quickstart.yml", "schema.json", "../specs/quickstart.yaml"):
        assert main.run_app(["validate", wrong]) == 2
    assert "Traceback" not in capsys.readouterr().err
