from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """\
version: 1
name: tiny
seed: 3
data:
  name: posts
  source: {type: jsonl, path: posts.jsonl}
  user: user_id
  attributes: [plan, region]
  holdout: {users: 0.1, visibility: public}
  population: 1000
  weights: {free: 0.6, paid: 0.3, other: 0.1}
model:
  base: tiny-model
  adapter: {type: lora, r: 2}
segmentation: {type: attribute, column: plan, values: [free, paid]}
noise: {type: scale, epsilon: {free: 8, paid: 4, other: 2}}
privacy: {epsilon: 8, delta: 1e-6}
sampling: {expected: 16}
clipping: {norm: 0.5}
train:
  steps: 10
  optimizer: {type: adamw, lr: 2e-3}
compute: {workers: 1, deepspeed: {stage: 2}}
"""


@pytest.fixture
def tiny() -> str:
    return TINY


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file into an empty current folder and gives its name, so that errors quote it without a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UUDP_NO_SUCH", raising=False)

    def write_file(text: str | bytes, name: str = "spec.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write_file
