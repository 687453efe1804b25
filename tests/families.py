"""Tiny models with random weights, of the families that users bring."""

from __future__ import annotations

from typing import Any

_LLAMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 128, "initializer_range": 0.2},
    "opt": {**_LLAMA, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "layer_types": None},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "qwen3": {**_LLAMA, "head_dim": 8},
    "granite": {**_LLAMA, "logits_scaling": 4.0},
}


def make_model(family: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A tiny causal model of this `model_type`, in evaluation mode.

    Args:
        family: As `transformers` names it.
        attention: ``sdpa`` or ``eager``.
        changes: Other settings of its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {**_SIZES.get(family, _LLAMA), **changes}
    if family == "gemma3_text":
        settings["layer_types"] = ["sliding_attention", "full_attention"]
    config = AutoConfig.for_model(family, **settings)
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
