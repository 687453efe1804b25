"""Composing one step many times: as dp-accounting does it, and more exactly where δ is small; and looking for roots."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf
from scipy import fft

from harness.privacy.accounting import epsilon
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.mixture import TAIL, SampledGaussianLoss, _on_grid, self_composed, tail_bounds
from harness.privacy.roots import falling_root


def _one_step(sigma: float, rate: float, grid: float) -> pld_pmf.PLDPmf:
    return _on_grid(SampledGaussianLoss(sigma, sampling_prob=rate), grid)


def _in_long_doubles(pmf: pld_pmf.PLDPmf, count: int) -> pld_pmf.PLDPmf:
    """The same composition with eleven more bits, on a circle twice as long."""
    dense = pmf.to_dense_pmf()
    low, high, _ = tail_bounds(dense._probs, count, TAIL)
    transformed = fft.rfft(np.asarray(dense._probs, dtype=np.longdouble), 2 * (high - low + 1))
    power, base, left = np.ones_like(transformed), transformed, count
    while left:
        power, base, left = (power * base if left & 1 else power), base * base, left >> 1
    probs = np.roll(fft.irfft(power, 2 * (high - low + 1)), -low)[: high - low + 1].astype(np.float64)
    infinite = TAIL - math.expm1(count * math.log1p(-dense._infinity_mass))
    return pld_pmf.DensePLDPmf(dense._discretization, dense._lower_loss * count + low, probs, infinite, True)


@pytest.mark.parametrize(
    ("sigma", "rate", "count", "grid"), [(0.5, 0.0064, 200, 5e-3), (1.0, 0.01, 1000, 1e-3), (3.0, 0.5, 12, 1e-2)]
)
def test_the_same_places_and_probabilities_as_dp_accountings(sigma, rate, count, grid):
    """Seen red with ``tail`` in place of ``tail / 2`` in the bounds, and with the circle read from place 0."""
    one = _one_step(sigma, rate, grid)
    ours, theirs = self_composed(one, count), one.self_compose(count)
    assert (ours._lower_loss, ours.size) == (theirs._lower_loss, theirs.size)
    assert np.abs(ours._probs - theirs._probs).max() < 1e-15
    assert ours._infinity_mass == theirs._infinity_mass


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no wider floating point here")
@pytest.mark.parametrize(
    ("sigma", "rate", "count", "grid"), [(1.1, 256 / 60000, 14062, 2**-14), (1.0, 0.01, 1000, 2e-4)]
)
def test_rounding_does_not_bring_epsilon_down_where_delta_is_small(sigma, rate, count, grid):
    """Against wider arithmetic. Seen red with the plain transform alone: 0.1 % off at δ = 1e-11."""
    one = _one_step(sigma, rate, grid)
    ours, exact = self_composed(one, count), _in_long_doubles(one, count)
    for delta in (1e-6, 1e-9, 1e-11):
        truth = exact.get_epsilon_for_delta(delta)
        assert ours.get_epsilon_for_delta(delta) == pytest.approx(truth, rel=2e-6)
    assert abs(one.self_compose(count).get_epsilon_for_delta(1e-11) / exact.get_epsilon_for_delta(1e-11) - 1) > 2e-5


def test_a_small_delta_settles_on_a_grid():
    """Rounding kept it from settling before: half a minute, and then a refusal. Seen red likewise."""
    group = GroupMechanism("all", 1.0, 256 / 60000, 1.0, 14062, 1)
    event = Mechanism(14062, 1.1, (group,), "add_or_remove").event(0)
    assert epsilon(event, 1e-12) == pytest.approx(4.17460, rel=2e-4)  # in long doubles, on the grid 2^-14


@pytest.mark.parametrize("factor", [1 + 1e-14, 1 - 1e-14, 1.0])
def test_an_events_noise_is_never_more_than_the_mechanisms(factor):
    """The last bits are cut, never rounded up. Seen red with ``math.ceil`` in `_cut`."""
    for sigma in (0.4852790151571776, 1.0, 3.3, 12.75, 1e-2, 1e5):
        group = GroupMechanism("all", 1.0, 0.1, 1.0, 3, 1)
        mechanism = Mechanism(3, sigma * factor, (group,), "add_or_remove")
        accounted = mechanism.event(0).event.event.noise_multiplier
        assert accounted <= mechanism.noise_multiplier(0) <= accounted * (1 + 2e-12)
        louder = dataclasses.replace(mechanism, noise_std=sigma * factor * (1 + 1e-11))
        assert louder.event(0).event.event.noise_multiplier > accounted


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 1 - x,
        lambda x: max(min(3 - 40 * x, 3.0), -3.0),
        lambda x: 3.0 if x < 0.123 else -3.0,
        lambda x: math.inf if x < 0.5 else math.exp(-x) - 0.5,
        lambda x: 2 - math.exp(3 * x),
    ],
)
@pytest.mark.parametrize("start", [-2.0, 0.1, 4.0])
def test_a_root_is_met_from_its_right_side(function, start):
    """Not above zero there, above it a little before. Seen red with a point above zero returned where it is near."""
    calls = []
    found = falling_root(lambda x: calls.append(x) or function(x), start, -1.5, 1e-6, -5.0, 5.0)
    assert found is not None
    assert function(found[0]) <= 0 < function(found[0] - 2e-2)
    assert len(calls) < 60


def test_no_root_and_a_root_below_the_range():
    """Seen red without the look at `most`: it went on until its last evaluation and returned nothing either way."""
    calls = []
    assert falling_root(lambda x: calls.append(x) or 1.0, 0.0, -1.0, 1e-6, -1.0, 2.0) is None
    assert len(calls) <= 5
    assert falling_root(lambda x: -1.0 - x, 0.0, -1.0, 1e-6, -0.5, 2.0) == (-0.5, -1.0)
