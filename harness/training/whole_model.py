"""Where all parameters are trained: the model as it begins, and as it is saved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import release_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.training.ghost import Ghost


def prepare(model: Any) -> Any:
    """Makes every parameter of a base model trainable, in float32; nothing of it depends on a batch."""
    model.requires_grad_(True)
    model.config.use_cache = False
    return model.eval()


def watched(model: Any, device: torch.device) -> Ghost:
    """What finds the norms of units' gradients in a model, seen to be right for it.

    Raises:
        ArgumentError: The model has a weight that can't be trained privately.
        UserError: Its loss is not finite.
    """
    from harness.training.ghost import Ghost
    from harness.training.verifying import verify

    ghost = Ghost(model)
    verify(model, ghost, device)
    return ghost


def save_model(model: Any, parameters: Mapping[str, Tensor], base: Path, folder: Path) -> None:
    """Saves a model from full float32 weights, with the base's tokenizer, whole or not at all.

    Args:
        model: As it was trained; while ZeRO-3 has it partitioned, its own parameters are empty.
        parameters: Its trained weights by name.
        base: The base model's folder.
        folder: Where; `AutoModelForCausalLM.from_pretrained` loads it.
    """
    import torch
    from transformers import AutoTokenizer

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Of a tied weight one name is enough; what is no parameter is as it was.
    rest = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {name: value for name, value in model.state_dict().items() if name not in rest} | dict(parameters)
    config, model.config = model.config, type(model.config).from_pretrained(base)
    try:
        model.config.dtype = torch.float32
        model.save_pretrained(partial, state_dict={k: v.contiguous() for k, v in state.items()})
    finally:
        model.config = config
    AutoTokenizer.from_pretrained(base).save_pretrained(partial)
    release_folder(partial, folder)
