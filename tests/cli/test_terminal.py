"""What people see: 80 columns, no colour, no control characters in a log; completion; packaged specs by name."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.plan import origin_line
from harness.spec import catalog, load_spec
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


def test_every_plugin_is_explained_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, how a spec names it, every parameter in words. Break: print docstrings as they are written."""
    for kind, registry in catalog.KINDS.items():
        for name in registry:
            assert main.run_app(["policies", "show", f"{kind}/{name}"]) == 0
            out = capsys.readouterr().out
            assert [line for line in out.splitlines() if len(line) > 80 and "/" not in line] == []
            assert f"type: {name}" in out
            assert "(default None)" not in out
            (one,) = catalog.details(f"{kind}/{name}")
            assert all(parameter["description"] for parameter in one["parameters"])


def test_every_help_is_a_reference_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its arguments, an example and its exit codes. Break: a verb without an example, or a longer one."""
    monkeypatch.setenv("COLUMNS", "80")
    for verb in main.VERBS:
        assert main.run_app([verb, "--help"]) == 0
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if len(line) > 80] == []
        assert "[[" not in out
        assert "\n  Example" in out
        assert "\n  Exit codes:\n    0    done\n" in out
        for command in re.findall(r"^    uudp (\w+)", out, flags=re.MULTILINE):
            assert command == verb
    assert main.run_app([]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "    130  interrupted; what was begun can be resumed" in out


DRIVER = """\
source <(uudp --show-completion bash)
ask() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    $(complete -p uudp | sed 's/.*-F \\([^ ]*\\).*/\\1/') uudp
    printf '%s|' "${COMPREPLY[@]}"
    echo
}
ask uudp ru
ask uudp run --res
ask uudp plan qu
ask uudp validate my
ask uudp validate my-spec.yaml inn
ask uudp policies show us
ask uudp policies show noise/s
ask uudp policies new se
ask uudp generate 2026
ask uudp runs compare 20260101-100000-aaaaaa 2
ask uudp account --accountant r
ask uudp plan my-spec.yaml train.
"""


def test_bash_completes_verbs_options_specs_plugins_and_runs(tmp_path: Path) -> None:
    """With the function that bash calls. Break: any one of the `autocompletion` arguments taken out."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "uudp"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness "$@"\n')
    command.chmod(0o755)
    for path in ("my-spec.yaml", "my-data.csv", "inner/other.yml", "inner/notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for name in ("20260101-100000-aaaaaa", "20260102-100000-bbbbbb"):
        (tmp_path / "runs" / "mine" / name).mkdir(parents=True)
        (tmp_path / "runs" / "mine" / name / "plan.json").touch()
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", DRIVER], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert [sorted(filter(None, line.split("|"))) for line in done.stdout.splitlines()] == [
        ["run", "runs"],
        ["--resume"],
        ["quickstart"],
        ["my-spec.yaml"],
        ["inner/other.yml"],
        ["usage"],
        ["noise/sample", "noise/scale", "noise/schedule"],
        ["segmentation", "sensitivity", "session"],
        ["20260101-100000-aaaaaa", "20260102-100000-bbbbbb"],
        ["20260102-100000-bbbbbb"],
        ["rdp"],
        [],
    ], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
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
