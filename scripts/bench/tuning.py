"""What a search inside the budget gains, or loses, against the defaults with the whole budget: at equal ε in all.

    python scripts/bench/tuning.py [SPEC] [key=value ...] [--rounds 3] [--off]

SPEC is the quickstart unless another is named, made smaller. Each round trains it once as it is written, with all of ε,
and once as a random search (a secret number of trials, of which the best is released) over clip norm, learning rate and
cohort, whose trials share the same ε. Every run draws its own cohorts and noise. With ``--off`` the untuned run, and
the search's reference, start from a learning rate ten times too small: what a search is for. One document, JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _commands
import _measure

ARGUMENTS = [
    "train.steps=12",
    "train.checkpoint_every=1000000",
    "sampling.expected=48",
    "data.max_tokens=64",
    "evaluation.users=64",
    "evaluation.ordinary=false",
    "compute.workers=1",
    "compute.deepspeed.stage=0",
    "report.html=false",
    "report.prompts=[]",
    "privacy.ledger=null",
]
SPACE = {
    "clipping.norm": {"loguniform": [0.1, 2.0]},
    "train.optimizer.lr": {"loguniform": [1e-3, 2e-2]},
    "sampling.expected": {"choice": [32, 48, 96]},
}
OFF = "train.optimizer.lr=0.0005"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arguments", nargs="*", metavar="SPEC|KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mean", type=float, default=6.0, help="mean number of trials")
    parser.add_argument("--off", action="store_true", help="start from a learning rate that is ten times too small")
    options = parser.parse_intermixed_args()
    _measure.prepare(trains=False)
    with TemporaryDirectory() as place:
        document = measure(options, Path(place))
    _measure.publish({"script": "tuning", **document, **_measure.machine()})


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Both in turns."""
    spec, given = _commands.asked(options.arguments)
    changes = [*ARGUMENTS, *([OFF] if options.off else []), *given]
    sweep = {"space": SPACE, "search": {"type": "random", "trials": {"law": "logarithmic", "mean": options.mean}}}
    rounds = []
    for number in range(options.rounds):
        more = [*changes, f"seed={number + 1}"]
        untuned = _commands.document(_commands.uudp("run", spec, more, place / "run"))
        searched = [*more, f"sweep={json.dumps(sweep)}"]
        tuned = _commands.document(_commands.uudp("sweep", spec, searched, place / "sweep"))
        rounds.append(
            {
                "base": untuned["summary"]["base_loss"],
                "untuned": untuned["summary"]["trained_loss"],
                "tuned": tuned["summary"]["trained_loss"],
                "winner": tuned["winner"],
            }
        )
    gains = [(one["base"] - one["tuned"]) / (one["base"] - one["untuned"]) for one in rounds]
    found = round(statistics.median(gains), 2)
    start = "a learning rate ten times too small" if options.off else "the defaults"
    what = f"gain of a random search (mean {options.mean:g} trials) over that of {start}, at equal ε in all"
    return {
        "spec": {"name": spec, "changes": changes},
        "sweep": sweep,
        "rounds": rounds,
        "gains": [round(gain, 3) for gain in gains],
        "gain": found,
        "rows": [{"what": what, "figure": f"{found:.3g}", "to_reach": "", "reached": True}],
    }


if __name__ == "__main__":
    main()
