"""What a sweep costs beside its trials: seconds of `uudp sweep` over the sum of its trials' training times.

    python scripts/bench/sweep.py [SPEC] [key=value ...] [--trials 20] [--alone N]

SPEC is the quickstart unless another is named, cut to a few steps of a few users. First some of the trials are trained
alone, one after another in one process with all cores, each from building the model to the saved adapter: their median
times their number is the sum. Then the whole sweep runs as its users run it, from its first import to its report. All
trials have the same number of steps and users. One document, JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _commands
import _measure

TO_REACH = 1.5
ARGUMENTS = [
    "train.checkpoint_every=1000000",
    "train.steps=4",
    "sampling.expected=8",
    "data.max_tokens=64",
    "evaluation.users=8",
    "evaluation.ordinary=false",
    "compute.workers=1",
    "compute.deepspeed.stage=0",
    "privacy.ledger=null",
    "report.prompts=[]",
    "sweep.space={clipping.norm: {loguniform: [0.1, 1.0]}, train.optimizer.lr: {loguniform: [0.001, 0.02]}}",
]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arguments", nargs="*", metavar="SPEC|KEY=VALUE")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--alone", type=int, default=5, help="trials that are trained alone, after one that is not kept"
    )
    options = parser.parse_intermixed_args()
    _measure.prepare(os.cpu_count())
    with TemporaryDirectory() as place:
        document = measure(options, Path(place))
    _measure.publish({"script": "sweep", **document, **_measure.machine()})


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The trials alone, then the sweep."""
    spec, more = _commands.asked(options.arguments)
    search = f"sweep.search={{type: optuna, trials: {options.trials}}}"
    changes = [*ARGUMENTS, search, *more]
    alone = trained_alone(spec, changes, options.alone, place / "alone")
    begin = time.perf_counter()
    _commands.run(_commands.uudp("sweep", spec, changes, place / "runs"))
    seconds = time.perf_counter() - begin
    training = statistics.median(alone) * options.trials
    return {
        "spec": {"name": spec, "changes": changes},
        "trials": options.trials,
        "alone": [round(one, 2) for one in alone],
        "training": round(training, 1),
        "seconds": round(seconds, 1),
        "ratio": round(seconds / training, 2),
        "to_reach": {"ratio": TO_REACH},
        "rows": [
            _measure.row(
                f"seconds of a sweep of {options.trials} small trials over the sum of their training times",
                round(seconds / training, 2),
                TO_REACH,
                at_most=True,
            )
        ],
    }


def trained_alone(spec: str, changes: list[str], count: int, place: Path) -> list[float]:
    """Seconds of single trials, as the sweep trains them."""
    from harness.running.flow import device_of, opened
    from harness.running.watching import Observer
    from harness.spec.merging import find_spec
    from harness.sweeping.costing import plan_sweep
    from harness.sweeping.space import base_values, draw
    from harness.sweeping.trials import Shared, prepare, trial_folder
    from harness.training.job import Folder
    from harness.training.process import prepare_process

    threads = os.cpu_count() or 1
    prepare_process(threads, alone=True)
    from harness.privacy.randomness import create_key
    from harness.training.loop import train

    plan = plan_sweep(find_spec(spec), changes)
    folder = Folder(place)
    folder.private.mkdir(parents=True, mode=0o700)
    create_key(folder.key)
    known, base, corpus = opened(plan.plan, folder, Observer(), resume=False)
    shared = Shared(plan, corpus, base, device_of(known), Observer())
    found, values = [], base_values(plan.untuned.loaded.resolved)
    for number in range(count + 1):
        at = (number + 0.5) / (count + 1)
        prepare(shared, folder, number, draw(plan.block.space, lambda _, at=at: at, values))
        begin = time.perf_counter()
        failure = train(trial_folder(folder, number).root)
        found.append(time.perf_counter() - begin)
        if failure is not None:
            raise SystemExit(failure.message)
    return found[1:]


if __name__ == "__main__":
    main()
