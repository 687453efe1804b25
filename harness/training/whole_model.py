"""Where all parameters are trained: the model as it begins, and as it is saved."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.files import as_json, release_folder
from harness.training.engine import Engine
from harness.training.gathered import in_parts
from harness.training.ghost import Ghost
from harness.training.layers import Weight
from harness.training.ranks import First
from harness.training.reaching import check_reach
from harness.training.verifying import verify, verify_divided

WEIGHTS = "model.safetensors"
Watched = tuple[Ghost, Engine]
_CPU = torch.device("cpu")
_ENDLESS = 1 << 62


def prepare(model: Any) -> Any:
    """Makes every parameter of a base model trainable, in float32; nothing of it depends on a batch."""
    model.requires_grad_(True)
    model.config.use_cache = False
    return model.eval()


def watched_engine(model: Any, device: torch.device, make_engine: Callable[[Sequence[Weight]], Engine]) -> Watched:
    """What finds the norms of units' gradients in a model, seen to be right for it, and the model under DeepSpeed.

    Collective at ZeRO 3.

    Args:
        model: As `prepare` made it; at ZeRO 3 divided.
        device: Where it is.
        make_engine: Hands it to DeepSpeed, with the weights that are trained.

    Raises:
        ArgumentError: The model has a weight that can't be trained privately.
        UserError: Its loss is not finite.
    """
    ghost = Ghost(model)
    if not is_divided(model):
        verify(model, ghost, device)
        return ghost, make_engine(ghost.weights)
    engine = make_engine(ghost.weights)
    check_reach(engine)
    verify_divided(engine, ghost)
    return ghost, engine


def is_divided(model: Any) -> bool:
    """Whether ZeRO 3 has divided a model's weights among the workers."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def save_model(
    model: Any, parameters: Mapping[str, Tensor], base: Path, folder: Path, device: torch.device = _CPU
) -> None:
    """Saves a model from full float32 weights, with the base's tokenizer, whole or not at all; collective.

    Args:
        model: As it was trained; while ZeRO-3 has it partitioned, its own parameters are empty.
        parameters: Its trained weights by name, each looked up once, which may be collective; rank 0 writes.
        base: The base model's folder.
        folder: Where; `AutoModelForCausalLM.from_pretrained` loads it.
        device: Of the collective.

    Raises:
        MachineError: The disk is full or not writable.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    first = First(folder)
    first.do(lambda: shutil.rmtree(partial, ignore_errors=True))
    # Of a tied weight one name is enough; what is no parameter is as it was.
    rest = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in rest}
    parts: dict[Path, int] = {}
    for part in in_parts(parameters):
        first.do(functools.partial(_save_part, model, {**buffers, **part}, base, partial, parts))
        buffers = {}
    first.do(functools.partial(_finish, parts, base, partial, folder))
    first.agree(device)


def _save_part(model: Any, state: Mapping[str, Tensor], base: Path, partial: Path, parts: dict[Path, int]) -> None:
    """As transformers saves weights, which may have other names and no ties in a file, but only these."""
    config, model.config = model.config, type(model.config).from_pretrained(base)
    try:
        model.config.dtype = torch.float32
        whole = {name: value.contiguous() for name, value in state.items()}
        model.save_pretrained(partial, state_dict=whole, max_shard_size=_ENDLESS)
    finally:
        model.config = config
    path = partial / f"part-{len(parts)}.safetensors"
    os.replace(partial / WEIGHTS, path)
    parts[path] = sum(value.nbytes for value in state.values())


def _finish(parts: dict[Path, int], base: Path, partial: Path, folder: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    if len(parts) == 1:
        os.replace(next(iter(parts)), partial / WEIGHTS)
    else:
        places: dict[str, str] = {}
        for number, path in enumerate(parts, start=1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            with safe_open(str(path), framework="pt") as file:
                places |= dict.fromkeys(file.keys(), name)
            os.replace(path, partial / name)
        index = {"metadata": {"total_size": sum(parts.values())}, "weight_map": dict(sorted(places.items()))}
        (partial / f"{WEIGHTS}.index.json").write_text(as_json(index))
    AutoTokenizer.from_pretrained(base).save_pretrained(partial)
    release_folder(partial, folder)
