"""Where the time of a private step goes, beside an ordinary one's: one JSON document made by torch's own profiler.

    python scripts/bench/hotspots.py [--model NAME] [--tokens N] [--dtype bfloat16] [--device cpu] [--steps N]

The settings of `step.py`: the same model, tokens, dtype and optimizer on both sides. Every operator's own time is
counted once, in the thread that calls it (on a GPU: that of its kernels), and put into one of a few groups. What is in
no operator is Python between them. Profiling itself slows a step; `step.py` is what compares speeds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models
import step as steps_of

GROUPS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "gemm", "cutlass", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "flash", "fmha", "efficient_attention"),
    "softmax, losses": ("softmax", "nll_loss", "cross_entropy", "exp_", "logsumexp", "amax", "gather", "scatter_add"),
    "copies, conversions": ("copy_", "to_copy", "clone", "cat", "contiguous", "memcpy", "index", "new_zeros", "fill_"),
    "noise": ("normal", "random", "philox"),
}
"""Parts of operators' names, looked for in this order."""
OTHER, BETWEEN = "element-wise and others", "between operators"


def main() -> None:
    """Measures and prints."""
    parser = steps_of.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="profiled, after two that are not")
    options = parser.parse_args()
    _measure.prepare(options.threads)
    with _models.base_folder(options.model, options.dtype, options.device) as base, TemporaryDirectory() as place:
        document = measure(options, base, Path(place))
    _measure.publish({"script": "hotspots", **document, **_measure.machine(options.device)})


def measure(options: argparse.Namespace, base: Path, folder: Path) -> dict[str, Any]:
    """Both sides, one after the other."""
    from _training import Ordinary, Product, alone

    alone(options.device)
    setting = steps_of.setting_of(options, base)
    product = Product(setting, folder)
    found = {
        steps_of.DP: profiled(product, options),
        steps_of.ORDINARY: profiled(Ordinary(setting), options),
    }
    needed = sum(found[steps_of.DP]["shares"][name] for name in ("matrix products", "attention"))
    return {
        "model": {"name": options.model, "dtype": options.dtype, **_models.describe(product.model)},
        "tokens": setting.tokens,
        "steps": options.steps,
        **found,
        "to_reach": {},
        "rows": [
            {
                "what": "share of a private step's time in matrix products and attention",
                "figure": f"{needed:.2f}",
                "to_reach": "",
                "reached": True,
            }
        ],
    }


def profiled(step: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the time of some steps, by group, and the dearest operators."""
    from torch.profiler import ProfilerActivity, profile

    cuda = options.device == "cuda"
    wait = steps_of.waiting(options.device)
    for _ in range(2):
        step()
    wait()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as seen:
        begin = time.perf_counter()
        for _ in range(options.steps):
            step()
        wait()
        seconds = time.perf_counter() - begin
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {one.key: getattr(one, own) / 1e6 for one in seen.key_averages() if getattr(one, own) > 0}
    groups = dict.fromkeys([*GROUPS, OTHER], 0.0)
    for name, spent in times.items():
        groups[group_of(name)] += spent
    groups[BETWEEN] = max(0.0, seconds - sum(times.values()))
    dearest = sorted(times.items(), key=lambda item: -item[1])[:12]
    return {
        "seconds_of_a_step": round(seconds / options.steps, 4),
        "shares": {name: round(spent / seconds, 4) for name, spent in groups.items()},
        "dearest": {name: round(spent / seconds, 4) for name, spent in dearest},
    }


def group_of(operator: str) -> str:
    """The group of an operator or kernel."""
    name = operator.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), OTHER)


if __name__ == "__main__":
    main()
