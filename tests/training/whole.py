"""Tiny models of other families, all of whose parameters are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import VOCABULARY, save_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 94,
    "eos_token_id": 95,
    "pad_token_id": None,
}
_LLAMA = {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "gpt2": {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2, "pad_token_id": 1},
    "gpt_neox": {**_COMMON, "intermediate_size": 64},
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8},
}
"""Tied and not, with biases and without, learned positions, GPT-2's transposed layers, heads that are normalised
(before and after they are transposed), a weight to which one is added, a scaled embedding, a padding token in the
vocabulary."""


def make_model(family: str, **changes: Any) -> Any:
    """A tiny model of a family, float32; norms and biases are not at their first values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**FAMILIES[family], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save_family(folder: Path, family: str) -> Path:
    """A base model as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    make_model(family).save_pretrained(folder)
    return folder
