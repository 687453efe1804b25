"""How fast a private step is, and how much memory it takes, beside an ordinary one: one JSON document.

    python scripts/bench/step.py [--model NAME] [--tokens N] [--dtype bfloat16] [--packed] [--repeats N]

The same model, tokens, dtype and optimizer. Without --packed every user has one example and all are as long, so that
the rows are the same in every variant: the product's own step, ordinary LoRA training (``model(input_ids=…,
labels=…)``, backward, AdamW), Opacus by hooks and by ghost clipping, and a loop over users. With --packed users have
many examples of ragged lengths, against ordinary training on the same tokens packed into full rows; the share of
padding that the product adds is in the document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models

DP, ORDINARY = "product", "ordinary"
TO_REACH = {"tokens_ratio": 0.95, "memory_ratio": 1.10}
PACKED_TO_REACH = {"tokens_ratio": 0.90, "padding_share": 0.10}


def arguments(description: str | None = __doc__) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--model", default=_models.DEFAULT, help=f"{', '.join(_models.SHAPES)}, a folder or a hub id")
    parser.add_argument("--tokens", type=int, help="of a step (left out: 2048, with --packed 4096)")
    parser.add_argument("--length", type=int, default=128, help="most tokens of an example, and of a row")
    parser.add_argument("--microbatch", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the frozen base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--stage", type=int, default=0, help="ZeRO stage")
    parser.add_argument("--threads", type=int, help="of torch; left out: as it comes")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--packed", action="store_true", help="users of many examples, ragged lengths")
    parser.add_argument("--only", nargs="*", help="of the other variants, these")
    parser.add_argument("--no-memory", action="store_true", help="leave out memory, which needs a process per variant")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures and prints."""
    options = arguments().parse_args()
    _measure.prepare(options.threads)
    with _models.base_folder(options.model, options.dtype, options.device) as base, TemporaryDirectory() as place:
        if options.memory_of:
            _measure.publish(memory(options, base, Path(place)))
            return
        document = measure(options, base, Path(place))
        if not options.no_memory:
            add_memory(document, __file__, [*sys.argv[1:], "--model", str(base)], options.device)
    document["rows"] = rows(document)
    _measure.publish({"script": "step", **document, **_measure.machine(options.device)})


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """For the README's table."""
    reach, of = document["to_reach"], "a private step over an ordinary LoRA step"
    if document["mode"] == "packed":
        return [
            _measure.row(f"tokens/s of {of}, ragged users of many examples", document["tokens_ratio"], 0.90),
            _measure.row("padding there", document["padding_share"], reach["padding_share"], at_most=True),
        ]
    found = [_measure.row(f"tokens/s of {of}", document["tokens_ratio"], reach["tokens_ratio"])]
    if not document.get("memory_is"):
        return found
    return [*found, _measure.row(f"memory of {of}", document.get("memory_ratio"), reach["memory_ratio"], at_most=True)]


def setting_of(options: argparse.Namespace, base: Path) -> Any:
    """What all variants have in common."""
    from _training import Setting, even_users, ragged_users

    tokens = options.tokens or (4096 if options.packed else 2048)
    users = (ragged_users if options.packed else even_users)(tokens, options.length)
    return Setting(base, options.dtype, users, options.length, options.microbatch, options.device, options.stage)


def makers(options: argparse.Namespace, setting: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """How each variant is made."""
    from _training import OTHERS, Ordinary, Product

    names = [] if options.packed else OTHERS if options.only is None else options.only
    found: dict[str, Callable[[], Any]] = {
        DP: lambda: Product(setting, folder),
        ORDINARY: lambda: Ordinary(setting),
    }
    return found | {name: (lambda name=name: OTHERS[name](setting)) for name in names}


def measure(options: argparse.Namespace, base: Path, folder: Path) -> dict[str, Any]:
    """Times, tokens per second and ratios."""
    from _training import alone

    alone(options.device)
    setting = setting_of(options, base)
    steps: dict[str, Any] = {}
    failed: dict[str, dict[str, str]] = {}
    for name, make in makers(options, setting, folder).items():
        try:
            step = make()
            step()
        except Exception as error:
            if name in (DP, ORDINARY):
                raise
            failed[name] = _measure.reason(error)
        else:
            steps[name] = step
    product, ordinary = steps[DP], steps[ORDINARY]
    tokens = {name: ordinary.tokens for name in steps} | {DP: setting.tokens}
    fed = product.fed()
    seconds = _measure.in_turns(steps, options.repeats, wait=waiting(options.device))
    variants = {
        name: {
            "tokens_per_second": _measure.median([tokens[name] / s for s in found], 1),
            "seconds": [round(s, 4) for s in found],
            "of_ordinary": relative(seconds, tokens, name),
        }
        for name, found in seconds.items()
    }
    return {
        "mode": "packed" if options.packed else "even",
        "model": {"name": options.model, "dtype": options.dtype, **_models.describe(product.model)},
        "users": len(setting.users),
        "examples": sum(map(len, setting.users)),
        "tokens": setting.tokens,
        "length": options.length,
        "microbatch_tokens": options.microbatch,
        "stage": options.stage,
        "rank": setting.rank,
        "repeats": options.repeats,
        "tokens_ratio": variants[DP]["of_ordinary"],
        "padding_share": round(1 - setting.tokens / fed, 4),
        "variants": variants | failed,
        "to_reach": PACKED_TO_REACH if options.packed else TO_REACH,
    }


def relative(seconds: dict[str, list[float]], tokens: dict[str, int], name: str) -> float:
    """Tokens per second over the ordinary step's."""
    one, other = (_per_token(seconds[n], tokens[n]) for n in (name, ORDINARY))
    return _measure.ratio(other, one)


def _per_token(seconds: list[float], tokens: int) -> list[float]:
    return [s / tokens for s in seconds]


def waiting(device: str) -> Callable[[], None]:
    """What returns when the device is done."""
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def memory(options: argparse.Namespace, base: Path, folder: Path) -> dict[str, Any]:
    """Peak memory of one variant, in a process in which there is nothing else.

    Returns:
        ``model``: bytes that the model takes; ``peak``: the most that model and steps take together.
    """
    import deepspeed  # noqa: F401  (libraries are in everybody's baseline)
    import peft  # noqa: F401
    from _training import alone
    from transformers import AutoModelForCausalLM  # noqa: F401

    if options.memory_of.startswith("opacus"):
        import opacus  # noqa: F401
    alone(options.device)
    make = makers(options, setting_of(options, base), folder)[options.memory_of]
    with _measure.peak_memory(options.device) as whole:
        step = make()
    with _measure.peak_memory(options.device) as steps:
        step()
        step()
    return {"model": steps.before - whole.before, "peak": steps.peak - whole.before}


def add_memory(document: dict[str, Any], script: str, arguments: list[str], device: str) -> None:
    """Measures each variant's peak in a process of its own; adds the figures and their ratio."""
    variants = document["variants"]
    for name, found in variants.items():
        if "failed" not in found:
            found["memory"] = _measure.apart([script, *arguments, "--memory-of", name])
    ours, ordinary = variants[DP]["memory"], variants[ORDINARY]["memory"]
    document["memory_is"] = (
        "most bytes allocated on the GPU" if device == "cuda" else "peak resident memory over that of the libraries"
    )
    if "failed" not in ours and "failed" not in ordinary:
        document["memory_ratio"] = round(ours["peak"] / ordinary["peak"], 4)


if __name__ == "__main__":
    main()
