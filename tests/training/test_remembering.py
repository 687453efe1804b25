"""What is remembered of a trial: found again for the very same model alone, and never against another rank."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.training import remembering
from harness.training.job import Job
from harness.training.remembering import verdict_of
from tests.training import checks

CPU = torch.device("cpu")


class Trial:
    """Counts how often it was run."""

    def __init__(self, verdict: bool) -> None:
        self.verdict, self.runs = verdict, 0

    def __call__(self) -> bool:
        self.runs += 1
        return self.verdict


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UUDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("verdict", [True, False])
def test_a_trial_is_run_once(own_cache: Path, new_run: Callable[..., Path], verdict: bool) -> None:
    """A "no" is kept as well. Red when nothing is kept, or when whatever is kept counts as a yes."""
    job, trial = Job.load(new_run()), Trial(verdict)
    assert [verdict_of("made up", job, CPU, trial) for _ in range(3)] == [verdict] * 3
    assert trial.runs == 1
    assert verdict_of("another", job, CPU, Trial(not verdict)) is not verdict


@pytest.mark.parametrize("what", ["weights", "dtype", "adapter", "stage", "checkpointing", "code", "damaged"])
def test_another_model_or_code_is_tried_again(
    own_cache: Path,
    new_run: Callable[..., Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Red when any of these is left out of the key, or when the seal is not looked at."""
    own = tmp_path / "base"
    shutil.copytree(base, own)
    first = Trial(True)
    assert verdict_of("made up", Job.load(new_run(own)), CPU, first)
    changes: dict[str, Any] = {
        "dtype": {"model": {"dtype": "bfloat16"}},
        "adapter": {"model": {"adapter": {"r": 3, "alpha": 3, "targets": ["q_proj"]}}},
        "stage": {"compute": {"deepspeed": {"stage": 3}}},
        "checkpointing": {"compute": {"gradient_checkpointing": True}},
    }.get(what, {})
    if what == "weights":
        path = own / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    elif what == "code":
        monkeypatch.setattr(
            remembering, "MEMORY", remembering.Memory("trials", remembering.LIBRARIES, (Path(__file__),))
        )
    elif what == "damaged":
        (path,) = (own_cache / "trials").iterdir()
        path.write_text(path.read_text().replace("true", "false"))
    again = Trial(True)
    assert verdict_of("made up", Job.load(new_run(own, **changes)), CPU, again)
    assert first.runs == again.runs == 1


def test_ranks_try_together_or_not_at_all(own_cache: Path, new_run: Callable[..., Path], workers: Any) -> None:
    """One of two has lost its cache: both try, and wait for each other. Red when each looks for itself alone."""
    found = workers(2)(checks.tried, new_run(), own_cache)
    assert found == [{"runs": [1, 0, 1], "verdicts": [True, True, False]}] * 2
