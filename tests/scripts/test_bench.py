"""Every benchmark runs, on tiny models, and prints the document that is promised. No figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT
from tests.tiny import made_posts, make_spec, save_base, write_posts

SCRIPTS = ROOT / "scripts" / "bench"
TINY = ("--model", "tiny", "--tokens", "128", "--length", "16", "--repeats", "1", "--dtype", "float32")
PLACE = {"device", "cpu", "cores", "load", "python", "versions"}
ROW = {"what", "figure", "to_reach", "reached"}


def printed(script: str, *arguments: str, cache: Path | None = None) -> dict[str, Any]:
    """What a script prints, which must be one JSON document and nothing else."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"UUDP_CACHE": str(cache)} if cache else {})
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["script"] == script
    assert set(document) >= PLACE | {"to_reach", "rows"}
    assert document["rows"]
    assert all(set(row) == ROW for row in document["rows"])
    return document


def test_a_step_beside_all_others() -> None:
    """Red when a variant's library changes under it: then its entry holds the reason and no speed."""
    found = printed("step", *TINY, "--threads", "1", "--no-memory")
    assert set(found["variants"]) == {"product", "ordinary", "opacus_hooks", "opacus_ghost", "loop"}
    for name, variant in found["variants"].items():
        assert variant.get("tokens_per_second", 0) > 0, (name, variant)
        assert len(variant["seconds"]) == 1
    assert (found["users"], found["examples"], found["tokens"], found["padding_share"]) == (8, 8, 128, 0.0)
    assert found["model"]["trained"] > 0
    assert found["tokens_ratio"] == found["variants"]["product"]["of_ordinary"]


