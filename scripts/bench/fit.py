"""Predicted against measured memory of a worker: one JSON document.

    python scripts/bench/fit.py [--model smollm2|tiny] [--only TEXT] [--all]

Measured is the largest resident size of the whole worker process (``VmHWM``: Python, torch, DeepSpeed and Ray loaded,
loading of the model, one full micro-batch of made-up text, the optimizer's step), as ``uudp plan`` predicts it. Each
case trains one step in fresh processes, one thread each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 128
TINY = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# What differs from the first case, one thing or two at a time.
CASES: tuple[dict[str, Any], ...] = (
    {"dtype": "bfloat16", "tokens": 2048},
    {"dtype": "bfloat16", "tokens": 512},
    {"dtype": "float32", "tokens": 512},
    {"dtype": "float32", "tokens": 2048},
    {"dtype": "bfloat16", "tokens": 2048, "checkpointing": True},
    {"dtype": "float32", "tokens": 2048, "checkpointing": True},
    {"dtype": "bfloat16", "tokens": 2048, "stage": 2},
    {"dtype": "bfloat16", "tokens": 512, "stage": 2, "workers": 2},
    {"dtype": "float32", "tokens": 512, "stage": 3, "workers": 2},
    {"dtype": "bfloat16", "tokens": 2048, "stage": 3, "workers": 2},
    {"dtype": "float32", "tokens": 256, "stage": 3, "workers": 2, "full": True},
    {"dtype": "bfloat16", "tokens": 512, "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"), "r": 16},
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--all", action="store_true", help="every combination, not the chosen cases alone")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Path(arguments.worker[0]), int(arguments.worker[1]), int(arguments.worker[2]))
        return
    if arguments.prepare:
        prepare(Path(arguments.prepare[0]), arguments.prepare[1], json.loads(arguments.prepare[2]))
        return
    chosen = list(every()) if arguments.all else list(CASES)
    rows = [measure(c, arguments.model) for c in chosen if arguments.only in name_of(c)]
    ratios = [row["ratio"] for row in rows]
    figures = {"worst": max(ratios, key=lambda r: abs(r - 1)), "median": round(statistics.median(ratios), 3)}
    worst = figures["worst"]
    figure = {
        "what": f"predicted ÷ measured memory of a worker, the worst of {len(rows)} settings",
        "figure": f"{worst:.2f}",
        "to_reach": "0.80 to 1.20",
        "reached": 0.8 <= worst <= 1.2,
    }
    name = MODEL if arguments.model == "smollm2" else arguments.model
    found = {"model": {"name": name}, "ratio": figures, "to_reach": [0.8, 1.2], "cases": rows, "rows": [figure]}
    print(json.dumps({"script": "fit", **found, **machine()}, indent=1))


def every() -> Iterator[dict[str, Any]]:
    """Every combination that goes together."""
    for dtype, tokens, checkpointing, (stage, workers) in itertools.product(
        ("float32", "bfloat16"), (512, 2048), (False, True), ((0, 1), (2, 1), (0, 2), (2, 2), (3, 1), (3, 2))
    ):
        if not (checkpointing and stage == 3):
            yield {
                "dtype": dtype, "tokens": tokens, "checkpointing": checkpointing, "stage": stage, "workers": workers
            }  # fmt: skip


def name_of(case: dict[str, Any]) -> str:
    """In words."""
    words = [case["dtype"], f"{case['tokens']} tokens", f"stage {case.get('stage', 0)}"]
    words.append(f"{case.get('workers', 1)} workers")
    words += ["all weights"] * bool(case.get("full"))
    words += ["checkpointed"] * bool(case.get("checkpointing"))
    words += [f"r={case['r']} on {len(case['targets'])}"] if "targets" in case else []
    return ", ".join(words)


def measure(case: dict[str, Any], model: str) -> dict[str, Any]:
    """Trains one step of one case; MiB, and predicted / measured."""
    workers = case.get("workers", 1)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        predicted = json.loads(child("--prepare", str(run), model, json.dumps(case)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker", str(run)]
        begun = [
            subprocess.Popen([*command, str(rank), str(workers)], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(workers)
        ]
        found = [json.loads(one.communicate()[0].splitlines()[-1]) for one in begun]
    largest = max(one["MiB"] for one in found)
    total = sum(predicted.values())
    return {
        "case": name_of(case),
        "predicted_MiB": round(total),
        "measured_MiB": round(largest),
        "before_model_MiB": round(found[0]["before"]),
        "ratio": round(total / largest, 3),
        "cpu_s_of_step": round(found[0]["cpu_s"], 2),
        "parts_MiB": {k: round(v) for k, v in predicted.items()},
    }


def child(*arguments: str) -> str:
    """The last line that this script prints when it is started again."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def prepare(run: Path, model: str, case: dict[str, Any]) -> None:
    """Makes the run's folder, and prints what is predicted, in MiB by part."""
    from harness.data.corpus import build_corpus, default_cache_dir
    from harness.data.sources.base import Columns, open_source
    from harness.planning.footprint import MIB, Setting, predict
    from harness.planning.shapes import read_shape
    from harness.privacy.mechanism import GroupMechanism, Mechanism
    from harness.privacy.randomness import create_key
    from harness.spec.models import Spec
    from harness.training.job import Folder, Job
    from harness.training.model import Base, find_base
    from harness.training.tokenizer import load_tokenizer

    cache = default_cache_dir()
    found = find_base(MODEL, Path(), cache)
    tokenizer = load_tokenizer(found)
    base = found if model == "smollm2" else Base(make_tiny(run.parent / "base", found.folder), "made here")
    workers = case.get("workers", 1)
    users = workers * case["tokens"] // LONGEST
    posts = run.parent / "posts.jsonl"
    # Ordinary words, so many that one example is full.
    text = " ".join(itertools.islice(itertools.cycle(("tide", "lamp", "orchard", "seven", "quiet")), 4 * LONGEST))
    posts.write_text("".join(json.dumps({"user": f"u{u}", "text": text}) + "\n" for u in range(users)))
    adapter = {"r": case.get("r", 8), "targets": list(case.get("targets", ("q_proj", "v_proj")))}
    if case.get("full"):
        adapter = {"type": "full"}
    spec = Spec.model_validate(
        {
            "version": 1,
            "name": "fit",
            "data": {
                "name": "made",
                "source": {"type": "jsonl", "path": str(posts)},
                "max_tokens": LONGEST,
                "holdout": {"users": 0.0, "visibility": "public"},
            },
            "model": {"base": str(base.folder), "dtype": case["dtype"], "adapter": adapter},
            "privacy": {"epsilon": 8, "delta": 1e-5, "ledger": None},
            "sampling": {"rate": 1.0},
            "train": {"steps": 1},
            "compute": {
                "workers": workers,
                "accelerator": "cpu",
                "deepspeed": {"stage": case.get("stage", 0)},
                "microbatch_tokens": case["tokens"],
                "gradient_checkpointing": case.get("checkpointing", False),
            },
        }
    )
    folder = Folder(run)
    folder.private.mkdir(parents=True, mode=0o700)
    corpus = build_corpus(
        open_source(spec.data, run.parent),
        Columns.of(spec.data),
        tokenizer=tokenizer,
        tokenizer_digest=found.tokenizer_digest,
        data=spec.data,
        cache_dir=run.parent / "cache",
        private_dir=None,
    )
    mechanism = Mechanism(
        steps=1, noise_std=0.1, groups=(GroupMechanism("all", users, 1.0, 0.5, 1, 1),), relation="zero_out"
    )
    Job(spec, mechanism, ((0, 0.0), (1, 1.0)), corpus.folder, base.folder, "cpu").save(run)
    np.save(folder.members, np.zeros(corpus.n_users, dtype=np.int16), allow_pickle=False)
    create_key(folder.key)
    shape = read_shape(base.folder)
    assert shape is not None
    parts = predict(shape, Setting.of(spec, shape, case["tokens"], gpu=False)).parts
    print(json.dumps({name: value / MIB for name, value in parts.items()}))


def make_tiny(folder: Path, tokenizer: Path) -> Path:
    """A two-layer Llama with random weights and SmolLM2's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    return folder


def work(run: Path, rank: int, world: int) -> None:
    """One worker; prints its largest resident size, and that before there was a model."""
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    from harness.training.process import prepare_process

    dist.init_process_group("gloo", rank=rank, world_size=world)
    prepare_process(1)
    # As in a worker of Ray, and what a model's class brings.
    import peft  # noqa: F401
    import ray.train.torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from harness.training.loop import train

    before, begun = high_water(), time.process_time()
    train(run)
    print(json.dumps({"MiB": high_water(), "before": before, "cpu_s": time.process_time() - begun}))
    sys.stdout.flush()
    os._exit(0)


def high_water() -> float:
    """The largest resident size of this process so far, MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    import importlib.metadata

    names = ("uudp", "torch", "transformers", "deepspeed", "ray")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


if __name__ == "__main__":
    main()
