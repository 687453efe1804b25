"""``uudp doctor``: says what there is, and 4 where nothing can be trained."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path

import pytest

from harness.cli import main
from harness.training import machine


def test_a_machine_that_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "this machine can validate, plan and account; it can train"
    assert main.run_app(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["can"] == {"plan": True, "train": True}
    assert {c["what"] for c in document["checks"]} == {
        "python", "cores", "memory", "disk", "cache", "device", "compiler", "hub", *machine.PACKAGES,
    }  # fmt: skip


def test_without_a_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Break: exit 0 whatever is missing."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "deepspeed":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main.run_app(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "missing  deepspeed     not installed" in out
    assert 'pip install "uudp[train]"' in out
    assert "it can NOT train" in out


def test_a_hub_that_does_not_answer_costs_a_moment_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: wait for the name server without a limit."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(machine, "_answers", lambda url: bool(time.sleep(3)) or True)
    began = time.monotonic()
    found = machine._hub()
    assert time.monotonic() - began < 2
    assert (found.state, found.found) == ("note", "offline: no answer")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    found = machine._cache(tmp_path / "cache")
    assert found.state == "missing"
    assert "UUDP_CACHE" in found.advice