@pytest.mark.slow
def test_a_variant_that_does_not_run_says_why() -> None:
    """Red when one failure ends the whole measurement. (Ghost clipping without Opacus, which is made unimportable.)"""
    code = (
        "import sys, runpy; sys.modules['opacus.grad_sample'] = None; sys.argv = sys.argv[1:];"
        f"sys.path.insert(0, {str(SCRIPTS)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(SCRIPTS / "step.py"), *TINY, "--only", "opacus_ghost", "--no-memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    found = json.loads(done.stdout)["variants"]
    assert set(found) == {"product", "ordinary", "opacus_ghost"}
    assert found["opacus_ghost"]["failed"].startswith("ModuleNotFoundError")


@pytest.mark.slow
def test_memory_is_measured_in_a_process_per_variant() -> None:
    """Red when a variant's process fails, or measures the libraries with it."""
    found = printed("step", *TINY, "--only", "loop")
    for variant in found["variants"].values():
        assert 0 < variant["memory"]["model"] < variant["memory"]["peak"] < 500_000_000
    assert found["memory_ratio"] > 0
    assert len(found["rows"]) == 2


@pytest.mark.slow
def test_ragged_users_of_many_examples() -> None:
    found = printed("step", *TINY, "--packed", "--microbatch", "64", "--no-memory")
    assert set(found["variants"]) == {"product", "ordinary"}
    assert found["examples"] > found["users"]
    assert 0 <= found["padding_share"] < 1


def test_a_gpus_script_can_be_tried_out_on_a_cpu() -> None:
    found = printed("gpu", "--device", "cpu", *TINY, "--only", "--no-memory")
    assert found["flops_per_token"] > 0
    assert found["peak_flops"] is None
    assert found["variants"]["product"]["flops_per_second"] > 0


def test_a_run_beside_a_plain_trainer(tmp_path: Path) -> None:
    """Red when padding counts as text: its share would be zero."""
    base = save_base(tmp_path / "base")
    spec = make_spec(base, write_posts(tmp_path / "posts.jsonl", made_posts(30)), train={"steps": 4})
    (tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    found = printed("endtoend", str(tmp_path / "spec.yaml"), "--repeats", "1", "--steps", "1", cache=tmp_path / "cache")
    assert set(found["tokens_per_second"]) == {"product", "trainer", "trainer_on_packed_examples"}
    assert all(speed > 0 for speed in found["tokens_per_second"].values())
    # Records are ragged; and every row has a token of text.
    assert 0 < found["trainer"]["padding_share"]["trainer"] < 1
    assert found["ratio"] > 0
    assert found["ratio_on_packed_examples"] > 0


@pytest.mark.slow
def test_sharding_spreads_the_parameters() -> None:
    """Red when a rank's whole parameters are counted: two workers would hold as much each as one."""
    common = ("--model", "small", "--tokens", "64", "--length", "16", "--repeats", "1")
    found = printed("zero", *common, "--workers", "1", "2", "--stages", "3")
    held = {one["workers"]: one["held_bytes"] for one in found["results"]}
    assert set(held) == {1, 2}
    (whole,) = held[1]
    assert len(held[2]) == 2
    assert all(0.45 * whole < bytes_ < 0.6 * whole for bytes_ in held[2])
    assert all(one["tokens_ratio"] > 0 for one in found["results"])


def test_cohorts_of_growing_populations() -> None:
    found = printed("cohort", "--users", "1000", "20000", "--cohort", "50", "--repeats", "2")
    assert [one["users"] for one in found["results"]] == [1000, 20000]
    for one in found["results"]:
        assert 10 < one["drawn"] < 150
        assert set(one["seconds"]) == {"draw", "micro_batches", "fetch"}
        assert one["of_which_libraries"] <= one["held_bytes"]


@pytest.mark.slow
def test_what_the_time_of_a_step_goes_to() -> None:
    """Red when an operator's time is counted twice: shares would add up to more than one."""
    found = printed("hotspots", *TINY, "--steps", "1")
    for side in ("product", "ordinary"):
        shares = found[side]["shares"]
        assert shares["matrix products"] > 0
        assert sum(shares.values()) == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_run_beside_a_bare_script(tmp_path: Path) -> None:
    """Red when either side fails, or a run takes no time beyond its training."""
    base = save_base(tmp_path / "base")
    spec = make_spec(base, write_posts(tmp_path / "posts.jsonl", made_posts(30)))
    (tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    arguments = (str(tmp_path / "spec.yaml"), "evaluation.users=4", "sampling.expected=4", "--repeats", "1")
    found = printed("overhead", *arguments, "--steps", "1", cache=tmp_path / "cache")
    assert found["overhead"] > 0
    assert {name: len(each) for name, each in found["seconds"].items()} == {"uudp run": 1, "bare script": 1}


@pytest.mark.slow
def test_what_a_sweep_costs_beside_its_trials(tmp_path: Path) -> None:
    """Two trials of the tiny model."""
    base = save_base(tmp_path / "base")
    spec = make_spec(base, write_posts(tmp_path / "posts.jsonl", made_posts(40)))
    (tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    arguments = (str(tmp_path / "spec.yaml"), "data.max_tokens=32", "--trials", "2", "--alone", "1")
    found = printed("sweep", *arguments, cache=tmp_path / "cache")
    assert (found["trials"], len(found["alone"])) == (2, 1)
    assert found["ratio"] > 0


def test_predictions_of_every_measured_size() -> None:
    """Red when a constant of the simulator, or a new result, makes a measured step miss the stated error."""
    from harness.planning.simulating import ERROR

    found = printed("simulate")
    assert len(found["steps"]) >= 12
    for one in found["steps"]:
        for key in ("ratio", "from_the_others"):
            assert 1 / (1 + ERROR) <= one[key] <= 1 + ERROR, one
    assert all(0.8 <= one["ratio"] <= 1.2 for one in found["runs"])
    assert all(one["ratio"] == pytest.approx(1, abs=0.01) for one in found["held_bytes"])
    assert all(ratio == pytest.approx(1, abs=0.15) for ratio in found["pieces"].values())
    committed = json.loads((SCRIPTS / "results" / "simulate-2core-cpu.json").read_text())
    for key in ("runs", "held_bytes", "cohorts", "pieces", "left_out"):
        assert found[key] == committed[key], f"{key}: run scripts/bench/simulate.py anew"
    for one, before in zip(found["steps"], committed["steps"], strict=True):
        # The fit's last digits are the linear algebra library's.
        assert one["case"] == before["case"]
        assert one["from_the_others"] == pytest.approx(before["from_the_others"], abs=0.005), one


@pytest.mark.slow
def test_the_small_costs_of_a_step(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    spec = make_spec(base, write_posts(tmp_path / "posts.jsonl", made_posts(30)))
    (tmp_path / "spec.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    found = printed("pieces", "--spec", str(tmp_path / "spec.yaml"), "--repeats", "1", "--sizes", "1", "1000")
    assert [one["bytes"] for one in found["collectives"]] == [8, 8000]
    assert all(value > 0 for one in found["collectives"] for value in one["bytes_per_second"].values())
    assert found["noise_per_second"] > 0
    assert found["preparation"]["tokens"] > 0
