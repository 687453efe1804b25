"""Every packaged spec, trained for a step on the real model and its own text: from the command line to the report.

Slow: `bash scripts/test.sh --slow tests/test_packaged_runs.py`. The specs lie on Shakespeare's characters and on made
users, so that each policy is used on a real text or on one whose risks are known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launching import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

SPECS = sorted(p.stem for p in (ROOT / "specs").glob("*.yaml"))
SHORT = [
    "train.steps=1", "evaluation.users=8", "evaluation.ordinary=false", "privacy.ledger=null",
    "compute.workers=1", "train.checkpoint_every=1",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_a_packaged_spec_from_end_to_end(spec: str, tmp_path: Path) -> None:
    """It exits with 0, claims no more than its budget, and reports; of made users, what its groups find as well."""
    written = yaml.safe_load((ROOT / "specs" / f"{spec}.yaml").read_text())
    expected = [] if "rate" in written.get("sampling", {}) else ["sampling.expected=16"]
    command = [sys.executable, "-m", "harness", "run", spec, "--yes", "--out", str(tmp_path), *SHORT, *expected]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*/*/report.html")
    plan = json.loads((run.parent / "plan.json").read_text())
    privacy = json.loads((run.parent / "privacy.json").read_text())
    assert privacy["status"] == "finished"
    assert privacy["epsilon"] <= written["privacy"]["epsilon"] * (1 + 1e-9)
    rows = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 1}
    html = run.read_text()
    assert all(group["name"] in html for group in plan["groups"])
    made = written["data"].get("source", {}).get("type") == "synthetic"
    if made and len(plan["groups"]) > 1:
        assessed = json.loads((run.parent / "assessment.json").read_text())
        assert assessed["by"]
        assert "Does the assessment find who is at risk?" in html
