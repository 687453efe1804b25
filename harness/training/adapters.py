"""The adapter: added to a base model by PEFT, whatever it is, or refused in a line that says why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.errors import ArgumentError
from harness.plugins import suggest
from harness.spec.adapter_block import AdapterBlock
from harness.spec.models import ModelBlock
from harness.training.kinds import kind_of
from harness.training.loading import gathered, own_what_is_trained

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_ROUTED = re.compile("Moe|MoE|MOE|Experts|Router")


def check_supported(model: nn.Module, block: ModelBlock) -> None:
    """Refuses what would make one user's gradient depend on another's, or would silently train nothing.

    Raises:
        ArgumentError: The model, or what the adapter names in it, can't be trained privately.
    """
    config: Any = getattr(model, "config", None)
    configs = [config, *(getattr(config, part, None) for part in ("text_config", "llm_config"))]
    experts = any(getattr(one, key, None) for one in configs for key in _EXPERTS)
    if experts or any(_ROUTED.search(type(m).__name__) for m in model.modules()):
        raise ArgumentError("model.base: mixture-of-experts models are not supported: routing couples users")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ArgumentError("model.base: batch normalisation couples users and can't be trained privately")
    if getattr(config, "quantization_config", None) is not None:
        raise ArgumentError(
            "model.base: is quantised, and PEFT's layers for that can't be trained privately; name the model that it "
            "was made from (model.dtype: bfloat16 halves its memory)"
        )
    if block.adapter.type == "lora":
        _check_names(model, block.adapter)


def add_adapter(model: Any, block: AdapterBlock) -> Any:
    """The model with a fresh adapter, whose trainable parameters are float32; all others are frozen.

    Collective where the model is divided. What is trained is not then: DeepSpeed divides it when it takes the model.

    What is trained of the base itself (norms, biases, embeddings) is float32 too: its layers must be taken over
    (`gradients`) before a base in bfloat16 computes anything.

    Raises:
        ArgumentError: The adapter doesn't fit the model.
    """
    from peft import get_peft_model

    config = {"lora": _lora, "bias": _biases, "norms": _norms}[block.type](model, block)
    asked = getattr(config, "modules_to_save", None)
    tied = model.get_output_embeddings() is not None and _is_tied(model)
    with gathered(_copied(model, block)):
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=True)
    if asked:
        # PEFT drops the name of the tied layer, by which alone it knows on loading that there is one.
        adapted.peft_config["default"].modules_to_save = asked
        if tied and not _is_tied(adapted.get_base_model()):
            raise ArgumentError("model.adapter.also: this model's embeddings and output layer can't be kept tied")
    own_what_is_trained(adapted)
    for name, parameter in adapted.named_parameters():
        if block.type == "bias" and "lora_" in name:
            parameter.data.zero_()
            parameter.requires_grad_(False)
        if block.freeze_a and ".lora_A." in name:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


# --- what PEFT is told --------------------------------------------------------------------------------------


def _lora(model: nn.Module, block: AdapterBlock) -> Any:
    from peft import LoraConfig

    also = [name for asked in block.also for name in _named(model, asked)]
    if also and _is_tied(model):
        output = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())  # type: ignore[operator]
        given = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())  # type: ignore[operator]
        if {output, given} & set(also):
            also = [*(n for n in also if n not in (output, given)), given, output]
    return LoraConfig(
        r=block.r,
        lora_alpha=block.alpha,  # type: ignore[arg-type]
        target_modules=block.targets if isinstance(block.targets, str) else list(block.targets),
        lora_dropout=block.dropout,
        use_rslora=block.rslora,
        rank_pattern=dict(block.rank_pattern),
        alpha_pattern=dict(block.alpha_pattern),
        bias=block.bias,
        modules_to_save=also or None,
        ensure_weight_tying=bool(also) and _is_tied(model),
        fan_in_fan_out=_transposed(model, block),
        task_type="CAUSAL_LM",
    )


def _biases(model: nn.Module, block: AdapterBlock) -> Any:
    from peft import LoraConfig

    if not any(name.endswith(".bias") for name, _ in model.named_parameters()):
        raise ArgumentError("model.adapter.type: this model has no biases; norms is as small an adapter")
    # PEFT has no adapter of biases alone. It loads them beside a LoRA, so there is one, of rank 1, that stays zero.
    first = next(n for n, m in model.named_modules() if kind_of(m) == "linear")
    transposed = not isinstance(model.get_submodule(first), nn.Linear)
    return LoraConfig(r=1, target_modules=[first], bias="all", fan_in_fan_out=transposed, task_type="CAUSAL_LM")


def _norms(model: nn.Module, block: AdapterBlock) -> Any:
    from peft import LNTuningConfig

    names = [n for n, m in model.named_modules() if kind_of(m) == "norm" and next(m.parameters(), None) is not None]
    left = {type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Norm") and kind_of(m) != "norm"}
    if left or not names:
        what = f"its {', '.join(sorted(left))} can't be trained privately" if left else "this model has no norms"
        raise ArgumentError(f"model.adapter.type: {what}; use lora")
    return LNTuningConfig(target_modules=names, task_type="CAUSAL_LM")


def _copied(model: nn.Module, block: AdapterBlock) -> list[nn.Parameter]:
    """The weights that PEFT copies without a look at where they are; those of `also` it gathers."""
    norms = [m for m in model.modules() if kind_of(m) == "norm"] if block.type == "norms" else []
    return [p for norm in norms for p in norm.parameters()]


# --- names --------------------------------------------------------------------------------------------------


def _is_tied(model: Any) -> bool:
    given, output = model.get_input_embeddings(), model.get_output_embeddings()
    return output is not None and getattr(output, "weight", None) is given.weight


def _linear_names(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if kind_of(m) == "linear"]


def _matches(name: str, target: str) -> bool:
    """As PEFT matches a list of names."""
    return name == target or name.endswith("." + target)


def _targeted(model: Any, block: AdapterBlock) -> list[str]:
    """Full names of the layers that get a LoRA."""
    linear = _linear_names(model)
    if block.targets == "all-linear":
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return [n for n in linear if model.get_submodule(n) is not output]
    return [n for n in linear if any(_matches(n, t) for t in block.targets)]


def _transposed(model: nn.Module, block: AdapterBlock) -> bool:
    """Whether the weights of the targets are [in, out], as GPT-2's are; PEFT must know it to merge them."""
    return any(not isinstance(model.get_submodule(n), nn.Linear) for n in _targeted(model, block))


