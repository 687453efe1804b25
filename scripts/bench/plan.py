"""How long ``uudp plan`` and ``uudp --help`` take, cold and with everything remembered: one JSON document.

    python scripts/bench/plan.py [--repeats 3]

Each figure is the median wall time (s) of whole processes, taken in turn, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _measure
import yaml

BASE: dict[str, Any] = {
    "version": 1,
    "name": "bench",
    "data": {
        "name": "posts",
        "source": {"type": "jsonl", "path": "posts.jsonl"},
        "attributes": ["plan"],
        "holdout": {"users": 0.0, "visibility": "public"},
        "population": 10000,
    },
    "model": {"base": "a-model"},
    "privacy": {"epsilon": 8.0, "delta": 1.0e-6},
    "sampling": {"unit": "user", "expected": 64},
    "train": {"steps": 200},
}
GROUPS: dict[str, Any] = {
    "segmentation": {"type": "attribute", "column": "plan", "values": ["free", "paid"]},
    "noise": {"type": "scale", "epsilon": {"free": 8, "paid": 4, "other": 2}},
}
WEIGHTS = {"free": 0.6, "paid": 0.3, "other": 0.1}
EXAMPLES = {"sampling": {"unit": "example", "expected": 512, "examples_per_user": 16}, "train": {"steps": 500}}
SPECS: dict[str, dict[str, Any]] = {
    "uniform": BASE,
    "three_groups": BASE | GROUPS | {"data": BASE["data"] | {"weights": WEIGHTS}},
    "examples_16": BASE | EXAMPLES,
}
STATES = ("cold", "cached")
TO_REACH = {
    "help": 0.3,
    "uniform_cold": 2.0,
    "three_groups_cold": 3.0,
    "examples_16_cold": 10.0,
    "uniform_cached": 1.0,
    "three_groups_cached": 1.0,
    "examples_16_cached": 1.0,
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = max(1, parser.parse_args().repeats)
    times: dict[str, list[float]] = {name: [] for name in TO_REACH}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "posts.jsonl").write_text('{"user": "u", "text": "t", "plan": "free"}\n')
        for name, spec in SPECS.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        timed(["--help"], folder)  # compiles what was never imported
        for _ in range(repeats):
            times["help"].append(timed(["--help"], folder))
            for name in SPECS:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                for state in STATES:
                    times[f"{name}_{state}"].append(timed(["plan", f"{name}.yaml", "--json"], folder))
    medians = {name: round(statistics.median(found), 3) for name, found in times.items()}
    found = {"script": "plan", "seconds": medians, "to_reach": TO_REACH, "repeats": repeats, "rows": rows(medians)}
    print(json.dumps(found | machine(), indent=1))


def rows(medians: dict[str, float]) -> list[dict[str, Any]]:
    """For the README's table."""
    named = {"help": "`uudp --help`"} | {
        f"{spec}_{state}": f"`uudp plan`, {spec.replace('_', ' ')}, {state}" for spec in SPECS for state in STATES
    }
    return [
        _measure.row(named[name], seconds, TO_REACH[name], at_most=True, unit=" s") for name, seconds in medians.items()
    ]


def timed(arguments: list[str], folder: Path) -> float:
    """Wall time of one command, in a cache and with a ledger of its own."""
    environment = os.environ | {"UUDP_CACHE": str(folder / "cache"), "UUDP_LEDGER": f"sqlite:///{folder}/ledger.db"}
    begin = time.perf_counter()
    command = [sys.executable, "-m", "harness", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    names = ("uudp", "dp-accounting", "numpy", "scipy")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


if __name__ == "__main__":
    main()
