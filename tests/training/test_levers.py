"""Sampled examples, schedules, participation and adaptive clips in whole trainings, against a plain reference."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.privacy.mechanism import AdaptiveClip, GroupMechanism, Mechanism, Stretch
from harness.privacy.randomness import Randomness
from harness.training.adapting import LARGEST, SMALLEST, bits_of, next_factor
from harness.training.checkpoints import load_newest
from harness.training.job import Folder, Job
from harness.training.noise import noisy_mean, noisy_share
from tests.tiny import KEY, make_mechanism
from tests.training import checks
from tests.training.reference import Reference, train_plainly

SGD = {"type": "sgd", "lr": 0.5, "momentum": 0.9}
SCHEDULE = (Stretch(2), Stretch(1, noise=3.0, clip=0.5), Stretch(1, noise=0.5, clip=0.1))
ADAPTIVE = AdaptiveClip(quantile=0.4, learning_rate=1.5, bit_noise_std=0.8)
EXAMPLES: dict[str, Any] = {"sampling_unit": "example", "examples_per_user": 3, "users": (9.0, 5.0)}
LEVERS: dict[str, dict[str, Any]] = {
    "schedule": {"schedule": SCHEDULE},
    "participation": {"group_steps": (4, 2)},
    "adaptive": {"adaptive": ADAPTIVE},
    "examples": EXAMPLES,
    "examples with a schedule": {**EXAMPLES, "schedule": SCHEDULE},
    "examples with participation": {**EXAMPLES, "group_steps": (4, 3)},
    "examples with an adaptive clip": {**EXAMPLES, "adaptive": ADAPTIVE},
}
EVERYWHERE = [(world, stage) for world in (1, 2) for stage in (0, 1, 2, 3)]


def mechanism_of(lever: str) -> Mechanism:
    return make_mechanism(steps=4, noise_std=0.05, **LEVERS[lever])


@pytest.fixture(scope="module")
def reference(base: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The plain reference of the run under each lever."""
    from tests.tiny import make_run

    known: dict[str, Reference] = {}

    def get(lever: str) -> Reference:
        if lever not in known:
            run_dir = tmp_path_factory.mktemp("reference") / "run"
            make_run(run_dir, base, cache=cache, mechanism=mechanism_of(lever), train={"optimizer": SGD})
            known[lever] = train_plainly(run_dir)
        return known[lever]

    return get


# --- the same as one plain process --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lever", "world", "stage"),
    [
        *[("schedule", *place) for place in EVERYWHERE],
        *[("examples with a schedule", *place) for place in [*EVERYWHERE, (4, 2)]],
        *[
            (lever, *place)
            for lever in sorted(set(LEVERS) - {"schedule", "examples with a schedule"})
            for place in ((2, 3),)
        ],
    ],
)
def test_the_weights_equal_a_single_process_reference(
    reference: Callable[[str], Reference],
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    lever: str,
    world: int,
    stage: int,
) -> None:
    """Four steps with the key's noise, to 1e-5 of the weights: what is clipped and to what, the noise of every stretch
    exactly once, the denominators and the factors. The noise alone moves weights by more than 1e-3.

    Red when noise or clip norms stay those of the first step, when a group is counted that sits out, when D has N·q in
    place of N·G·q, when every rank adds noise, when two examples of a user are clipped together, or when the loss is
    divided by the tokens of the micro-batch.
    """
    expected = reference(lever)
    norms = [pair for step in expected.norms for pair in step]
    assert any(norm > clip for norm, clip in norms)
    assert any(norm < clip for norm, clip in norms)
    run_dir = new_run(
        mechanism=mechanism_of(lever),
        train={"optimizer": SGD},
        compute={"deepspeed": {"stage": stage}, "microbatch_tokens": 70},
    )
    for ((before, after),) in workers(world)(checks.trained, [run_dir]):
        for name in expected.final:
            np.testing.assert_allclose(before[name], expected.initial[name].numpy(), rtol=0, atol=0)
            np.testing.assert_allclose(after[name], expected.final[name].numpy(), rtol=0, atol=1e-5, err_msg=name)
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    rows = [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]
    if "adaptive" in LEVERS[lever]:
        # Recomputed from the key alone: every bit came out as in float64.
        assert len(set(expected.factors)) == 5
        assert [row["clip/factor"] for row in rows] == pytest.approx(expected.factors, rel=1e-12)
        assert checkpoint.clip_factor == rows[-1]["clip/factor"]
    else:
        assert not any("clip/factor" in row for row in rows)


