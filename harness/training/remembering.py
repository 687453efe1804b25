"""Remembers what a trial on made-up tokens said of a model: the same model, code and machine would say it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.remembering import Memory
from harness.training.job import Job
from harness.training.model import Base
from harness.training.ranks import any_rank

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "numpy")
MEMORY = Memory("trials", LIBRARIES, tuple(sorted(Path(__file__).parent.glob("*.py"))))


def verdict_of(name: str, job: Job, device: torch.device, trial: Callable[[], bool]) -> bool:
    """What a trial says, on this machine or an earlier time; collective.

    Args:
        name: Of the trial.
        job: Names the model and all that changes how it computes.
        device: Where it does.
        trial: Looks at the model alone, and may be collective: all ranks run it, or none does.

    Returns:
        Whether every rank's verdict is yes.
    """
    key = _key(name, job, device)
    known = MEMORY.find(key)
    if any_rank(known is None, device):
        known = {"verdict": trial()}
        MEMORY.keep(key, known)
    # Every rank must do the same, whatever one of them saw.
    return not any_rank(known is None or known.get("verdict") is not True, device)


def _key(name: str, job: Job, device: torch.device) -> str:
    compute = job.spec.compute
    found: dict[str, Any] = {
        "trial": name,
        "base": Base(job.base, "").digest,
        "model": job.spec.model.model_dump(mode="json", exclude={"base"}),
        "sharding": compute.deepspeed.model_dump(mode="json"),
        "checkpointing": compute.gradient_checkpointing,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
    }
    return json.dumps(found, sort_keys=True)
