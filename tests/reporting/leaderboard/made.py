"""Folders of runs with true documents: planned, never trained. One for each thing that a mechanism can do."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.planning import Plan, make_plan
from harness.planning.completing import settle
from harness.privacy.guesses import ceiling, epsilon_bound
from harness.sweeping.costing import plan_sweep
from tests.plans import USAGE, write_spec

ATTRIBUTE = {"type": "attribute", "column": "plan", "values": ["free"], "fallback": "paid"}
MANY = 20_000
"""Canaries that could refute ε = 8: perfect guesses give 8.2."""
RDP = {"epsilon": 8.0, "delta": 1e-5, "accountant": "rdp", "ledger": None}
TWO = {"weights": {"free": 0.75, "paid": 0.25}, "holdout": {"users": 0.1}}
SCALE = {"type": "scale", "epsilon": {"free": 8.0, "paid": 4.0}}
KMEANS = {
    "type": "kmeans", "k": 2, "features": ["tokens", "median_length"],
    "bounds": {"tokens": [1, 100], "median_length": [1, 100]}, "names": ["free", "paid"], "noise_multiplier": 8,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "uniform": {"privacy": {"ledger": None}},
    "scale": {"segmentation": ATTRIBUTE, "noise": SCALE, "data": TWO, "privacy": RDP},
    "rdp": {"privacy": RDP},
    "examples": {"privacy": RDP, "sampling": {"unit": "example", "examples_per_user": 3}},
    "sample": {"segmentation": ATTRIBUTE, "noise": SCALE | {"type": "sample"}, "data": TWO, "privacy": RDP},
    "participation": {
        "segmentation": ATTRIBUTE, "data": TWO, "privacy": RDP,
        "noise": {"type": "participation", "epsilon": {"free": 8.0, "paid": 6.0}},
    },
    "schedule": {
        "privacy": RDP,
        "noise": {"type": "schedule", "over": "noise", "shape": "linear", "end": 0.5, "plateaus": 3},
    },
    "adaptive": {"privacy": RDP, "clipping": {"type": "adaptive", "initial": 0.5}},
    "counted": {"privacy": RDP | {"delta": None}, "data": {"population": "public"}, "sampling": {"expected": 5}},
    "noisy": {
        "segmentation": USAGE, "noise": {"type": "scale", "epsilon": {"few": 8.0, "many": 4.0}}, "privacy": RDP,
        "data": {"population": "noisy", "weights": "noisy", "holdout": {"users": 0.1, "visibility": "private"}},
        "sampling": {"expected": None, "rate": 0.02},
    },
    "chosen": {"sampling": {"unit": "example", "examples_per_user": "auto"}, "privacy": RDP},
    "learnt": {
        "segmentation": KMEANS, "noise": SCALE, "privacy": RDP,
        "data": {"weights": {"free": 0.75, "paid": 0.25}},
    },
    "search": {
        "segmentation": ATTRIBUTE, "noise": SCALE, "data": TWO, "privacy": RDP,
        "sweep": {"space": {"clipping.norm": {"loguniform": [0.1, 2.0]}},
                  "search": {"type": "random", "trials": {"law": "geometric", "mean": 5}}},
    },
    "none": {"noise": {"type": "none"}, "segmentation": ATTRIBUTE, "data": TWO, "privacy": {"ledger": None}},
}  # fmt: skip
KINDS = tuple(CHANGES)
Edit = Callable[[dict[str, Any]], None]


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(base))
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and "type" not in value
        found[key] = _merged(found[key], value) if both else copy.deepcopy(value)
    return found


@functools.cache
def _planned(changes: str) -> tuple[Plan, str | None]:
    """The plan of a changed spec as it would be executed, and the ``sweep.json`` of a search."""
    found = json.loads(changes)
    with tempfile.TemporaryDirectory() as folder:
        path = write_spec(Path(folder), **found)
        if "sweep" in found:
            from harness.sweeping.document import document
            from harness.sweeping.space import Candidate

            sweep = plan_sweep(path)
            winner = sweep.plan_of(Candidate((("clipping.norm", 0.5),)))
            return winner, json.dumps(document(sweep) | {"winner": {"candidate": {}, "score": 4.0}, "shown": None})
        plan = make_plan(path)
        if plan.pending:
            counts = dataclasses.replace(plan.population, known=True)
            if counts.source == "noisy":
                counts = dataclasses.replace(counts, users=812.5)
            plan = settle(plan, counts, 2.6 if plan.asked.asks_median else None)
    return plan, None


def plan_of(kind: str, **changes: Any) -> Plan:
    """The plan of a kind of run; it is made once."""
    return _planned(json.dumps(_merged(CHANGES[kind], changes), sort_keys=True))[0]


def documents(
    kind: str = "scale", *, loss: float = 4.2, ordinary: float | None = 4.0, **changes: Any
) -> dict[str, Any]:
    """All files of a finished run, by name.

    Args:
        kind: One of `KINDS`.
        loss: After training; the groups' lie around it.
        ordinary: The same without clipping and noise; None: not measured.
        **changes: Of the spec.
    """
    asked = json.dumps(_merged(CHANGES[kind], changes), sort_keys=True)
    plan, sweep = _planned(asked)
    # Noise is fresh: no two runs measure the same to the last digit.
    base = 4.5 + zlib.crc32(asked.encode()) * 1e-18
    last = plan.mechanism.steps
    rows = []
    for series, end in (("private", loss), ("ordinary", ordinary)):
        for step, value in ((0, base), (last, end)):
            if value is not None:
                row: dict[str, Any] = {"series": series, "step": step, "eval/loss": value, "eval/tokens": 12000}
                for place, group in enumerate(plan.mechanism.groups):
                    row[f"eval/loss/{group.name}"] = value + 0.1 * place * (0.5 if step else 1.0)
                rows.append(row)
    found = {
        "plan.json": json.loads(json.dumps(plan.document())),
        "privacy.json": json.loads(json.dumps(plan.guarantee.document("finished", last))),
        "metrics.jsonl": rows,
        "spec.yaml": json.loads(json.dumps(plan.loaded.resolved)),
    }
    return found if sweep is None else found | {"sweep.json": json.loads(sweep)}


def write(folder: Path, found: Mapping[str, Any]) -> Path:
    """Writes a run's folder."""
    folder.mkdir(parents=True)
    for name, content in found.items():
        if name == "spec.yaml":
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        elif name.endswith("l"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        else:
            text = json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def make(folder: Path, kind: str = "scale", edit: Edit | None = None, **changes: Any) -> Path:
    """Writes the folder of a run, after a change of its documents."""
    found = documents(kind, **changes)
    if edit is not None:
        edit(found)
    return write(folder, found)


def audit(
    claimed: float | None, right: float = 0.6, canaries: int = MANY, delta: float | None = 1e-5, **changes: Any
) -> dict[str, Any]:
    """``audit.json`` of a run with one test, in which this share of the guesses was right."""
    correct = int(right * canaries)
    test = {
        "kind": "gradient", "score": "likelihood", "group": None,
        "canaries": canaries, "guesses": canaries, "correct": correct,
        "bound": epsilon_bound(canaries, canaries, correct, delta or 0.0),
        "ceiling": ceiling(canaries, canaries, delta or 0.0), "confidence": 0.95,
    }  # fmt: skip
    stated = {"epsilon": claimed, "delta": delta}
    return {"version": 1, "claimed": stated, "verdict": "consistent", "one_run": [test], **changes}
