"""Every candidate of a sweep fits into memory, or the sweep is refused before anything is spent."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.planning import make_plan, room
from harness.sweeping import fitting
from harness.sweeping.costing import SweepPlan, plan_sweep
from harness.sweeping.fitting import at_a_time, neediest
from harness.sweeping.predicting import rank
from harness.sweeping.space import base_values, draw
from tests.plans import write_spec
from tests.test_footprint import model_folder

GIB = 2**30
LORA = {"type": "lora", "r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}
ADAPTERS = {"model.adapter": {"choice": [LORA, {"type": "full"}]}}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how much memory is free."""
    model_folder(tmp_path / "tiny-model")
    monkeypatch.setattr(room, "_free_on_gpu", lambda: None)

    def free(size: float) -> None:
        monkeypatch.setattr(room, "free_here", lambda: int(size * GIB))

    free(1000)
    return free


def swept(folder: Path, space: dict[str, Any], search: dict[str, Any] | None = None, **sweep: Any) -> SweepPlan:
    search = search or {"type": "random", "trials": {"law": "geometric", "mean": 4.0}}
    data = {"population": 4000, "holdout": {"users": 0.1}}
    compute = {"accelerator": "cpu", "microbatch_tokens": 1024}
    train = {"optimizer": {"type": "sgd", "lr": 0.01}}
    found = {"space": space, "search": search, **sweep}
    return plan_sweep(write_spec(folder, sweep=found, data=data, compute=compute, train=train))


def total(found: SweepPlan, *overrides: str) -> int:
    """Bytes of a worker with the spec changed like this, as `uudp plan` has it."""
    known = make_plan(str(found.path), ["sweep=null", *overrides]).memory
    assert known is not None
    assert known.footprint is not None
    return known.footprint.total


def size(found: SweepPlan) -> int:
    known = found.plan.memory
    assert known is not None
    assert known.footprint is not None
    return known.footprint.total


@pytest.mark.parametrize(
    ("space", "most"),
    [
        (ADAPTERS, 'model.adapter={"type": "full"}'),
        ({"model.adapter.r": {"int": [2, 64]}}, "model.adapter.r=64"),
        ({"model.adapter.targets": {"choice": ["all-linear", ["q_proj"]]}}, "model.adapter.targets=all-linear"),
        ({"train.optimizer.type": {"choice": ["sgd", "adamw"]}}, "train.optimizer.type=adamw"),
        ({"model.adapter.r": {"int": [16, 64]}, "model.adapter.alpha": {"uniform": [1.0, 9.0]}}, "model.adapter.r=64"),
    ],
)
def test_the_candidate_that_needs_most_is_planned_for(
    space: dict[str, Any], most: str, machine: Any, tmp_path: Path
) -> None:
    """Break: the spec's own memory; the first candidate's; ranges by their lower end."""
    found = swept(tmp_path, {"clipping.norm": {"loguniform": [0.1, 1.0]}, **space})
    assert size(found) == total(found, most) > total(found)
    assert found.plan.memory == found.untuned.memory
    assert found.plan.memory is not None
    assert found.plan.memory.words.startswith("the candidate ")


@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_needs_more(seed: int, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a space with conditions, looked at whole and key by key. Break: `DECIDING` without the optimizer."""
    space = {
        "train.optimizer.type": {"choice": ["sgd", "adamw"]},
        "train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "model.adapter.type": {"choice": ["bias", "full", "norms", "lora"]},
        "model.adapter.r": {"int": [2, 500], "when": {"model.adapter.type": "lora"}},
    }
    monkeypatch.setattr(fitting, "MOST_SETTINGS", 100 if seed else 3)
    found = swept(tmp_path, space)
    numbers, base = random.Random(seed), base_values(found.untuned.loaded.resolved)
    for _ in range(8):
        candidate = draw(found.block.space, lambda _: 1 - numbers.random(), base)
        assert total(found, *candidate.overrides) <= size(found)


def test_what_does_not_fit_is_refused_by_name_and_costs_nothing(
    machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the plan, and by the command before it spends. Break: `_check_fits` of the spec as it is written."""
    found = swept(tmp_path, ADAPTERS)
    machine((total(found) + size(found)) / 2 / GIB + 0.9)
    spec = str(tmp_path / "spec.yaml")
    for arguments in (["--plan"], ["--yes", "--out", str(tmp_path / "runs")]):
        assert main.run_app(["sweep", spec, *arguments]) == 4
        said = capsys.readouterr().err
        assert 'uudp: memory: the candidate model.adapter={"type": full} needs about' in said
        assert "What would fit: leave it out of sweep.space" in said
    assert not (tmp_path / "runs").exists()
    assert main.run_app(["sweep", spec, "--plan", "sweep.space.model.adapter={choice: [{type: lora}]}"]) == 0


def test_trials_at_a_time_fit_together(machine: Any, tmp_path: Path) -> None:
    """Asked for, they are refused; left open, there are as many as fit. Break: `at_a_time` without Ray's own."""
    found = swept(tmp_path, ADAPTERS)
    machine((3.9 * size(found)) / GIB + 0.9)
    assert at_a_time(neediest(found)) == 3
    for asked, fits in ((3, True), (4, False)):
        known = swept(tmp_path, ADAPTERS, concurrent=asked).plan.memory
        assert known is not None
        assert known.fits is fits
        assert (known.refusal is None) is fits
    assert "memory: 4 trials at a time: the candidate" in str(known.refusal)
    assert "What would fit: sweep.concurrent: 3" in str(known.refusal)


def test_a_predicted_search_chooses_what_fits(machine: Any, tmp_path: Path) -> None:
    """Break: `_ranked` without its look at memory."""
    found = swept(tmp_path, ADAPTERS, {"type": "predicted"})
    machine((total(found) + total(found, 'model.adapter={"type": "full"}')) / 2 / GIB + 0.9)
    best, other = rank(found)
    assert json.dumps(best.candidate.document()["model.adapter"]).count("lora") == 1
    assert other.reason.startswith("memory: needs about")
