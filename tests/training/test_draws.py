"""Noise as tensors: any stretch can be drawn alone, on a CPU and by a device's own generator; and it is normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from harness.privacy.randomness import Randomness
from harness.training.draws import _CHUNK, BLOCK, device_normals, normals
from harness.training.noise import GRADIENTS, noise_slice
from tests.tiny import KEY

CPU = torch.device("cpu")
WAYS = {"words": (normals, _CHUNK), "device": (device_normals, BLOCK)}


def drawn(way: str, start: int, count: int, *, step: int = 3, name: str = "w", key: bytes = KEY) -> torch.Tensor:
    return WAYS[way][0](Randomness(key), GRADIENTS, step, name, start, count, CPU)


@pytest.mark.parametrize("way", WAYS)
def test_a_stretch_drawn_alone_is_that_of_the_whole_bit_for_bit(way: str) -> None:
    """On the two sides of a block too, and of an odd place. Broken by blocks numbered from the stretch's begin."""
    size = WAYS[way][1]
    whole = drawn(way, 0, size + 300)
    assert whole.dtype == torch.float64
    for start, count in ((0, 1), (1, 5), (17, 1000), (size - 3, 7), (size, 300), (5, size), (9, 0)):
        assert torch.equal(drawn(way, start, count), whole[start : start + count])


def test_threads_change_nothing() -> None:
    """Red if a coordinate's place in a vector depended on how the work is split."""
    whole, threads = drawn("words", 3, 3 * _CHUNK), torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(drawn("words", 3, 3 * _CHUNK), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_draws_are_those_of_the_cryptographic_generator() -> None:
    expected = Randomness(KEY).normals(GRADIENTS, 3, "w", 5, 2 * _CHUNK)
    np.testing.assert_allclose(drawn("words", 5, 2 * _CHUNK).numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_the_draws_are_standard_normal_to_the_tails(way: str) -> None:
    """3 · 2²⁰ draws under a fixed key. With a random one, Kolmogorov–Smirnov's would fail in 1e-4 of all cases, each of
    the four moments at 5 standard errors in 6e-7, and the counts beyond 3 and 4.5 standard deviations in 1e-6.
    Broken by a radius of √(-ln u).
    """
    found = drawn(way, 0, 3 * BLOCK).numpy()
    n = len(found)
    assert stats.kstest(found, "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((found**power).mean() - mean) < 5 * math.sqrt(variance / n)
    for bound in (3.0, 4.5):
        beyond = int((np.abs(found) > bound).sum())
        assert stats.binomtest(beyond, n, 2 * stats.norm.sf(bound)).pvalue > 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_steps_names_keys_and_blocks_draw_independently(way: str) -> None:
    """Correlations of 200,000 pairs within 5 standard errors (15 pairs, 6e-7 each). Broken by a step left out of the
    seeds of blocks.
    """
    n = 200_000
    parts = [
        drawn(way, 0, n),
        drawn(way, BLOCK, n),
        drawn(way, 2 * BLOCK, n),
        drawn(way, 0, n, step=4),
        drawn(way, 0, n, name="v"),
        drawn(way, 0, n, key=bytes(32)),
    ]
    correlations = np.corrcoef(torch.stack(parts).numpy())
    assert np.abs(correlations[~np.eye(len(parts), dtype=bool)]).max() < 5 / math.sqrt(n)


def test_a_slice_is_the_noise_of_gradients() -> None:
    assert torch.equal(noise_slice(Randomness(KEY), 3, "w", 7, 50, CPU), drawn("words", 7, 50))
