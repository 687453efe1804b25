"""`uudp plan --on`: predictions keep to what was measured, grow with the work, and add up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArgumentError
from harness.planning.devices import DEVICES, MOST, parse_target
from harness.planning.shapes import Shape, read_shape
from harness.planning.simulating import (
    FILL,
    Job,
    Range,
    costs_on,
    parts_of,
    predict_on,
    reading,
    run_on,
    useful,
)
from harness.planning.workload import (
    Workload,
    amounts_of_a_step,
    amounts_of_an_evaluation,
    flops_of_a_token,
    multiplied,
)

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def shape_of(folder: Path, **changes: Any) -> Shape:
    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes))
    shape = read_shape(folder)
    assert shape is not None
    return shape


@pytest.fixture
def work(tmp_path: Path) -> Workload:
    return Workload(
        shape_of(tmp_path), 2, 23_040, False, False, 2, "none", microbatch=1024, longest=64, units=512, tokens=64.0,
        examples=1, moments=2,
    )  # fmt: skip


def job_of(work: Workload, **changes: Any) -> Job:
    return replace(Job(work, 12, 1, 5, 64, 5, 1261.0, 1), **changes)


# --- counts -------------------------------------------------------------------------------------------------


def test_operations_of_a_token_by_hand(tmp_path: Path, work: Workload) -> None:
    """Break: count the input table of a model with an output layer of its own."""
    layer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576
    weights = 30 * layer + 49152 * 576
    assert multiplied(work.shape) == weights
    assert multiplied(shape_of(tmp_path, tie_word_embeddings=False)) == weights
    attention = 64 * 576 * 30
    assert flops_of_a_token(work, backward=False) == 2 * weights + 2 * attention
    # Backward to the inputs alone, and the adapters' own.
    assert flops_of_a_token(work) == 4 * weights + 7 * attention + 6 * 23_040
    full = replace(work, full=True, coordinates=work.shape.parameters)
    assert flops_of_a_token(full) == 8 * weights + 12 * attention
    assert flops_of_a_token(replace(full, stage=3)) == 10 * weights + 14 * attention
    assert flops_of_a_token(replace(work, checkpointing=True)) > flops_of_a_token(work)


def test_workers_together_do_what_one_does(work: Workload) -> None:
    """Nothing is lost or done twice where units are dealt out evenly. Break: divide tokens, not units, by workers²."""
    alone = amounts_of_a_step(work, 1)
    for n in COUNTS:
        one = amounts_of_a_step(work, n)
        assert one.flops * n == pytest.approx(alone.flops)
        assert one.fetched * n == alone.fetched
        assert one.drawn == alone.drawn  # everybody draws the whole cohort
        assert one.noise == alone.noise  # and of adapters all the noise
    full = replace(work, full=True, coordinates=work.shape.parameters)
    assert amounts_of_a_step(full, 8).noise * 8 == full.coordinates
    assert amounts_of_a_step(replace(full, stage=0), 8).noise == full.coordinates
    for n in (1, 2, 4, 8):
        assert amounts_of_an_evaluation(work, 128, 64, n).flops * n == amounts_of_an_evaluation(work, 128, 64, 1).flops


def test_a_unit_is_never_divided(work: Workload) -> None:
    """Break: let a cohort's tokens be shared by more workers than it has units."""
    few = replace(work, units=54.0)
    assert amounts_of_a_step(few, 54).flops == amounts_of_a_step(few, 512).flops
    assert amounts_of_a_step(few, 40).flops == 2 * amounts_of_a_step(few, 54).flops


def test_bytes_over_the_link(work: Workload) -> None:
    """A ring's: of a sum everybody sends 2 (n − 1) / n, of collecting (n − 1) / n."""
    assert amounts_of_a_step(work, 1).messages == 0
    trained, n = 4 * 23_040, 4
    stage_0 = amounts_of_a_step(replace(work, stage=0), n)
    assert (stage_0.summed, stage_0.collected) == (pytest.approx(trained * 4 * 3 / 4), 0)
    stage_2 = amounts_of_a_step(work, n)
    assert stage_2.summed + stage_2.collected == pytest.approx(trained * 4 * 3 / 4)
    stage_3 = amounts_of_a_step(replace(work, stage=3), n)
    large = sum(math.prod(s) for s in work.shape.weights.values() if math.prod(s) >= 100_000)
    batches = 512 / n * 64 / 1024
    assert stage_3.collected == pytest.approx((2 * large * batches + trained) * 3 / 4)
    assert stage_3.gathers == 30 * batches


# --- seconds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_ranges_are_ordered_and_parts_add_up(work: Workload, device: str) -> None:
    """Break: leave a part out of the total."""
    for n in COUNTS:
        found = predict_on(job_of(work, trainings=2), DEVICES[device], n)
        assert 0 < found.step.low <= found.step.likely <= found.step.high
        assert 0 < found.total.low <= found.total.likely <= found.total.high
        assert sum(found.parts.values()) == pytest.approx(found.step.likely)
        assert sum(found.spent.values()) == pytest.approx(found.total.likely)
        assert found.spent["training"] == pytest.approx(2 * 12 * found.step.likely)
        assert found.device_hours.likely == pytest.approx(found.total.likely * n / 3600)
        assert all(value >= 0 for value in (*found.parts.values(), *found.spent.values()))


