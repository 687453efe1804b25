"""What `uudp plan --on` predicts of every size that was measured, beside what was measured: one JSON document.

    python scripts/bench/simulate.py [--results FOLDER]

Measures nothing: it reads ``results/*.json``. A step's seconds are predicted twice, by the constants of
`harness.planning.simulating`, and by constants that are fitted to all other sizes without this one; the second is the
error that a size nobody has measured would have. What can't be compared is named, with its reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
RESULTS = Path(__file__).resolve().parent / "results"
LEFT_OUT = {
    "hotspots": "measured under a profiler, which slows what it watches",
    "utility": "whole trainings beside other work of unknown load",
    "fit": "its seconds hold loading and trying out; its memory is compared there",
    "plan": "trains nothing",
    "gpu": "no GPU was measured yet",
}
LOWEST, HIGHEST = 0.80, 1.20


@dataclass(frozen=True)
class Case:
    """A step that was measured: what it does (`workload.Workload`), on how many workers of how many cores each."""

    name: str
    work: Any
    workers: int
    cores: float
    seconds: float


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    _measure.prepare(trains=False)
    document = compare(options.results, measured_shape())
    _measure.publish({"script": "simulate", **document, **_measure.machine()})


def measured_shape() -> Any:
    """That of the model which all sizes are of."""
    from harness.planning.shapes import read_shape

    with TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(SMOLLM2))
        return read_shape(Path(place))


def compare(results: Path, shape: Any) -> dict[str, Any]:
    """The document."""
    names = {path: path.name.partition("-")[0] for path in sorted(results.glob("*-*.json"))}
    found = {name: json.loads(path.read_text()) for path, name in names.items() if name != "simulate"}
    steps = compared(list(cases(found, shape)))
    worst = max((one["from_the_others"] for one in steps), key=lambda r: max(r, 1 / r))
    what = f"predicted ÷ measured seconds of a step, each of {len(steps)} sizes from the others, the worst"
    figure = {
        "what": what,
        "figure": f"{worst:.2f}",
        "to_reach": f"{LOWEST:.2f} to {HIGHEST:.2f}",
        "reached": LOWEST <= worst <= HIGHEST,
    }
    return {
        "model": {"name": _models.DEFAULT},
        "measured_on": {name: one["cpu"] for name, one in found.items() if name not in LEFT_OUT and "cpu" in one},
        "steps": steps,
        "worst": {"fitted": extreme(steps, "ratio"), "from_the_others": worst},
        "fitted": dict(zip(NAMES, map(float, fitted(list(cases(found, shape)))), strict=True)),
        "runs": list(runs(found, shape)),
        "held_bytes": list(held(found, shape)),
        "cohorts": cohorts(found),
        "pieces": pieces(found),
        "left_out": {name: why for name, why in LEFT_OUT.items() if name in found or name == "gpu"},
        "to_reach": {"from_the_others": [LOWEST, HIGHEST]},
        "rows": [figure],
    }


def extreme(rows: Sequence[dict[str, Any]], key: str) -> float:
    """The ratio that is furthest from one."""
    ratios: list[float] = [row[key] for row in rows]
    return max(ratios, key=lambda r: max(r, 1 / r))


# --- steps --------------------------------------------------------------------------------------------------


def workload(shape: Any, document: dict[str, Any], **more: Any) -> Any:
    """The step of a result, by what it says of itself."""
    from harness.planning.workload import Workload

    tokens = document.get("tokens") or document["tokens_per_step"]
    padded = tokens / (1 - document.get("padding_share", 0.0))
    units = document.get("users") or 16
    settings: dict[str, Any] = {
        "base_bytes": 4 if document["model"]["dtype"] == "float32" else 2,
        "coordinates": 184_320,
        "full": False,
        "checkpointing": False,
        "stage": 0,
        "offload": "none",
        "microbatch": document["microbatch_tokens"],
        "longest": document.get("length", 128),
        "units": units,
        "tokens": padded / units,
        "examples": 1,
        "moments": 2,
    }
    return Workload(shape=shape, **(settings | more))


def cases(found: dict[str, Any], shape: Any) -> Iterator[Case]:
    """Every step that was measured."""
    for name in ("step", "step_packed"):
        if name in found:
            one = found[name]
            seconds = statistics.median(one["variants"]["product"]["seconds"])
            yield Case(name, workload(shape, one), 1, one["cores"], seconds)
    for one in found.get("zero", {}).get("results", ()):
        whole = found["zero"]
        seconds = statistics.median(one["seconds"]["product"])
        name = f"zero, stage {one['stage']}, {one['workers']} workers"
        cores = max(1, whole["cores"] / one["workers"])
        yield Case(name, workload(shape, whole, stage=one["stage"]), one["workers"], cores, seconds)
    if "endtoend" in found:
        one = found["endtoend"]
        padding = one["trainer"]["padding_share"]["trainer_on_packed_examples"]
        work = workload(
            shape, one | {"padding_share": padding}, coordinates=one["model"]["trained"], longest=one["max_tokens"]
        )
        yield Case("endtoend", work, 1, one["cores"], one["tokens_per_step"] / one["tokens_per_second"]["product"])
    if "full" in found:
        one = found["full"]
        work = workload(shape, one, full=True, coordinates=one["model"]["parameters"])
        yield Case("full", work, 1, one["cores"], one["tokens"] / one["tokens_per_second"]["private"])


def costs_of(case: Case) -> Any:
    """Those of a worker with so many cores."""
    from harness.planning.devices import DEVICES
    from harness.planning.simulating import costs_on

    _, likely, _ = costs_on(DEVICES["cpu"], case.work, case.workers, 1e4)
    return replace(likely, flops=likely.flops * case.cores)


def compared(measured: Sequence[Case]) -> list[dict[str, Any]]:
    """Predicted and measured seconds."""
    from harness.planning.simulating import parts_of
    from harness.planning.workload import amounts_of_a_step

    rows = []
    for i, case in enumerate(measured):
        predicted = sum(parts_of(amounts_of_a_step(case.work, case.workers), costs_of(case)).values())
        others = fitted([one for k, one in enumerate(measured) if k != i])
        terms, known = split(case)
        apart = float(sum(c * t for c, t in zip(others, terms, strict=True)) + known)
        rows.append(
            {
                "case": case.name,
                "measured_seconds": round(case.seconds, 3),
                "predicted_seconds": round(predicted, 3),
                "ratio": round(predicted / case.seconds, 3),
                "from_the_others": round(apart / case.seconds, 3),
            }
        )
    return rows


NAMES = ("seconds_per_flop_bfloat16", "seconds_per_flop_float32", "layer_seconds", "gather_seconds")


def split(case: Case) -> tuple[list[float], float]:
    """How much of what is fitted a step holds, and the seconds of what is known besides."""
    from harness.planning.simulating import parts_of
    from harness.planning.workload import amounts_of_a_step

    amounts, costs = amounts_of_a_step(case.work, case.workers), costs_of(case)
    flops = amounts.flops / case.cores
    terms = [flops * (case.work.base_bytes == 2), flops * (case.work.base_bytes == 4)]
    known = parts_of(replace(amounts, flops=0.0, layer_calls=0.0, gathers=0.0), costs)
    return [*terms, amounts.layer_calls, amounts.gathers], sum(known.values())


def fitted(measured: Sequence[Case]) -> Any:
    """`NAMES`: those with the least relative squares, none below zero."""
    import numpy as np
    from scipy.optimize import nnls

    rows = [(split(case), case.seconds) for case in measured]
    terms = np.array([[t / seconds for t in parts] for (parts, _), seconds in rows])
    rest = np.array([(seconds - known) / seconds for (_, known), seconds in rows])
    scale = np.maximum(terms.max(axis=0), 1e-300)
    found, _ = nnls(terms / scale, rest)
    return found / scale


# --- whole runs, memory, cohorts ----------------------------------------------------------------------------


def runs(found: dict[str, Any], shape: Any) -> Iterator[dict[str, Any]]:
    """The run from which start-up is taken, and a sweep's trials; on another CPU than the steps."""
    from harness.planning.simulating import Job, run_on

    if "endtoend" not in found:
        return
    quick = found["endtoend"]
    each = quick["tokens_per_step"] / 54
    wanted = {
        "overhead": ("overhead, a whole run", 3, 16, 2, 2, "uudp run"),
        "sweep": ("sweep, a trial's training", 4, 8, 0, 1, None),
    }
    for name, (what, steps, units, stage, workers, side) in wanted.items():
        if name not in found:
            continue
        one = found[name]
        work = workload(
            shape,
            quick,
            coordinates=quick["model"]["trained"],
            longest=quick["max_tokens"],
            units=units,
            tokens=float(quick["max_tokens"]),
            stage=stage,
        )
        job = Job(work, steps, 1, 2, units, 2, 1261, 1)
        costs = costs_of(Case(what, work, workers, one["cores"] / workers, 0.0))
        _, spent = run_on(job, costs, each / quick["max_tokens"], workers)
        if side is None:
            del spent["start-up"]
        seconds = statistics.median(one["alone"] if side is None else one["seconds"][side])
        yield {
            "case": what,
            "measured_seconds": seconds,
            "predicted_seconds": round(sum(spent.values()), 1),
            "ratio": round(sum(spent.values()) / seconds, 3),
            # Start-up is what is left of this very run: its ratio is no check.
            "calibrates": side is not None,
            "start_up_left": None if side is None else round(seconds - sum(spent.values()) + spent["start-up"], 1),
        }


