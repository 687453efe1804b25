"""A laptop's folder with a small spec, and nothing of a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cluster.submitting import Submission
from harness.spec import load_spec
from tests.tiny import made_posts, write_posts

STORAGE = "/mnt/shared/uudp"


def document(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": 1,
        "name": "mails",
        "data": {
            "name": "mails",
            "source": {"type": "jsonl", "path": "posts.jsonl"},
            "attributes": ["plan"],
            "holdout": {"users": 0.3, "visibility": "public"},
        },
        "model": {"base": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "privacy": {"epsilon": 8, "delta": 1e-5, "accountant": "rdp"},
        "sampling": {"expected": 8},
        "train": {"steps": 3},
        "compute": {"storage": STORAGE},
    }
    for key, value in changes.items():
        found[key] = {**found[key], **value} if isinstance(found.get(key), dict) else value
    return found


class Laptop:
    """The current folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_posts(folder / "posts.jsonl", made_posts(40))

    def spec(self, **changes: Any) -> Path:
        path = self.folder / "mails.yaml"
        path.write_text(yaml.safe_dump(document(**changes)))
        return path

    def submission(self, *overrides: str, verb: str = "run", resume: str | None = None, **changes: Any) -> Submission:
        loaded = load_spec(self.spec(**changes), overrides)
        return Submission(verb, {"spec.yaml": loaded}, overrides, loaded.spec.name, resume=resume)


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    monkeypatch.chdir(tmp_path)
    return Laptop(tmp_path)


def told(folder: Path) -> Any:
    return json.loads((folder / "job.json").read_text())