@pytest.mark.parametrize(
    "lever", ["schedule", "adaptive", "examples with a schedule", "examples with an adaptive clip"]
)
def test_no_unit_adds_more_than_its_clip_norm_of_the_step(
    reference: Callable[[str], Reference], new_run: Callable[..., Path], workers: Callable[[int], Any], lever: str
) -> None:
    """In every stretch, and for every factor, to 1e-5. Red when clip norms are read once, before the first step."""
    mechanism = mechanism_of(lever)
    run_dir = new_run(mechanism=mechanism, train={"optimizer": SGD}, compute={"microbatch_tokens": 1})
    (found,) = workers(1)(checks.contributions, run_dir)
    multiples = [1.0, 1.0, 0.5, 0.1] if mechanism.schedule else reference(lever).factors
    reached = set()
    for step, group, norm, added in found:
        clip_norm = (0.3, 0.8)[group] * multiples[step]
        assert added <= clip_norm * (1 + 1e-5)
        assert added == pytest.approx(min(norm, clip_norm), rel=1e-5)
        reached |= {step} if norm > clip_norm else set()
    assert reached == {0, 1, 2, 3}
    assert len(found) == sum(map(len, reference(lever).norms))


@pytest.mark.parametrize("lever", ["schedule", "examples with an adaptive clip"])
def test_every_step_is_released_once_and_no_more(
    new_run: Callable[..., Path], workers: Callable[[int], Any], lever: str
) -> None:
    """One noisy sum per weight and step, one of bits per step, with the noise that is accounted, however many
    micro-batches there are. Red when noise is added per micro-batch, or a step runs that the accountant never sees.
    """
    mechanism = mechanism_of(lever)
    run_dir = new_run(mechanism=mechanism, train={"optimizer": SGD}, compute={"microbatch_tokens": 1})
    first, second = workers(2)(checks.noisy_sums, run_dir)
    assert first == second
    names = {name for purpose, _, name, _ in first if purpose == "noise"}
    assert len(names) == 8
    assert len(first) == len(set(first)) == 4 * (8 + (mechanism.adaptive is not None))
    stds = {step: std for purpose, step, _, std in first if purpose == "noise"}
    if mechanism.adaptive is None:
        assert stds == pytest.approx({0: 0.05, 1: 0.05, 2: 0.15, 3: 0.025})
    else:
        rows = [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]
        assert stds == {step: 0.05 * rows[step]["clip/factor"] for step in range(4)}
        assert {(step, std) for purpose, step, _, std in first if purpose == "clip"} == {(t, 0.8) for t in range(4)}