def held(found: dict[str, Any], shape: Any) -> Iterator[dict[str, Any]]:
    """Bytes of parameters on a rank, as the footprint has them, with both factors of the adapters."""
    from harness.planning.footprint import Setting, predict

    adapters = 4 * 460_800
    for one in found.get("zero", {}).get("results", ()):
        setting = Setting(512, 128, one["workers"], one["stage"], "none", False, 2, 184_320, 0, False, 2, False)
        predicted = predict(shape, setting).parts["base"] + adapters
        most = max(one["held_bytes"])
        name = f"zero, stage {one['stage']}, {one['workers']} workers"
        yield {"case": name, "measured": most, "predicted": predicted, "ratio": round(predicted / most, 4)}


def cohorts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of drawing, cutting and reading a cohort, by the committed table; and from the two sizes beside."""
    from harness.planning.simulating import reading

    if "cohort" not in found:
        return []
    one, rows = found["cohort"], []
    sizes = [(each["users"], *seconds_of(each)) for each in one["results"]]
    number, examples = one["cohort"], one["cohort"] * one["examples_per_user"]
    for i, (users, draw, fetch) in enumerate(sizes):
        drawn, read = reading(users)
        row: dict[str, Any] = {
            "users": users,
            "draw_ratio": round(number * drawn / draw, 3),
            "fetch_ratio": round(examples * read / fetch, 3),
        }
        if 0 < i < len(sizes) - 1:
            (_, a, b), (_, c, d) = sizes[i - 1], sizes[i + 1]
            row["draw_from_neighbours"] = round((a * c) ** 0.5 / draw, 3)
            row["fetch_from_neighbours"] = round((b * d) ** 0.5 / fetch, 3)
        rows.append(row)
    return rows


def pieces(found: dict[str, Any]) -> dict[str, float]:
    """Committed constants over what ``pieces.py`` found."""
    from harness.planning import simulating

    if "pieces" not in found:
        return {}
    one = found["pieces"]
    speeds = next(c["bytes_per_second"] for c in one["collectives"] if c["bytes"] == 8_000_000)
    small, large = one["checkpoints"]
    ratios = {
        "summed": simulating.GLOO_SUMMED / speeds["all_reduce"],
        "collected": simulating.GLOO_COLLECTED / speeds["all_gather"],
        "noise": simulating.NOISE / one["noise_per_second"],
        "prepared": simulating.PREPARED / one["preparation"]["tokens_per_core_second"],
        "checkpoint": simulating.CHECKPOINT / small["seconds"],
        "disk": simulating.DISK / (large["bytes"] / (large["seconds"] - small["seconds"])),
    }
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def seconds_of(each: dict[str, Any]) -> tuple[float, float]:
    """Of drawing and cutting, and of reading."""
    seconds = each["seconds"]
    return seconds["draw"] + seconds["micro_batches"], seconds["fetch"]


if __name__ == "__main__":
    main()
