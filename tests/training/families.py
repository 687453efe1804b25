"""A tiny random model of every family that can be trained, as a folder; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.tiny import VOCABULARY, save_tokenizer

_LLAMA: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        kind: Its name in `transformers`.
        settings: Of its configuration.
        also: What is trained whole beside LoRA: norms, embeddings, output layer.
        bias: Whether its layers have biases.
    """

    kind: str
    settings: Mapping[str, Any]
    also: tuple[str, ...]
    bias: bool = False

    def save(self, folder: Path) -> Path:
        """Makes the model, with weights that are far from where training starts (norms of one, biases of zero)."""
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(4)
        ids = {"vocab_size": VOCABULARY, "bos_token_id": 95, "eos_token_id": 95, "pad_token_id": None}
        config = AutoConfig.for_model(self.kind, **{**ids, **self.settings})
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.2)
            else:
                parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
            assert torch.isfinite(parameter).all(), name
        model.save_pretrained(folder)
        save_tokenizer(folder)
        return folder


def move(model: Any) -> None:
    """Moves an adapter away from where it starts, always the same way."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)


NORMS = ("norm", "input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = (*NORMS, "q_norm", "k_norm")
FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", _LLAMA, (*NORMS, "embed_tokens", "lm_head")),
    "llama-tied": Family("llama", {**_LLAMA, "tie_word_embeddings": True}, (*NORMS, "embed_tokens")),
    "mistral": Family("mistral", {**_LLAMA, "sliding_window": None}, (*NORMS, "lm_head")),
    "qwen2": Family("qwen2", {**_LLAMA, "tie_word_embeddings": True}, (*NORMS, "lm_head"), bias=True),
    "qwen3": Family("qwen3", {**_LLAMA, "head_dim": 8}, (*_HEAD_NORMS, "embed_tokens")),
    "gemma": Family("gemma", {**_LLAMA, "head_dim": 4, "pad_token_id": 0}, (*NORMS, "embed_tokens")),
    "gemma3": Family(
        "gemma3_text",
        {**_LLAMA, "head_dim": 4, "pad_token_id": 0, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
        (*_HEAD_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm", "embed_tokens"),
    ),
    "gpt2": Family(
        "gpt2",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        ("ln_1", "ln_2", "ln_f", "wte", "wpe"),
        bias=True,
    ),
    "opt": Family(
        "opt",
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 1,
        },
        ("self_attn_layer_norm", "final_layer_norm", "embed_tokens", "embed_positions"),
        bias=True,
    ),
    "pythia": Family(
        "gpt_neox",
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
        },
        ("input_layernorm", "post_attention_layernorm", "final_layer_norm", "embed_in", "lm_head"),
        bias=True,
    ),
}
EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {**_LLAMA, "num_local_experts": 2},
    "qwen2_moe": {**_LLAMA, "num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {**_LLAMA, "num_experts": 2, "moe_intermediate_size": 8, "head_dim": 4},
}


def saved(make: Callable[[str], Path]) -> Callable[[str], Path]:
    """The folder of each family's model, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = FAMILIES[name].save(make(name))
        return made[name]

    return get
