"""The noise of an update: its size, once, whatever the workers and the sharding; and nothing that it depends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness
from harness.training.gradients import Trainable
from harness.training.noise import _AT_ONCE, noisy_mean, noisy_part
from tests.tiny import GROUPS, KEY, make_mechanism
from tests.training import checks

STAGES = (0, 1, 2, 3)
WORLDS = (1, 2, 4)
NOISE_STD = 2.0
RATES, USERS = (0.4, 0.3), (170.0, 90.0)
DENOMINATOR = 0.4 * 170 + 0.3 * 90
"""A public constant; the realised cohorts of the made data have about ten users."""


# --- the function -------------------------------------------------------------------------------------------


def layout(*shapes: tuple[int, int]) -> tuple[Trainable, ...]:
    found, offset = [], 0
    for i, shape in enumerate(shapes):
        found.append(Trainable(f"layer.{i}", nn.Linear(shape[1], shape[0]), shape, offset))
        offset += shape[0] * shape[1]
    return tuple(found)


def drawn(step: int = 0, *, total: torch.Tensor | None = None, mechanism: Mechanism | None = None, key: bytes = KEY):
    trainables = layout((50, 101), (101, 50), (1, 7))
    size = sum(t.size for t in trainables)
    total = torch.zeros(size) if total is None else total
    mechanism = mechanism or make_mechanism(steps=9, noise_std=NOISE_STD, rates=RATES, users=USERS)
    return noisy_mean(total, trainables, mechanism, step, Randomness(key))


def test_it_is_the_sum_plus_noise_over_the_public_denominator() -> None:
    total = torch.randn(50 * 101 * 2 + 7, generator=torch.Generator().manual_seed(1))
    found = drawn(4, total=total)
    normals = [Randomness(KEY).normals("noise", 4, f"layer.{i}", 0, n) for i, n in enumerate((5050, 5050, 7))]
    expected = (total.double().numpy() + NOISE_STD * np.concatenate(normals)) / DENOMINATOR
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("start", [0, 77])
def test_a_stretch_of_a_large_parameter_gets_its_own_noise(start: int) -> None:
    """Several pieces of the cache's size, from any coordinate on. Broken by noise that begins anew in every piece."""
    mechanism = make_mechanism(steps=9, noise_std=NOISE_STD, rates=RATES, users=USERS)
    count = 2 * _AT_ONCE + 5
    total = torch.randn(count, generator=torch.Generator().manual_seed(1))
    found = noisy_part(total, "layer", start, mechanism, 4, Randomness(KEY))
    expected = (total.double().numpy() + NOISE_STD * Randomness(KEY).normals("noise", 4, "layer", start, count)) / (
        DENOMINATOR
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_its_standard_deviation_is_s_and_it_is_normal() -> None:
    """10,107 coordinates under a fixed key; with a random key, the test on the standard deviation (±4 %, 5.7 standard
    errors) would fail in 1e-8 of all cases, Kolmogorov–Smirnov's in 1e-4. Broken by noise of s·√2.
    """
    from scipy import stats

    noise = drawn(0).double().numpy() * DENOMINATOR / NOISE_STD
    assert noise.std() == pytest.approx(1, rel=0.04)
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
    assert stats.kstest(noise, "norm").pvalue > 1e-4


def test_steps_parameters_and_keys_draw_independently() -> None:
    """Correlations of 5,050 pairs stay within 5 standard errors (false alarms: 6e-7 each, 15 pairs).

    Broken by a step or a name that does not enter the draw's address.
    """
    parts = [drawn(0)[:5050], drawn(0)[5050:10100], drawn(1)[:5050], drawn(2)[:5050], drawn(0, key=bytes(32))[:5050]]
    parts.append(torch.cat([parts[0][1:], parts[0][:1]]))  # and neighbours within one parameter
    correlations = np.corrcoef(torch.stack(parts).numpy())
    off_diagonal = correlations[~np.eye(len(parts), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(5050)


def test_the_noise_does_not_depend_on_what_it_hides() -> None:
    """Broken by noise in proportion to the sum."""
    size = 50 * 101 * 2 + 7
    quiet, loud = drawn(3), drawn(3, total=torch.full((size,), 3.0))
    np.testing.assert_allclose(
        (loud.double() - quiet.double()).numpy() * DENOMINATOR, np.full(size, 3.0), rtol=0, atol=1e-5
    )


def test_a_parameters_noise_does_not_depend_on_the_others() -> None:
    """Broken by one stream over all parameters: another set of targets would shift it."""
    mechanism = make_mechanism(noise_std=1.0)
    alone, together = layout((3, 5)), layout((3, 5), (4, 4))
    first = noisy_mean(torch.zeros(15), alone, mechanism, 1, Randomness(KEY))
    second = noisy_mean(torch.zeros(31), together, mechanism, 1, Randomness(KEY))
    assert torch.equal(first, second[:15])


def test_the_denominator_is_that_of_the_step() -> None:
    """A group that sits a step out doesn't count in it."""
    groups = (
        GroupMechanism(GROUPS[0], 100.0, 0.1, 1.0, 4, 1),
        GroupMechanism(GROUPS[1], 60.0, 0.5, 1.0, 2, 1),
    )
    mechanism = Mechanism(4, 0.0, groups, "zero_out")
    means = [float(drawn(step, total=torch.ones(10107), mechanism=mechanism)[0]) for step in range(4)]
    assert means == pytest.approx([1 / 40, 1 / 10, 1 / 40, 1 / 10])


def test_without_noise_nothing_is_added() -> None:
    total = torch.linspace(-1, 1, 10107)
    mechanism = make_mechanism(noise_std=0.0, rates=RATES, users=USERS)
    np.testing.assert_allclose(
        drawn(0, total=total, mechanism=mechanism).numpy(), total.numpy() / DENOMINATOR, rtol=1e-6
    )


# --- the update of a real run -------------------------------------------------------------------------------


class Updates:
    """The noise of one update under every number of workers and ZeRO stage, measured once."""

    def __init__(self, base: Path, root: Path, cache: Path, workers: Callable[[int], Any]) -> None:
        self._measure = lambda world: workers(world)(
            checks.noise_of_updates,
            base,
            root / str(world),
            cache,
            STAGES,
            {
                "noise_std": NOISE_STD,
                "mechanism": {"rates": RATES, "users": USERS},
                # The ranks' other random streams drift apart, and their shares have ragged lengths.
                "dropout": 0.3,
                "microbatch_tokens": 70,
            },
        )
        self._found: dict[int, Any] = {}

    def __call__(self, world: int, stage: int) -> list[tuple[checks.Weights, checks.Weights]]:
        """Per rank: the noise of the update, and the update without noise."""
        if world not in self._found:
            self._found[world] = self._measure(world)
        return [of_rank[stage] for of_rank in self._found[world]]


@pytest.fixture(scope="module")
def updates(
    base: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path, workers: Callable[[int], Any]
) -> Updates:
    return Updates(base, tmp_path_factory.mktemp("updates"), cache, workers)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", WORLDS)
def test_the_update_holds_the_noise_exactly_once(updates: Updates, world: int, stage: int) -> None:
    """Adapters with dropout, ragged shares, several micro-batches: the noise is still the one of the key.

    896 coordinates under a fixed key; with a random one the standard deviation (±12 %, 5 standard errors) would fail
    in 6e-7 of all cases. Broken by noise per rank, per micro-batch, or divided by the number of workers or by the
    realised cohort.
    """
    ranks = updates(world, stage)
    noise, update = ranks[0]
    flat = np.concatenate([v.reshape(-1) for v in noise.values()]) * DENOMINATOR
    assert len(flat) == 896
    assert flat.std() == pytest.approx(NOISE_STD, rel=0.12)
    for name, value in noise.items():
        normals = Randomness(KEY).normals("noise", 0, name, 0, value.size).reshape(value.shape)
        np.testing.assert_allclose(-value * DENOMINATOR, -NOISE_STD * normals, rtol=0, atol=2e-5)
    assert max(np.abs(v).max() for v in update.values()) > 1e-4  # there is something to hide
    for other_noise, other_update in ranks[1:]:
        for name in noise:
            np.testing.assert_array_equal(other_noise[name], noise[name])
            np.testing.assert_array_equal(other_update[name], update[name])


def test_workers_and_sharding_change_no_coordinate_of_the_noise(updates: Updates) -> None:
    expected = updates(1, 0)[0][0]
    for world in WORLDS:
        for stage in STAGES:
            found = updates(world, stage)[0][0]
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-7)


def test_dropout_did_make_the_workers_differ(updates: Updates) -> None:
    """Otherwise the tests above would not show that the noise is safe from other random streams."""
    one, two = (np.concatenate([v.reshape(-1) for v in updates(w, 0)[0][1].values()]) for w in (1, 2))
    assert np.abs(one - two).max() > 1e-4


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 0), (2, 3)])
def test_an_empty_cohort_still_takes_a_noisy_step_on_every_rank(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Sampled with probability 1e-9, nobody is ever there. Broken by skipping the step of an empty cohort."""
    mechanism = make_mechanism(steps=2, noise_std=0.5, rates=(1e-9, 1e-9), users=(2e9, 2e9))
    run_dir = new_run(
        mechanism=mechanism, train={"optimizer": {"type": "sgd", "lr": 1.0}}, compute={"deepspeed": {"stage": stage}}
    )
    for ((before, after),) in workers(world)(checks.trained, [run_dir]):
        for name in before:
            randomness = Randomness(KEY)
            noise = sum(randomness.normals("noise", step, name, 0, before[name].size) for step in (0, 1))
            expected = before[name].reshape(-1) - 0.5 * noise / 4.0
            np.testing.assert_allclose(after[name].reshape(-1), expected, rtol=0, atol=1e-5)
