"""A suite beside a spec of made users; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.plans import write_spec

SEGMENTS = {"type": "attribute", "column": "plan", "values": ["free"], "fallback": "paid"}
SUITE = """\
version: 1
suite: small
title: A small suite
spec: spec.yaml
set:
  train.steps: 5
policies:
  uniform: {noise: {type: uniform}}
  scale:
    noise: {type: scale, epsilon: {free: 100%, paid: 50%}}
budgets: [2, 8]
seeds: [1, 2]
baselines: [uniform-strictest]
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a suite, a piece of which is replaced, and its spec into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UUDP_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    weights = {"free": 0.75, "paid": 0.25}

    def write(replace: str = "", by: str = "", *, spec: Mapping[str, Any] | None = None) -> str:
        changes: dict[str, Any] = {"segmentation": SEGMENTS, "data": {"weights": weights}, **(spec or {})}
        write_spec(tmp_path, **changes)
        assert replace in SUITE
        Path("suite.yaml").write_text(SUITE.replace(replace, by, 1))
        return "suite.yaml"

    return write