@pytest.mark.parametrize("device", DEVICES)
def test_more_work_takes_longer(work: Workload, device: str) -> None:
    """Break: forget the examples of a user."""
    for n in (1, 8, 64):
        for key, values in {
            "units": (64.0, 512.0, 4096.0, 100_000.0), "tokens": (32.0, 64.0, 256.0), "coordinates": (10**4, 10**7),
        }.items():  # fmt: skip
            jobs = [job_of(replace(work, **{key: value})) for value in values]
            steps = [predict_on(job, DEVICES[device], n).step.likely for job in jobs]
            assert steps == sorted(steps), (key, n)
            # Where launching decides on a GPU, a few tokens more are for nothing.
            assert steps[-1] > steps[0] or (DEVICES[device].gpu and key == "tokens"), (key, n)
        runs = [predict_on(job_of(work, steps=s), DEVICES[device], n).total.likely for s in (1, 12, 1000)]
        assert runs == sorted(set(runs))
        users = [predict_on(job_of(work, users=u), DEVICES[device], n).step.likely for u in (1e4, 1e6, 1e8, 1e9)]
        assert users == sorted(users)


def test_more_workers_compute_a_large_cohort_faster(work: Workload) -> None:
    """Of adapters, in the likely case, up to as many as there are units to share."""
    large = replace(work, units=8192.0)
    for device in ("cpu", "H100"):
        parts = [predict_on(job_of(large), DEVICES[device], n).parts for n in COUNTS]
        computing = [one["compute"] + one["launching"] for one in parts]
        assert computing == sorted(computing, reverse=True)
        assert predict_on(job_of(large), DEVICES[device], 8).step.likely < computing[0]


def test_a_small_cohort_feeds_few_devices(work: Workload) -> None:
    """Break: call devices useful that have no unit."""
    # Units so long that 64 devices would still be used by more than half.
    few = job_of(replace(work, units=54.0, tokens=4096.0))
    predictions = {n: predict_on(few, DEVICES["cpu"], n) for n in COUNTS}
    assert predictions[1].step.likely / predictions[64].step.likely > 32
    assert useful(predictions, 54.0) == 32
    assert predictions[512].step.likely >= predictions[64].step.likely * 0.999


def test_useful_devices_are_used_by_more_than_half(work: Workload) -> None:
    """Break: call all devices useful that have a unit."""
    short = job_of(replace(work, units=512.0, tokens=16.0))
    predictions = {n: predict_on(short, DEVICES["cpu"], n) for n in COUNTS}
    most = useful(predictions, 512.0)
    one = predictions[1].step.likely
    assert 1 < most < 512
    assert one / predictions[most].step.likely >= most / 2
    assert one / predictions[2 * most].step.likely < most


def test_a_gpus_share_of_its_peak_can_be_given(work: Workload) -> None:
    """Break: keep the assumed range."""
    large = job_of(replace(work, units=8192.0, microbatch=32768))
    given = predict_on(large, DEVICES["H100"], 1, Range(0.3, 0.3, 0.3))
    assert given.parts["compute"] == pytest.approx(
        8192 * 64 * FILL[1] / 0.95 * flops_of_a_token(work) / (0.3 * 989e12), rel=1e-6
    )
    assumed = predict_on(large, DEVICES["H100"], 1)
    assert assumed.step.high / assumed.step.low > given.step.high / given.step.low


def test_the_network_is_slower_than_the_node(work: Workload) -> None:
    likely = [costs_on(DEVICES["A100"], work, n, 1e5)[1] for n in (8, 9)]
    assert likely[0].summing == pytest.approx(12 * likely[1].summing)


def test_reading_between_and_beyond_what_was_measured() -> None:
    """Break: extrapolate the rise from 10⁷ to 10⁸, where reads left memory for the disk."""
    assert reading(10) == reading(1e4) == (9.24e-6, 1.54e-6)
    assert reading(1e6) == pytest.approx((9.87e-6, 2.44e-6))
    assert reading(1e9) == reading(1e8) == (12.9e-6, 623e-6)
    reads = [reading(10**k)[1] for k in (4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8)]
    assert reads == sorted(reads)


def test_offloading_and_checkpointing_cost_time(work: Workload) -> None:
    gpu = DEVICES["H100"]
    _, costs, _ = costs_on(gpu, work, 8, 1e5)
    plain = sum(parts_of(amounts_of_a_step(replace(work, stage=3), 8), costs).values())
    away = parts_of(amounts_of_a_step(replace(work, stage=3, offload="parameters"), 8), costs)
    assert sum(away.values()) > plain
    _, spent = run_on(job_of(work, checkpoints=0, evaluations=0), costs, 1.0, 8)
    assert spent["checkpoints"] == spent["evaluation"] == 0


# --- what --on names ----------------------------------------------------------------------------------------


def test_targets() -> None:
    found = parse_target(" 64Xh100 ")
    assert (found.count, found.device.name, found.name) == (64, "H100", "64xH100")
    assert parse_target("2xcpu").device.gpu is False
    assert parse_target(f"{MOST}xL4").count == MOST


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64xH1000", '--on 64xH1000: no such device; did you mean "64xH100"?'),
        ("H100", '--on H100: must be COUNTxDEVICE, as 64xH100; did you mean "1xH100"?'),
        ("0xcpu", "--on 0xcpu: 1 to 512 devices"),
        ("513xcpu", "--on 513xcpu: 1 to 512 devices"),
        ("x", "--on x: must be COUNTxDEVICE, as 64xH100 (there are: " + ", ".join(DEVICES) + ")"),
        ("4xzzz", "--on 4xzzz: no such device (there are: cpu, B200, H200, H100, A100, A100-40GB, L40S, A10, L4)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_target(text)
    assert str(caught.value) == says
