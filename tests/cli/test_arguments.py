"""What verbs of daily use refuse of their arguments: one line each, exit code 2, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main

LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("policies new noise policies", 'policies new: "policies" means something to Python, YAML or uudp'),
        ("policies new noise harness", 'policies new: "harness" means something to Python, YAML or uudp'),
        ("policies new noise class", 'policies new: "class" means something to Python, YAML or uudp'),
        ("policies new noise on", 'policies new: "on" means something to Python, YAML or uudp'),
        ("policies new noise scale", 'policies new: uudp has, or will have, a noise "scale" of its own'),
        ("policies new noise product", 'policies new: uudp has, or will have, a noise "product" of its own'),
        (f"policies new noise {LONG}", "policies new: a name has at most 60 characters"),
        ("policies new noise ../x", "policies new: a name is lower-case letters, digits and _"),
        ("policies new nois x", 'policies new: "nois" is no kind of plugin that can be started; did you mean "noise"?'),
        ("policies new", "usage: uudp policies new KIND NAME"),
        ("policies lst", 'policies: there is no "lst"; did you mean "list"?'),
        (f"report {LONG}", 'there is no run "nnn'),
        (f"runs compare {LONG} b", 'there is no run "nnn'),
        (f"generate {LONG} --prompt a", 'there is no run "nnn'),
        ("generate r --prompt a --temperature nan", "Invalid value for '--temperature'"),
        ("generate r --prompt a --temperature inf", "Invalid value for '--temperature'"),
        ("generate r --prompt a --temperature -1", "Invalid value for '--temperature'"),
        ("generate r --prompt a --seed 9223372036854775808", "Invalid value for '--seed'"),
        ("generate r --prompt a --seed -1", "Invalid value for '--seed'"),
        ("generate r --prompt a --tokens 0", "Invalid value for '--tokens'"),
        (f"validate x={LONG}", "validate needs a spec"),
        (f"plan {LONG}", f"{LONG}: can't be read (File name too long)"),
    ],
)
def test_one_line(
    arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run_app(arguments.split(" ")) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.removeprefix("uudp: ").startswith(said)
    assert not any(tmp_path.iterdir())
