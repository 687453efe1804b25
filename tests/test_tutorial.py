"""The tutorial, run as written, on a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.plugins import source
from tests.launching import ROOT
from tests.tiny import save_base

KINDS = [kind for kind in ("csv", "jsonl") if kind in source.targets()][:1]
SMALL = (
    "train.steps=2", "train.checkpoint_every=1", "data.max_tokens=64", "model.dtype=float32",
    "compute.accelerator=cpu", "compute.retries=0",
)  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_from_a_file_of_users_and_texts_to_a_report(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UUDP_CACHE": str(tmp_path / "cache"), "COLUMNS": "80"}
    command = [sys.executable, str(ROOT / "scripts" / "tutorial.py"), "--folder", "here", "--base", str(base)]
    answer = subprocess.run(
        [*command, "--format", kind, *SMALL], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (report,) = (tmp_path / "here" / "runs" / "tickets").glob("*/report.html")
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("report: ")]
    assert line == f"report: {report}"
    for verb in ("init", "validate", "plan", "run", "runs"):
        assert f"$ uudp {verb}" in answer.stdout
    assert answer.stdout.rstrip().endswith("finished")
    assert "invoice" not in answer.stdout + answer.stderr  # a text of the data
    for control in ("\x1b", "\r"):
        assert control not in answer.stdout + answer.stderr
