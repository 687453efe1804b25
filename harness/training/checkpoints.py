"""Checkpoints: whole or absent, checked when read, independent of workers and ZeRO stage, without pickle.

A checkpoint holds weights, optimizer, the clip's factor, step *and* the metrics that its step releases, together.
Metrics are released only once it is durable, and a resumed run continues after it, so no step is ever released twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import MachineError
from harness.files import as_json, sync_folder, write_private
from harness.training.gathered import Stored, in_parts
from harness.training.ranks import First, any_rank, own_ranks, tell

KEPT = 2
KINDS = ("parameters", "optimizer")
"""Each is a file, or, where there is more of it than one file takes, several: ``parameters-00002.safetensors``."""
STATE, DIGESTS = "state.json", "sha256.json"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        step: Steps taken.
        parameters: Trainable weights by name, float32; maybe gathered or read only when they are looked up.
        optimizer: Optimizer state by ``kind/name``, float32; the same.
        optimizer_steps: The optimizer's own step count.
        rows: All metrics of this series up to this step.
        initial: Digest of the adapter's initial weights, to see that a resumed run begins from the same.
        clip_factor: c_t of an adaptive clip, for the step after this one; 1 without.
    """

    step: int
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    optimizer_steps: int
    rows: Sequence[Mapping[str, Any]]
    initial: str
    clip_factor: float = 1.0


def save(folder: Path, checkpoint: Checkpoint, device: torch.device = _CPU) -> None:
    """Writes a checkpoint beside the older ones and then removes all but the newest two.

    Collective: rank 0 writes, and tensors may be gathered from all ranks while it does.

    Args:
        folder: Where checkpoints are.
        checkpoint: The state.
        device: Of the collective.

    Raises:
        MachineError: The disk is full or not writable; nothing of the older ones is lost.
    """
    target = folder / _name(checkpoint.step)
    partial = folder / f".{target.name}.partial"
    first = First(target)
    first.do(functools.partial(_begin, folder, partial))
    digests: dict[str, str] = {}
    for kind in KINDS:
        for number, part in enumerate(in_parts(getattr(checkpoint, kind)), start=1):
            name = f"{kind}.safetensors" if number == 1 else f"{kind}-{number:05d}.safetensors"
            first.do(functools.partial(_write_part, partial / name, part, digests))
    first.do(functools.partial(_finish, checkpoint, digests, partial, target))
    first.agree(device)


def _begin(folder: Path, partial: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)


def _write_part(path: Path, part: Mapping[str, Tensor], digests: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(dict(part), str(path))
    digests[path.name] = _digest_and_sync(path)


def _finish(checkpoint: Checkpoint, digests: dict[str, str], partial: Path, target: Path) -> None:
    state = {
        "step": checkpoint.step,
        "optimizer_steps": checkpoint.optimizer_steps,
        "rows": list(checkpoint.rows),
        "initial": checkpoint.initial,
        "clip_factor": checkpoint.clip_factor,
        "files": sorted(digests),
    }
    write_private(partial / STATE, as_json(state).encode())
    digests[STATE] = _digest_and_sync(partial / STATE)
    write_private(partial / DIGESTS, as_json(digests).encode())
    sync_folder(partial)
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    sync_folder(target.parent)
    for old in sorted(target.parent.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. A damaged one is passed over for the one before it.

    Its weights are read when they are looked up.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        if _is_whole(path) and (checkpoint := _open(path)) is not None:
            return checkpoint
    return None


def load_together(folder: Path, device: torch.device) -> Checkpoint | None:
    """`load_newest`, the same on every rank: the first one checks, and all read what it found. Collective.

    Args:
        folder: Where checkpoints are.
        device: Of the collective.

    Raises:
        MachineError: A rank can't read what the first one can.
    """
    found = load_newest(folder) if own_ranks().rank == 0 else None
    step = int(tell(torch.tensor([-1 if found is None else found.step]), device).item())
    if step >= 0 and own_ranks().rank != 0:
        found = _open(folder / _name(step))
    if any_rank(step >= 0 and found is None, device):
        raise MachineError(f"{folder}: not every worker can read the checkpoint of step {step}; all need this folder")
    return found


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _is_whole(path: Path) -> bool:
    """Whether all files are there, and are what was written."""
    try:
        digests = json.loads((path / DIGESTS).read_bytes())
        if any(_digest(path / name) != digests[name] for name in (STATE, *digests)):
            return False
        files = json.loads((path / STATE).read_bytes())["files"]
        return {*files, STATE} == set(digests)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(path: Path) -> Checkpoint | None:
    from safetensors import SafetensorError

    try:
        state = json.loads((path / STATE).read_bytes())
        parameters, optimizer = (
            Stored([path / name for name in state["files"] if name.startswith(kind)]) for kind in KINDS
        )
        found = Checkpoint(
            step=state["step"],
            parameters=parameters,
            optimizer=optimizer,
            optimizer_steps=state["optimizer_steps"],
            rows=tuple(state["rows"]),
            initial=state["initial"],
            clip_factor=float(state["clip_factor"]),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return found if path.name == _name(found.step) else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_and_sync(path: Path) -> str:
    os.chmod(path, 0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