def _named(model: nn.Module, name: str) -> list[str]:
    """Full names of the layers of this name: PEFT would take any name that ends like it."""
    return [n for n, _ in model.named_modules() if _matches(n, name)]


def _check_names(model: nn.Module, block: AdapterBlock) -> None:
    linear = _linear_names(model)
    if block.targets != "all-linear":
        for i, target in enumerate(block.targets):
            if not any(_matches(n, target) for n in linear):
                raise _unknown(f"model.adapter.targets.{i}", "linear layer", target, linear)
    targeted = _targeted(model, block)
    if not targeted:
        raise ArgumentError("model.adapter.targets: the model has no linear layers beside its output layer")
    _check_patterns(block, targeted)
    _check_also(model, block, targeted)
    if block.bias == "all" and not any(n.endswith(".bias") for n, _ in model.named_parameters()):
        raise ArgumentError("model.adapter.bias: this model has no biases; leave it out")
    if block.bias == "lora_only" and all(getattr(model.get_submodule(n), "bias", None) is None for n in targeted):
        raise ArgumentError("model.adapter.bias: none of the targets has a bias; leave it out")


def _check_patterns(block: AdapterBlock, targeted: Sequence[str]) -> None:
    patterns: Mapping[str, Sequence[str]] = {
        "rank_pattern": list(block.rank_pattern),
        "alpha_pattern": list(block.alpha_pattern),
    }
    for key, asked in patterns.items():
        for pattern in asked:
            # As PEFT does.
            if not any(re.match(rf"(.*\.)?({pattern})$", n) for n in targeted):
                raise _unknown(f"model.adapter.{key}.{pattern}", "targeted layer", pattern, targeted)


def _check_also(model: nn.Module, block: AdapterBlock, targeted: Sequence[str]) -> None:
    for i, name in enumerate(block.also):
        found = _named(model, name)
        if not found:
            layers = [n for n, m in model.named_modules() if kind_of(m) and n not in targeted]
            raise _unknown(f"model.adapter.also.{i}", "layer", name, layers)
        for one in found:
            if one in targeted:
                raise ArgumentError(f'model.adapter.also.{i}: "{name}" is among the targets of the adapter already')
            module = model.get_submodule(one)
            if kind_of(module) is None:
                raise ArgumentError(
                    f'model.adapter.also.{i}: "{name}" is a {type(module).__name__}, which can\'t be trained '
                    "privately; norms, embeddings and linear layers can"
                )


def _unknown(key: str, what: str, name: str, layers: Sequence[str]) -> ArgumentError:
    names = sorted({n.rpartition(".")[2] for n in layers})
    near = suggest(name, names)
    hint = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(names)})"
    return ArgumentError(f'{key}: the model has no {what} "{name}"{hint}')


# --- what PEFT saves ----------------------------------------------------------------------------------------


def adapter_state(model: Any, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of an adapter is saved, under the names that PEFT looks for.

    Args:
        model: As `add_adapter` made it, whatever DeepSpeed has done to it since.
        parameters: Its trainable parameters by name, whole.
    """
    from peft import get_peft_model_state_dict

    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    # PEFT saves a tied weight under each of its names, and asks for each when it loads.
    others = {
        other: parameters[first].clone() for first, *rest in places.values() if first in parameters for other in rest
    }
    whole = {**parameters, **others, **_zeros_of_frozen(model, parameters)}
    state = get_peft_model_state_dict(model, state_dict=whole)
    # It takes biases of layers that are trained whole a second time, under a name that it would not find again.
    return {name: value for name, value in state.items() if ".modules_to_save." not in name}


def _zeros_of_frozen(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The LoRA that stays zero beside biases (`type: bias`), whole, where nothing of a LoRA is trained."""
    if any("lora_" in name for name in parameters):
        return {}
    frozen = {n: p for n, p in model.named_parameters() if "lora_" in n}
    return {n: torch.zeros(tuple(getattr(p, "ds_shape", p.shape))) for n, p in frozen.items()}
