"""A private step over an ordinary one under ZeRO 0 to 3 on several workers, and what each of them holds.

    python scripts/bench/zero.py [--model NAME] [--workers 1 2 4] [--stages 0 1 2 3] [--repeats N]

Both run under DeepSpeed at the same stage, in the same worker processes (gloo; no Ray), on the same tokens. One JSON
document.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models

TO_REACH = 0.95
TIMEOUT = 3600.0


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=_models.DEFAULT, help=f"{', '.join(_models.SHAPES)}, a folder or a hub id")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, of all workers together")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--microbatch", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _measure.prepare(1)
    with _models.base_folder(options.model, options.dtype) as base, TemporaryDirectory() as place:
        found = [one for world in options.workers for one in group(world, options, base, Path(place))]
    _measure.publish(
        {
            "script": "zero",
            "model": {"name": options.model, "dtype": options.dtype},
            "tokens": options.tokens,
            "length": options.length,
            "microbatch_tokens": options.microbatch,
            "repeats": options.repeats,
            "results": found,
            "rows": rows(found),
            "to_reach": {"tokens_ratio": TO_REACH, "stage_3_bytes": "in proportion to 1 / workers"},
            **_measure.machine(),
            "threads": "cores / workers, at least 1, per worker",
        }
    )


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For the README's table: the worst stage, and how well stage 3 spreads the parameters."""
    worst = min(found, key=lambda one: one["tokens_ratio"])
    what = f"the same under DeepSpeed, the worst of {len(found)} (ZeRO {worst['stage']}, {worst['workers']} workers)"
    lines = [_measure.row(what, worst["tokens_ratio"], TO_REACH)]
    sharded = {one["workers"]: max(one["held_bytes"]) for one in found if one["stage"] == 3}
    if 1 in sharded and len(sharded) > 1:
        most = max(sharded)
        what = f"bytes of parameters on a rank × {most} workers, over those on one worker (ZeRO 3)"
        lines.append(_measure.row(what, sharded[most] * most / sharded[1], 1.1, at_most=True))
    return lines


def group(world: int, options: argparse.Namespace, base: Path, place: Path) -> list[dict[str, Any]]:
    """All stages on so many workers."""
    context = get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours, theirs = context.Pipe(duplex=False)
    ranks = [
        context.Process(target=serve, args=(rank, world, port, options, base, place, theirs), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    theirs.close()
    found: list[dict[str, Any]] = []
    try:
        while len(found) < len(options.stages):
            if not ours.poll(TIMEOUT):
                sys.exit(f"zero: {world} workers did not answer")
            found.append(ours.recv())
    except EOFError:
        sys.exit(f"zero: a worker of {world} failed; see above")
    finally:
        for process in ranks:
            process.join(30)
            process.kill()
    return found


def serve(
    rank: int, world: int, port: int, options: argparse.Namespace, base: Path, place: Path, answers: Connection
) -> None:
    """One worker: every stage; the first rank answers."""
    _measure.prepare(max(1, (os.cpu_count() or 1) // world))
    from _training import Setting, even_users, join

    join(rank, world, port, "cpu")
    for stage in options.stages:
        users = even_users(options.tokens, options.length)
        setting = Setting(base, options.dtype, users, options.length, options.microbatch, stage=stage)
        found = measure(setting, place / f"{world}-{stage}", options.repeats)
        if rank == 0:
            answers.send({"stage": stage, "workers": world, **found})
    answers.close()


def measure(setting: Any, folder: Path, repeats: int) -> dict[str, Any]:
    """One stage, on all ranks."""
    import torch.distributed as dist
    from _training import Product, ShardedOrdinary

    product = Product(setting, folder)
    product()
    held = every_rank(parameter_bytes(product.model))
    steps = {"product": product, "ordinary": ShardedOrdinary(setting)}
    seconds = _measure.in_turns(steps, repeats, wait=dist.barrier)
    dist.barrier()
    return {
        "tokens_ratio": _measure.ratio(seconds["ordinary"], seconds["product"]),
        "seconds": {name: [round(s, 4) for s in found] for name, found in seconds.items()},
        "held_bytes": held,
    }


def parameter_bytes(model: Any) -> int:
    """Bytes of parameters that lie on this rank between steps; of a parameter that is spread out, its part."""
    total = 0
    for parameter in model.parameters():
        spread = getattr(parameter, "ds_tensor", None)
        kept = parameter.numel() * parameter.element_size()
        # What is too small to be worth spreading (ZeRO 3's persistence threshold) is whole on every rank.
        total += kept if spread is None or kept else spread.numel() * spread.element_size()
    return total


def every_rank(value: int) -> list[int]:
    """The value of each rank."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


if __name__ == "__main__":
    main()
