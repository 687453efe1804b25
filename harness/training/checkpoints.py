"""Checkpoints: whole or absent, checked when read, independent of workers and ZeRO stage, without pickle.

A checkpoint holds weights, optimizer, the clip's factor, step *and* the metrics that its step releases, together.
Metrics are released only once it is durable, and a resumed run continues after it, so no step is ever released twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.files import as_json, sync_folder, unwritable, write_private

KEPT = 2
FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    Attributes:
        step: Steps taken.
        parameters: Trainable weights by name, float32.
        optimizer: Optimizer state by ``kind/name``, float32.
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


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint beside the older ones and then removes all but the newest two.

    Raises:
        MachineError: The disk is full or not writable; nothing of the older ones is lost.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".{target.name}.partial"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        digests: dict[str, str] = {}
        for name, tensors in zip(FILES, (checkpoint.parameters, checkpoint.optimizer), strict=False):
            save_file({k: v.contiguous() for k, v in tensors.items()}, str(partial / name))
            digests[name] = _digest_and_sync(partial / name)
        state = {
            "step": checkpoint.step,
            "optimizer_steps": checkpoint.optimizer_steps,
            "rows": list(checkpoint.rows),
            "initial": checkpoint.initial,
            "clip_factor": checkpoint.clip_factor,
        }
        write_private(partial / "state.json", as_json(state).encode())
        digests["state.json"] = _digest_and_sync(partial / "state.json")
        write_private(partial / "sha256.json", as_json(digests).encode())
        sync_folder(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(error, target) from None
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None. A damaged one is passed over for the one before it."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        checkpoint = _load(path)
        if checkpoint is not None:
            return checkpoint
    return None


def _load(path: Path) -> Checkpoint | None:
    from safetensors.torch import load_file

    try:
        digests = json.loads((path / "sha256.json").read_bytes())
        if any(hashlib.sha256((path / name).read_bytes()).hexdigest() != digests[name] for name in FILES):
            return None
        state = json.loads((path / "state.json").read_bytes())
        return Checkpoint(
            step=state["step"],
            parameters=load_file(str(path / "parameters.safetensors")),
            optimizer=load_file(str(path / "optimizer.safetensors")),
            optimizer_steps=state["optimizer_steps"],
            rows=tuple(state["rows"]),
            initial=state["initial"],
            clip_factor=float(state["clip_factor"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest_and_sync(path: Path) -> str:
    os.chmod(path, 0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
