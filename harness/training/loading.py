"""The base model's weights, brought into memory: whole, or, at ZeRO 3, each worker its own part.

At ZeRO 3 every weight is divided as soon as its layer is made, so that no worker ever holds more of the model than its
part and the layer at hand: a model that fits into no single GPU can be loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.spec.compute_block import DeepspeedBlock

if TYPE_CHECKING:
    from torch import nn


def load_base(folder: Path, dtype: Literal["float32", "bfloat16"], sharding: DeepspeedBlock | None) -> nn.Module:
    """Loads a base model; at ZeRO 3 collective, with torch.distributed up.

    Args:
        folder: Where `from_pretrained` finds it.
        dtype: Of its weights in memory.
        sharding: How they will be divided; None: not at all.

    Returns:
        The model, with the same weights whatever `sharding` says. Of a divided one, parameters are empty until
        DeepSpeed gathers them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    wanted = getattr(torch, dtype)
    if sharding is None or sharding.stage != 3:
        whole: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted)
        return whole
    # `from_pretrained` looks for this object, which it refers to weakly. It must not outlive the loading: what is made
    # later (adapters, another model) is not to be divided behind our back.
    switch = _switch(dtype, sharding)
    try:
        divided: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted)
    finally:
        del switch
    return divided


def _switch(dtype: str, sharding: DeepspeedBlock) -> Any:
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from harness.training import engine

    # As in the engine: compiling the collectives for shared memory takes a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = engine.deepspeed_config(sharding.stage, sharding.offload)
    # Weights are made in the dtype that this says, whatever `from_pretrained` is asked for. In the engine the flag
    # stays off: there it would cast the float32 adapters.
    config["bf16"] = {"enabled": dtype == "bfloat16"}
    return HfDeepSpeedConfig(config)  # type: ignore[no-untyped-call]


def gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """While this lasts, these weights of a divided model are whole on every rank, to be read; collective then."""
    divided = [p for p in parameters if hasattr(p, "ds_id")]
    if not divided:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(divided)
    return whole


def own_what_is_trained(model: nn.Module) -> None:
    """Gives a divided model trained weights of its own, whole until the engine divides them anew; collective.

    What is trained is float32 in an engine, which a part of a bfloat16 base is not; and a weight that has been divided
    has its type for good.
    """
    from torch import nn

    owned: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not (parameter.requires_grad and hasattr(parameter, "ds_id")):
                continue
            if id(parameter) not in owned:
                with gathered([parameter]):
                    owned[id(parameter)] = nn.Parameter(parameter.detach().float().clone())
            setattr(module, name, owned[id(parameter)])
