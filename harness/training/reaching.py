"""Whether a model that ZeRO 3 has divided finds its weights: they are whole only while their own layers compute."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import ArgumentError
from harness.training.batches import pad
from harness.training.engine import Engine

_UNREAD = ("aten.detach.", "aten.alias.")
"""Operations that hand a weight on without its numbers."""


class _Astray(Exception):
    """A weight is used that is elsewhere."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends what computes with a weight that is not there: of some operations, nothing would come of it but a number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: torch.Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith(_UNREAD):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor) and hasattr(value, "ds_numel") and value.numel() != value.ds_numel:
                    self.found = value
                    raise _Astray
        return func(*args, **(kwargs or {}))


def check_reach(engine: Engine) -> None:
    """Sees on made-up tokens that the model uses no weight outside of its layer, or that DeepSpeed noticed; collective.

    Where a weight is asked for by its name DeepSpeed gathers it too, but not where the model keeps it by itself.

    Args:
        engine: With a model at ZeRO 3 that nothing was computed with.

    Raises:
        ArgumentError: It does, on every rank.
    """
    model: Any = engine.module
    rows = pad([list(range(1, 17))], engine.device)
    watch = _Watch()
    try:
        with torch.no_grad(), watch:
            model(input_ids=rows.inputs, use_cache=False)
    except _Astray:
        name = next((n for n, p in model.named_parameters() if p is watch.found), "a weight")
    else:
        return
    shown = name.removeprefix("base_model.model.")
    if any(trainable.name == name for trainable in engine.trainables):
        raise ArgumentError(
            f"{shown} can't be trained privately: the model uses it outside of its layer, where users' gradients can't "
            "be kept apart; an adapter (type: lora) trains without it"
        )
    raise ArgumentError(
        f"compute.deepspeed.stage: 3 can't run this model: it uses {shown} outside of its layer, where no worker "
        "has it whole; take stage: 2"
    )
