"""The small costs that `uudp plan --on` adds to a step: collectives, noise, checkpoints, preparation; one JSON text.

    python scripts/bench/pieces.py [--spec SPEC] [--repeats N]

Collectives are gloo's between two processes of one thread each, as ZeRO uses them; preparation is that of a spec's own
corpus. Noise and preparation are in seconds of a core, and of the others the least of all repeats counts: a machine
that others use too would be measured otherwise. Takes about a minute. `simulate.py` compares the constants of
`harness.planning.simulating` with what is found here.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure

SIZES = (1, 1000, 25_000, 1_000_000, 16_000_000)
NOISY = 4_000_000
WRITTEN = (23_040, 4_000_000)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spec", default="quickstart", help="whose data are prepared")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers in a collective")
    options = parser.parse_args()
    _measure.prepare(1)
    found = {
        "collectives": collectives(options.sizes, options.repeats),
        "noise_per_second": round(noise(options.repeats)),
        "checkpoints": [checkpoint(n, options.repeats) for n in WRITTEN],
        "preparation": preparation(options.spec),
    }
    largest = found["collectives"][-1]
    rows = [
        {
            "what": f"bytes per second of gloo's {name.replace('_', '-')} between two processes",
            "figure": f"{largest['bytes_per_second'][name] / 1e9:.2g} GB/s",
            "to_reach": "",
            "reached": True,
        }
        for name in largest["bytes_per_second"]
    ]
    _measure.publish(
        {"script": "pieces", **found, "repeats": options.repeats, "to_reach": {}, "rows": rows, **_measure.machine()}
    )


def timed(what: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds, the least of all after one that does not count."""
    what()
    found = []
    for _ in range(repeats):
        begin = clock()
        what()
        found.append(clock() - begin)
    return min(found)


def collectives(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Of two processes, by size."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    ranks = [context.Process(target=serve, args=(i, port, sizes, repeats, theirs), daemon=True) for i in range(2)]
    for process in ranks:
        process.start()
    theirs.close()
    try:
        found: list[dict[str, Any]] = ours.recv()
    finally:
        for process in ranks:
            process.kill()
    return found


def serve(rank: int, port: int, sizes: list[int], repeats: int, answers: Connection) -> None:
    """One of the two; the first answers."""
    _measure.prepare(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = []
    for n in sizes:
        whole, part = torch.zeros(2 * n), torch.zeros(n)
        seconds = {
            "all_reduce": timed(lambda whole=whole: dist.all_reduce(whole), repeats),
            "all_gather": timed(lambda w=whole, p=part: dist.all_gather_into_tensor(w, p), repeats),
        }
        # Over the link goes, of two, the whole of a sum and half of what is collected.
        moved = {"all_reduce": 8 * n, "all_gather": 4 * n}
        speeds = {name: round(moved[name] / s) for name, s in seconds.items()}
        rows.append(
            {"bytes": 8 * n, "seconds": {k: round(v, 6) for k, v in seconds.items()}, "bytes_per_second": speeds}
        )
    if rank == 0:
        answers.send(rows)
    dist.barrier()
    time.sleep(60)  # until the driver, which has the answer, ends both


def noise(repeats: int) -> float:
    """Coordinates per second."""
    import torch

    from harness.privacy.randomness import Randomness
    from harness.training.noise import noise_slice

    randomness, cpu = Randomness(bytes(32)), torch.device("cpu")
    return NOISY / timed(lambda: noise_slice(randomness, 0, "weight", 0, NOISY, cpu), repeats, time.process_time)


def checkpoint(coordinates: int, repeats: int) -> dict[str, Any]:
    """Seconds to make one durable."""
    import torch

    from harness.training.checkpoints import Checkpoint, save

    zeros = torch.zeros(coordinates)
    states = {"exp_avg/a": zeros, "exp_avg_sq/a": zeros}
    count = iter(range(1000))
    with TemporaryDirectory() as place:
        seconds = timed(
            lambda: save(Path(place), Checkpoint(next(count), {"a": zeros}, states, 1, [], "made")), repeats
        )
    return {"bytes": 12 * coordinates, "seconds": round(seconds, 4)}


def preparation(spec: str) -> dict[str, Any]:
    """A corpus made anew, in a cache of its own."""
    from harness import load_spec
    from harness.data.corpus import build_corpus, default_cache_dir
    from harness.data.sources.base import Columns, open_source
    from harness.training.model import find_base
    from harness.training.tokenizer import load_tokenizer

    loaded = load_spec(spec, ["privacy.ledger=null"])
    data, base = loaded.spec.data, find_base(loaded.spec.model.base, loaded.base_dir, default_cache_dir())
    tokenizer, source = load_tokenizer(base), open_source(data, loaded.base_dir)
    with TemporaryDirectory() as place:
        begin = time.process_time()
        corpus = build_corpus(
            source,
            Columns.of(data),
            tokenizer=tokenizer,
            tokenizer_digest=base.tokenizer_digest,
            data=data,
            cache_dir=Path(place),
            private_dir=None,
        )
        seconds = time.process_time() - begin
        tokens = int(corpus.example_lengths.sum())
    return {"tokens": tokens, "core_seconds": round(seconds, 2), "tokens_per_core_second": round(tokens / seconds)}


if __name__ == "__main__":
    main()