@pytest.mark.parametrize("stage", [0, 3])
def test_workers_without_an_example_stay_in_step(
    new_run: Callable[..., Path], workers: Callable[[int], Any], stage: int
) -> None:
    """Between no example and a few in each of six steps, for two workers, one row a micro-batch. Red (ranks wait for
    each other until the time is up) without idle micro-batches, or when each worker draws a cohort of its own.
    """
    mechanism = make_mechanism(steps=6, noise_std=0.05, **{**EXAMPLES, "rates": (0.02, 0.02)})
    run_dir = new_run(
        mechanism=mechanism,
        train={"optimizer": SGD},
        compute={"deepspeed": {"stage": stage}, "microbatch_tokens": 1},
    )
    expected = train_plainly(run_dir)
    assert {0, 1} <= set(map(len, expected.norms))
    for ((_, after),) in workers(2)(checks.trained, [run_dir], timeout=60):
        for name, value in expected.final.items():
            # The denominator of an expected half example makes noise, and so weights, large.
            np.testing.assert_allclose(after[name], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("lever", ["schedule", "examples"])
def test_the_epsilon_beside_a_step_is_that_of_the_curve(
    new_run: Callable[..., Path], workers: Callable[[int], Any], lever: str
) -> None:
    """The executed mechanism's, at that step, and no other number like it: none as if the cohort were larger.

    Red when the row's ε is scaled by anything, when a second one stands beside it, or when it is that of an earlier
    step.
    """
    run_dir = new_run(mechanism=mechanism_of(lever), train={"checkpoint_every": 3})
    curve = Job.load(run_dir).epsilon_by_step
    assert workers(1)(checks.train, run_dir) == [None]
    rows = [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]
    assert [(row["step"], row["epsilon"]) for row in rows] == [curve[0], curve[3], curve[4]]
    assert {key for row in rows for key in row if "eps" in key} == {"epsilon"}


# --- the adaptive clip --------------------------------------------------------------------------------------


def test_bits_count_finite_units_alone() -> None:
    """Red when a unit without a usable gradient counts as above (or below) its clip norm."""
    norms = torch.tensor([0.5, 1.0, 1.5, math.nan, math.inf], dtype=torch.float64)
    limits = torch.ones(5, dtype=torch.float64)
    assert bits_of(norms, limits) == 0.5 + 0.5 - 0.5
    for ill in (3, 4):
        assert bits_of(norms[[0, ill]], limits[:2]) == 0.5
    assert bits_of(norms[:0], limits[:0]) == 0.0


def test_one_unit_moves_the_bits_by_a_half() -> None:
    """Which is the sensitivity that is accounted. Red when the bits are 0 and 1, and the half is taken from D."""
    limits = torch.ones(6, dtype=torch.float64)
    norms = torch.tensor([0.1, 0.2, 2.0, 0.3, 9.0, 0.5], dtype=torch.float64)
    whole = bits_of(norms, limits)
    for left_out in range(6):
        others = [i for i in range(6) if i != left_out]
        assert abs(bits_of(norms[others], limits[others]) - whole) == 0.5


def test_the_noise_on_the_bits_has_its_own_standard_deviation() -> None:
    """4,000 steps under a fixed key: with a random one, the standard deviation (±6 %, 5.4 standard errors) would fail
    in 7e-8 of all cases, Kolmogorov–Smirnov's test in 1e-4, the correlation with a gradient's noise (5 standard errors)
    in 6e-7. Red when the noise is s, when it is divided by the cohort, or when it has the gradient's address.
    """
    from scipy import stats

    adaptive = AdaptiveClip(0.5, 0.2, 7.0)
    mechanism = make_mechanism(steps=4000, noise_std=0.5, adaptive=adaptive)
    denominator = 0.4 * 21 + 0.4 * 11
    randomness = Randomness(KEY)
    shares = np.array([noisy_share(3.0, mechanism, step, randomness) for step in range(4000)])
    drawn = (shares - 0.5) * denominator - 3.0
    assert drawn.std() == pytest.approx(7.0, rel=0.06)
    assert stats.kstest(drawn / 7.0, "norm").pvalue > 1e-4
    gradients = np.array([randomness.normals("noise", step, "bits", 0, 1)[0] for step in range(4000)])
    assert abs(np.corrcoef(drawn, gradients)[0, 1]) < 5 / math.sqrt(4000)


def test_the_factor_goes_where_the_quantile_is_and_stays_in_its_bounds() -> None:
    """Red when the sign is wrong, or without the clamp (a factor of 0 would end the noise)."""
    adaptive = AdaptiveClip(quantile=0.3, learning_rate=0.2, bit_noise_std=1.0)
    assert next_factor(2.0, 0.3, adaptive) == 2.0
    assert next_factor(2.0, 0.8, adaptive) == pytest.approx(2.0 * math.exp(-0.1))
    assert next_factor(2.0, 0.0, adaptive) == pytest.approx(2.0 * math.exp(0.06))
    assert next_factor(1.0, 1e9, adaptive) == SMALLEST == 1e-4
    assert next_factor(1.0, -1e9, adaptive) == LARGEST == 1e4


def test_a_step_of_nobody_can_not_be_released() -> None:
    """Two groups that both sit step 1 out. Red when the denominator of zero is divided by."""
    groups = tuple(GroupMechanism(name, 5.0, 0.5, 1.0, 2, 1) for name in ("a", "b"))
    mechanism = Mechanism(4, 1.0, groups, "zero_out", adaptive=ADAPTIVE)
    with pytest.raises(ValueError, match="no group takes part in step 1"):
        noisy_mean(torch.zeros(0), (), mechanism, 1, Randomness(KEY))
    with pytest.raises(ValueError, match="no group takes part in step 1"):
        noisy_share(0.0, mechanism, 1, Randomness(KEY))


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_an_empty_cohort_moves_the_factor_by_noise_alone(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Nobody is ever there: the share is ½ and noise. Red when an idle micro-batch gives a bit."""
    mechanism = make_mechanism(steps=3, noise_std=0.5, rates=(1e-9, 1e-9), users=(2e9, 2e9), adaptive=ADAPTIVE)
    run_dir = new_run(mechanism=mechanism, compute={"deepspeed": {"stage": stage}})
    workers(world)(checks.train, run_dir)
    expected = [1.0]
    for step in range(3):
        share = 0.5 + 0.8 * float(Randomness(KEY).normals("clip", step, "bits", 0, 1)[0]) / 4.0
        expected.append(expected[-1] * math.exp(-1.5 * (share - 0.4)))
    rows = [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]
    assert [row["clip/factor"] for row in rows] == pytest.approx(expected, rel=1e-12)


def test_the_ordinary_series_has_none_of_it(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Neither clip norms, nor bits, nor a factor. Red when the factor is released for every series."""
    run_dir = new_run(mechanism=mechanism_of("examples with an adaptive clip"), evaluation={"ordinary": True})
    assert workers(1)(checks.train, run_dir) == [None]
    rows = [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]
    assert {"clip/factor" in row for row in rows if row["series"] == "private"} == {True}
    assert {"clip/factor" in row for row in rows if row["series"] == "ordinary"} == {False}
    ordinary = load_newest(Folder(run_dir).checkpoints("ordinary"))
    assert ordinary is not None
    assert ordinary.clip_factor == 1.0


# --- going on after a stop ----------------------------------------------------------------------------------


def left_over(run_dir: Path) -> tuple[Any, ...]:
    """All that a finished run comes to, bit for bit."""
    checkpoint = load_newest(Folder(run_dir).checkpoints("private"))
    assert checkpoint is not None
    weights = {name: value.numpy().tobytes() for name, value in checkpoint.parameters.items()}
    state = {name: value.numpy().tobytes() for name, value in checkpoint.optimizer.items()}
    return weights, state, checkpoint.clip_factor.hex(), checkpoint.step, Folder(run_dir).metrics.read_bytes()


@pytest.mark.parametrize(
    ("lever", "world", "stage", "how"),
    [
        ("adaptive", 1, 0, "crash"),
        ("examples with an adaptive clip", 2, 3, "stop"),
        ("examples with a schedule", 2, 1, "crash"),
        ("examples with participation", 1, 2, "stop"),
    ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    new_run: Callable[..., Path], workers: Callable[[int], Any], lever: str, world: int, stage: int, how: str
) -> None:
    """Killed in step 3, or stopped after it: kept examples, factor, noise and released rows are those of a run that
    nothing interrupted. Red when the factor is not in the checkpoint, or not read from it.
    """
    options: dict[str, Any] = {
        "mechanism": mechanism_of(lever),
        "train": {"optimizer": SGD, "checkpoint_every": 2},
        "compute": {"deepspeed": {"stage": stage}, "microbatch_tokens": 70},
    }
    whole, run_dir = new_run(**options), new_run(**options)
    assert workers(world)(checks.train, whole) == [None] * world
    if how == "crash":
        assert workers(world)(checks.crashed_in_step, run_dir, 3) == [True] * world
    else:
        workers(world)(checks.stopped_after_release_of, run_dir, 2)
    assert not Folder(run_dir).adapter.exists()
    assert workers(world)(checks.train, run_dir) == [None] * world
    assert left_over(run_dir) == left_over(whole)
    if "adaptive" in LEVERS[lever]:
        assert left_over(whole)[2] != (1.0).hex()


def test_the_job_of_a_lever_is_read_back(new_run: Callable[..., Path]) -> None:
    """Levers reach the workers as they were planned. Red when a lever is left out of the file."""
    for lever in LEVERS:
        mechanism = mechanism_of(lever)
        found = Job.load(new_run(mechanism=mechanism, holdout_users=(3.5, 0.0)))
        assert found.mechanism == mechanism
        assert found.holdout_users == (3.5, 0.0)
