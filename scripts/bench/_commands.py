"""What the scripts share that run whole commands: what they are asked, and a command with what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPEC = "quickstart"


def asked(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The spec that is named, or the quickstart; and the changes to it."""
    named = [one for one in arguments if "=" not in one]
    return (named[0] if named else SPEC), [one for one in arguments if "=" in one]


def uudp(verb: str, spec: str, changes: Sequence[str], out: Path) -> list[str]:
    """``uudp run …`` or ``uudp sweep …``, to be run."""
    return [sys.executable, "-m", "harness", verb, spec, "--yes", "--out", str(out), *changes]


def run(command: Sequence[str]) -> str:
    """Runs to its end; returns its stdout. All that it says is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def document(command: Sequence[str]) -> dict[str, Any]:
    """The JSON document that a command prints."""
    found: dict[str, Any] = json.loads(run([*command, "--json"]))
    return found
