"""What privacy costs in quality: the share of ordinary training's gain that a private run keeps. One JSON document.

    python scripts/bench/utility.py [--settings default prototype] [--epsilon 8 2] [--seeds 3] [--tokens 250000]

SmolLM2-135M is fine-tuned on Shakespeare's characters (or on made support tickets: ``--data support``); δ = 1e-5, a
tenth of the users is held out, and the loss is that of their first 128 tokens, in nats per token. For each setting::

    share kept = (base - private) / (base - ordinary)

where the ordinary run has neither clipping nor noise, sees as many tokens, trains an adapter of its own kind (LoRA on
queries and values, both factors) and uses the best of its own learning rates. What runs is the product: the plan's
mechanism, the loop that ``uudp run`` runs, one process.

A whole run of 250,000 tokens takes a quarter of an hour on one free core. ``--part 8`` explores in an eighth of it:
every step draws an eighth of the cohort, and the noise on their mean is that of the whole cohort. Such a run is *not*
as private as the plan says; it shows a little less than what the plan's own run would reach, since fewer users are
averaged, and its figures are marked. ``--kept FILE`` remembers finished runs, so that several calls (on several cores,
or after an interruption) share the work.

    python scripts/bench/utility.py --floor

prints, without training, the noise that accounting asks for: noise std on the mean over the clip norm, per step and
accumulated over the run, for several numbers of steps at the same number of tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _measure import machine, prepare, publish, row

HERE = Path(__file__).parent
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATA: dict[str, dict[str, Any]] = {
    "shakespeare": {"source": {"type": "shakespeare"}},
    "support": {
        "source": {
            "type": "synthetic",
            "scenario": "support",
            "users": 1400,
            "seed": 1,
            "records": {"law": "lognormal", "median": 7, "sigma": 0.9, "max": 100},
        }
    },
}
# A setting is what a spec says; `expected` follows from the number of tokens.
SETTINGS: dict[str, dict[str, Any]] = {
    # What the starter spec says: the defaults, and a learning rate that falls.
    "default": {"data": {"max_tokens": 64}, "train": {"schedule": {"type": "linear"}}},
    # What a plain port of an ordinary recipe does.
    "prototype": {
        "data": {"max_tokens": 128},
        "model": {"adapter": {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "freeze_a": False}},
        "clipping": {"norm": 0.5},
        "train": {"steps": 40, "optimizer": {"type": "adamw", "lr": 5.0e-3}, "schedule": {"type": "constant"}},
    },
    # The same with a rate that falls.
    "prototype_falling": {
        "data": {"max_tokens": 128},
        "model": {"adapter": {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "freeze_a": False}},
        "clipping": {"norm": 0.5},
        "train": {"steps": 40, "optimizer": {"type": "adamw", "lr": 5.0e-3}, "schedule": {"type": "linear"}},
    },
    # The defaults with examples twice as long, and so cohorts of a half.
    "longer": {"data": {"max_tokens": 128}, "train": {"schedule": {"type": "linear"}}},
}
ORDINARY_SETTING: dict[str, Any] = {
    "data": {"max_tokens": 64},
    "model": {"adapter": {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "freeze_a": False}},
    "train": {"schedule": {"type": "linear"}},
}
EVALUATED_TOKENS = 128
TO_REACH = {"epsilon 8": 0.9, "epsilon 2": 0.75}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(DATA), default="shakespeare")
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=["default"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every setting")
    parser.add_argument("--epsilon", nargs="*", type=float, default=[8.0, 2.0])
    parser.add_argument("--private-lr", nargs="*", type=float, help="default: the setting's own")
    parser.add_argument("--ordinary-lr", nargs="*", type=float, default=[5.0e-3, 1.0e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--part", type=int, default=1, help="explore: draw one in so many of each cohort")
    parser.add_argument("--evaluated", type=int, default=96, help="held-out users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kept", type=Path, metavar="FILE", help="finished runs, a line each: not run again")
    parser.add_argument("--floor", action="store_true", help="the noise of the accounting alone")
    arguments = parser.parse_args()
    prepare(arguments.threads, trains=not arguments.floor)
    result = floor(arguments.tokens) if arguments.floor else Bench(arguments).measure()
    publish({"script": "utility", **result, "threads": arguments.threads, **machine()})


# --- the noise alone ----------------------------------------------------------------------------------------


def floor(tokens: int, users: int = 1261, delta: float = 1e-5) -> dict[str, Any]:
    """Noise std on the mean gradient over the clip norm, per step and accumulated (÷ √steps), per coordinate.

    The noise of a step has a norm of √coordinates times that; no step's signal is larger than the clip norm.
    """
    from harness.privacy.calibration import drafted_multiplier
    from harness.privacy.exposure import Exposure

    rows = []
    for epsilon in (8.0, 2.0):
        for length in (64, 128):
            for steps in (6, 12, 24, 40, 80):
                cohort = tokens / length / steps
                sigma = drafted_multiplier(epsilon, Exposure(cohort / users, steps, delta))
                rows.append(
                    {
                        "epsilon": epsilon,
                        "tokens_of_an_example": length,
                        "steps": steps,
                        "cohort": round(cohort),
                        "noise_multiplier": round(sigma, 3),
                        "noise_of_a_step": round(sigma / cohort, 6),
                        "accumulated": round(sigma / cohort / math.sqrt(steps), 6),
                    }
                )
    return {"floor": rows, "tokens": tokens, "users": users, "delta": delta}


# --- runs ---------------------------------------------------------------------------------------------------


class Bench:
    """All runs of one call."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Brings torch up, with one process in its group."""
        import torch
        import torch.distributed as dist

        from harness.training.model import find_base, quiet
        from harness.training.process import prepare_process
        from harness.training.tokenizer import load_tokenizer

        self.arguments = arguments
        quiet()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        store = tempfile.mkdtemp()
        dist.init_process_group("gloo", init_method=f"file://{store}/group", rank=0, world_size=1)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        prepare_process(arguments.threads)
        torch.set_num_threads(arguments.threads)
        from harness.data.corpus import default_cache_dir

        self.cache = default_cache_dir()
        self.base = find_base(BASE, HERE, self.cache)
        self.tokenizer = load_tokenizer(self.base)
        self.held_out = self.corpus(self.loaded({}, {"data": {"max_tokens": EVALUATED_TOKENS}}, 0, 8.0, 1e-3))
        self.base_loss: float | None = None

    def measure(self) -> dict[str, Any]:
        """Every setting, ordinary and at every ε."""
        arguments = self.arguments
        ordinary = {f"lr {lr:g}": self.seeds(ORDINARY_SETTING, lr, None) for lr in arguments.ordinary_lr}
        best = min((r["mean"] for r in ordinary.values()), default=None)
        found = {name: self.setting(SETTINGS[name], best) for name in arguments.settings}
        marked = " (emulated)" if arguments.part > 1 else ""
        rows = [
            row(f"share of the ordinary gain kept at {name}{marked}", result["share_kept"], TO_REACH.get(name, 0.0))
            for name, result in found[arguments.settings[0]].items()
        ]
        return {
            "to_reach": TO_REACH,
            "rows": rows,
            "model": {"name": BASE, "dtype": "bfloat16"},
            "data": arguments.data,
            "base": self.base_loss,
            "ordinary": ordinary,
            "settings": found,
            "tokens": self.arguments.tokens,
            "seeds": self.arguments.seeds,
            "held_out_users": self.arguments.evaluated,
            "emulated": self.arguments.part > 1,
            "part_of_a_cohort_drawn": 1 / self.arguments.part,
        }

    def setting(self, setting: Mapping[str, Any], best: float | None) -> dict[str, Any]:
        """Losses of one setting, and the shares kept; at its best learning rate, by mean over seeds."""
        result: dict[str, Any] = {}
        for epsilon in self.arguments.epsilon:
            rates = self.arguments.private_lr or [None]
            private = {"own" if lr is None else f"lr {lr:g}": self.seeds(setting, lr, epsilon) for lr in rates}
            lowest = min(r["mean"] for r in private.values())
            assert self.base_loss is not None
            kept = None if best is None else (self.base_loss - lowest) / (self.base_loss - best)
            result[f"epsilon {epsilon:g}"] = {"share_kept": kept, **private}
        return result

    def seeds(self, setting: Mapping[str, Any], lr: float | None, epsilon: float | None) -> dict[str, Any]:
        """One setting, learning rate and ε over all seeds."""
        runs = [self.kept(setting, lr, epsilon, seed) for seed in range(self.arguments.seeds)]
        losses = [run.pop("loss") for run in runs]
        spread = statistics.stdev(losses) if len(losses) > 1 else None
        found = {"mean": statistics.mean(losses), "std": spread, "losses": losses, **runs[0]}
        print(json.dumps({"lr": lr, "epsilon": epsilon, "base": self.base_loss, **found}), file=sys.stderr, flush=True)
        return found

    def kept(self, setting: Mapping[str, Any], lr: float | None, epsilon: float | None, seed: int) -> dict[str, Any]:
        """A run, or what an earlier call kept of it."""
        file = self.arguments.kept
        if file is None:
            return self.run(setting, lr, epsilon, seed)
        names = ("data", "set", "tokens", "steps", "part", "evaluated")
        what = {name: getattr(self.arguments, name) for name in names}
        what = json.loads(json.dumps({**what, "setting": setting, "lr": lr, "epsilon": epsilon, "seed": seed}))
        earlier = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for line in earlier:
            if line["what"] == what:
                self.base_loss = line["base"]
                return dict(line["found"])
        found = self.run(setting, lr, epsilon, seed)
        with file.open("a") as lines:
            lines.write(json.dumps({"what": what, "base": self.base_loss, "found": found}) + "\n")
        return found

    def run(self, setting: Mapping[str, Any], lr: float | None, epsilon: float | None, seed: int) -> dict[str, Any]:
        """One training; its loss on held-out users at the end."""
        from harness.planning import make_plan
        from harness.privacy.randomness import create_key
        from harness.training.inputs import ORDINARY, PRIVATE, Inputs
        from harness.training.job import Folder, Job
        from harness.training.loop import Series

        begin = time.perf_counter()
        loaded = self.loaded(setting, {}, seed, epsilon or 8.0, lr)
        plan = make_plan(loaded)
        mechanism, corpus = plan.mechanism, self.corpus(loaded)
        if self.arguments.part > 1:
            part = 1 / self.arguments.part
            groups = tuple(dataclasses.replace(g, sampling_rate=g.sampling_rate * part) for g in mechanism.groups)
            mechanism = dataclasses.replace(mechanism, noise_std=mechanism.noise_std * part, groups=groups)
        if epsilon is None:
            mechanism = mechanism.without_privacy()
        with tempfile.TemporaryDirectory() as place:
            folder = Folder(Path(place) / "run")
            folder.private.mkdir(parents=True, mode=0o700)
            np.save(folder.members, np.zeros(corpus.n_users, dtype=np.int16), allow_pickle=False)
            create_key(folder.key, None)
            job = Job(plan.spec, mechanism, plan.curve, corpus.folder, self.base.folder, "cpu")
            series = Series(
                PRIVATE if epsilon else ORDINARY,
                job,
                folder,
                Inputs.load(job, folder),
                mechanism,
                lambda row: None,
            )
            if self.base_loss is None:
                self.base_loss = self.loss(series)
            series.run()
            loss = self.loss(series)
        group = mechanism.groups[0]
        return {
            "loss": loss,
            "coordinates": sum(t.size for t in series.engine.trainables),
            "steps": mechanism.steps,
            "expected_cohort": plan.mechanism.denominator(0),
            "noise_multiplier": mechanism.noise_std / group.clip_norm * self.arguments.part,
            "noise_of_a_step": mechanism.noise_std / group.clip_norm / mechanism.denominator(0),
            "seconds": round(time.perf_counter() - begin),
        }

    def loss(self, series: Any) -> float:
        """Nats per token on the held-out users, of the model as it is now."""
        from harness.training.evaluation import HoldoutSet, evaluate

        corpus = self.held_out
        users = corpus.holdout_by_order(self.arguments.evaluated)
        examples = tuple(corpus.examples_of(int(u))[0] for u in users)
        held = HoldoutSet(examples, (0,) * len(examples), ("all",))
        model, device = series.engine.module, series.device
        return float(evaluate(model, corpus, corpus.example_lengths, held, 2048, device)["eval/loss"])

    # --- specs ----------------------------------------------------------------------------------------------

    def loaded(
        self, setting: Mapping[str, Any], more: Mapping[str, Any], seed: int, epsilon: float, lr: float | None
    ) -> Any:
        """The spec of a run, loaded as `uudp` loads it."""
        from harness import load_spec

        document: dict[str, Any] = {
            "version": 1,
            "name": "utility",
            "seed": seed,
            "data": {
                "name": f"utility-{self.arguments.data}",
                "visibility": "public",
                "holdout": {"users": 0.1, "visibility": "public"},
                **DATA[self.arguments.data],
            },
            "model": {"base": BASE},
            "privacy": {"epsilon": epsilon, "delta": 1e-5, "ledger": None},
            "sampling": {"expected": 1},
            "train": {"steps": self.arguments.steps},
            "evaluation": {"users": 1},
            "compute": {"accelerator": "cpu", "deepspeed": {"stage": 0}},
        }
        document = merged(merged(document, setting), more)
        if lr is not None:
            document = merged(document, {"train": {"optimizer": {"lr": lr}}})
        document["train"]["checkpoint_every"] = document["train"]["steps"]
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "utility.yaml"
            path.write_text(yaml.safe_dump(document))
            first = load_spec(path, self.arguments.set)
            if more:
                return first
            per_step = self.tokens_of_a_user(first) * first.spec.train.steps
            expected = f"sampling.expected={self.arguments.tokens / per_step:g}"
            return load_spec(path, [*self.arguments.set, expected])

    def tokens_of_a_user(self, loaded: Any) -> float:
        """Tokens with which a sampled user takes part in a step, on average."""
        corpus, limit = self.corpus(loaded), loaded.spec.sampling.examples_per_user
        counts = corpus.n_examples[corpus.users(holdout=False)]
        lengths = corpus.n_tokens[corpus.users(holdout=False)] / np.maximum(counts, 1)
        return float((lengths * np.minimum(counts, limit)).mean())

    def corpus(self, loaded: Any) -> Any:
        """The tokens of a spec's data."""
        from harness.data.corpus import build_corpus
        from harness.data.sources.base import Columns, open_source

        data = loaded.spec.data
        return build_corpus(
            open_source(data, HERE),
            Columns.of(data),
            tokenizer=self.tokenizer,
            tokenizer_digest=self.base.tokenizer_digest,
            data=data,
            cache_dir=self.cache,
            private_dir=None,
        )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, block by block."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


if __name__ == "__main__":
    main()
