"""The command itself: exit codes, streams, and that nothing shows a traceback."""

from __future__ import annotations

import json
import os
import resource
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import __version__
from harness.cli import console, main
from harness.errors import BudgetError, Interrupted

VALID = """\
version: 1
name: tiny
data: {name: d, source: {type: jsonl, path: x.jsonl}, holdout: {users: 0.1, visibility: public}}
model: {base: m}
sampling: {expected: 8}
train: {steps: 3}
"""
ROOT = Path(main.__file__).resolve().parents[2]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(VALID)
    return "spec.yaml"


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True, text=True, env=environment, check=False, timeout=60, **options,
    )  # fmt: skip


def test_valid_specs(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["validate", spec, spec, "train.steps=4"]) == 0
    assert capsys.readouterr() == ("spec.yaml: ok\nspec.yaml: ok\n", "")


def test_a_wrong_spec(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(VALID.replace("steps: 3", "steps: many"))
    assert main.run_app(["validate", "bad.yaml", spec]) == 2
    out, err = capsys.readouterr()
    assert out == "spec.yaml: ok\n"
    assert err == 'bad.yaml:6:16 train.steps: must be a whole number of at least 1 and at most 1000000, found "many"\n'


def test_json(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["validate", spec, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "specs": [{"spec": "spec.yaml", "ok": True, "problems": []}],
    }
    assert main.run_app(["validate", spec, "--json", "train.stpes=1", "seed=-1"]) == 2
    out, err = capsys.readouterr()
    first = json.loads(out)["specs"][0]["problems"][1]
    assert first["key"] == "train.stpes"
    assert first["suggestion"] == "steps"
    assert (first["file"], first["line"]) == ("<command line>", None)
    assert len(err.splitlines()) == 2


def test_a_missing_file_is_one_line(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["validate", "spce.yaml"]) == 2
    assert capsys.readouterr().err == 'spce.yaml: there is no such file; did you mean "spec.yaml"?\n'


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["valdate"], "uudp: No such command 'valdate'. Did you mean 'validate'?"),
        (["validate", "--jsno", "x"], 'uudp: No such option: --jsno; did you mean "--json"?'),
        (["validate"], "uudp: Missing argument 'SPEC'."),
        (["validate", "a=b"], "uudp: validate needs a spec"),
        (["--nonsense"], "uudp: No such option: --nonsense"),
        (["schema", "x"], "uudp: Got unexpected extra argument(s) (x)"),
    ],
)
def test_wrong_arguments(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.rstrip("\n")) == ("", line)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("harness.spec.load_spec", fail)


def test_errors_have_their_exit_codes(
    spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code, said in [
        (BudgetError("the budget\nrefuses"), 3, "uudp: the budget\nuudp: refuses\n"),
        (Interrupted("resume with --resume"), 130, "uudp: resume with --resume\n"),
        (KeyboardInterrupt(), 130, "uudp: interrupted\n"),
    ]:
        raising(monkeypatch, error)
        assert main.run_app(["validate", spec]) == code
        assert capsys.readouterr().err == said


def test_a_bug_shows_no_text_and_keeps_its_traceback_private(
    spec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(monkeypatch, ValueError("dear diary"))
    assert main.run_app(["validate", spec]) == 1
    out, err = capsys.readouterr()
    assert "diary" not in out + err
    assert len(err.splitlines()) == 1
    path = Path(err.split()[-1])
    assert "dear diary" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_version_help_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"uudp {__version__}\n"
    assert main.run_app([]) == 0
    helped = capsys.readouterr().out
    assert all(verb in helped for verb in main.VERBS)
    assert main.run_app(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["train"]


def test_lines_are_never_wrapped_and_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    console.err("x" * 500)
    console.out("[bold]é[/bold]")
    with pytest.raises(ValueError, match="JSON"):
        console.emit_json({"a": float("nan")})
    assert capsys.readouterr() == ("[bold]é[/bold]\n", "x" * 500 + "\n")


def test_as_a_process(spec: str) -> None:
    done = command("validate", spec, "clipping.norm=-1", env={"COLUMNS": "20"})
    assert done.returncode == 2
    assert done.stderr == (
        "<command line> clipping.norm: must be a number of at least 1e-06 and at most 1000000, found -1\n"
    )


def test_a_reader_that_leaves_early() -> None:
    script = f"{shlex.quote(sys.executable)} -m harness schema | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys; from harness.cli.main import run_app; run_app(['--help']); "
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'omegaconf', 'numpy'} & set(sys.modules); "
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    spent = []
    for _ in range(3):  # Seconds of a processor, the fewest of three: other work on the machine must not fail the test.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3
