"""Base models of the benchmarks: real ones, and made ones of a given shape with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    # Large enough for ZeRO 3 to spread its matrices (it leaves those below 100,000 elements whole).
    "small": {
        "vocab_size": 1024,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    # As Llama 3.2 with a billion parameters.
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"


@contextmanager
def base_folder(name: str, dtype: str, device: str = "cpu") -> Iterator[Path]:
    """The folder of a base model: of a shape in `SHAPES`, a folder, or a hub id (found offline or in a package)."""
    if name not in SHAPES:
        from harness.data.corpus import default_cache_dir
        from harness.training.model import find_base

        yield find_base(name, Path.cwd(), default_cache_dir()).folder
        return
    with TemporaryDirectory(prefix="uudp-bench-") as place:
        yield make_base(Path(place), SHAPES[name], dtype, device)


def make_base(folder: Path, shape: dict[str, Any], dtype: str, device: str = "cpu") -> Path:
    """Saves a Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2)).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def describe(model: Any) -> dict[str, Any]:
    """Sizes of a model with its adapter."""
    parameters = dict(model.named_parameters())
    return {
        "parameters": sum(p.numel() for p in parameters.values()),
        "trained": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
        "vocabulary": model.config.vocab_size,
    }
