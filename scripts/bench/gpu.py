"""`step.py` on one GPU with a billion parameters of random weights, and what share of the chip's peak that is.

    python scripts/bench/gpu.py [--model llama-1b] [--tokens N] [--repeats N]      (--device cpu --model tiny: a trial)

Needs no network and no Ray: torch, transformers, peft, deepspeed and the harness. One JSON document.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models
import step

# Dense bfloat16 operations per second, by what the device's name contains; the first that fits counts.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10", 125e12),
)


def main() -> None:
    """Measures and prints."""
    parser = step.arguments(__doc__)
    parser.set_defaults(model="llama-1b", device="cuda", tokens=16384, length=512, microbatch=8192, repeats=10)
    options = parser.parse_args()
    _measure.prepare(options.threads)
    check(options)
    with _models.base_folder(options.model, options.dtype, options.device) as base, TemporaryDirectory() as place:
        if options.memory_of:
            _measure.publish(step.memory(options, base, Path(place)))
            return
        document = step.measure(options, base, Path(place))
        if not options.no_memory:
            step.add_memory(document, __file__, [*sys.argv[1:], "--model", str(base)], options.device)
        document |= utilisation(base, options, document["variants"])
    document["rows"] = rows(document)
    _measure.publish({"script": "gpu", **document, **_measure.machine(options.device)})


def check(options: argparse.Namespace) -> None:
    """Stops with one line where there is no GPU, or a library is missing."""
    import importlib.util

    import torch

    missing = [name for name in ("deepspeed", "peft", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"gpu: {', '.join(missing)} cannot be imported here")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: torch sees no GPU here (--device cpu --model tiny tries the script out)")


def utilisation(base: Path, options: argparse.Namespace, variants: dict[str, Any]) -> dict[str, Any]:
    """Operations that the model needs per token, and the share of the chip's peak that each variant reaches."""
    import torch
    from transformers import AutoConfig

    flops = flops_per_token(AutoConfig.from_pretrained(base), options.length)
    name = torch.cuda.get_device_name() if options.device == "cuda" else ""
    peak = next((value for part, value in PEAKS if part in name), None)
    for found in variants.values():
        if "failed" not in found:
            found["flops_per_second"] = flops * found["tokens_per_second"]
            found["of_peak"] = None if peak is None else round(found["flops_per_second"] / peak, 4)
    return {"flops_per_token": flops, "peak_flops": peak}


def flops_per_token(config: Any, length: int) -> float:
    """Of a LoRA step on a Llama: forward, and backward to inputs alone, as the base's weights have no gradient.

    A matrix product of P weights takes 2 P operations forward and 2 P backward; attention over half of `length` tokens
    on average takes 2 · length · width forward and twice that backward. Adapters are left out (below a hundredth).
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or hidden // heads
    attention = hidden * size * (2 * heads + 2 * config.num_key_value_heads)
    per_layer = attention + 3 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * per_layer + hidden * config.vocab_size
    return 4.0 * weights + 6.0 * length * heads * size * config.num_hidden_layers


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """For the README's table."""
    share = document["variants"][step.DP].get("of_peak")
    named = "a GPU, 1B parameters" + (f", {share:.0%} of its peak" if share else "")
    return [{**one, "what": f"{one['what']} ({named})"} for one in step.rows(document)]


if __name__ == "__main__":
    main()
