"""ε from events: against published and exact values, never below the truth, on a grid that is fine enough."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from harness.privacy import accounting
from harness.privacy.accounting import epsilon, group_epsilon, pld_epsilon, settled_grid, total_epsilon
from harness.privacy.curves import epsilon_curve
from harness.privacy.mechanism import GroupMechanism, Mechanism

GROUP = GroupMechanism("everyone", 1000.0, 0.02, 1.0, 40, 1)


def poisson(sigma, rate, steps):
    """The event of one group, by way of the mechanism."""
    group = dataclasses.replace(GROUP, sampling_rate=rate, steps=steps)
    return Mechanism(steps, sigma, (group,), "add_or_remove").event(0)


def exact_gaussian(sigma, delta):
    """ε of one Gaussian release, by its exact trade-off (Balle and Wang 2018)."""

    def gap(x):
        tail = math.exp(x + stats.norm.logcdf(-1 / (2 * sigma) - x * sigma))
        return stats.norm.cdf(1 / (2 * sigma) - x * sigma) - tail - delta

    return optimize.brentq(gap, 0, 500, xtol=1e-13)


def exact_single_step(sigma, rate, delta):
    """ε of one Poisson-sampled Gaussian release: the likelihood ratio rises with x, so both directions are closed."""

    def divergence(e):
        x = sigma**2 * math.log((math.expm1(e) + rate) / rate) + 0.5
        base, shifted = stats.norm.sf(x / sigma), stats.norm.sf((x - 1) / sigma)
        remove = (1 - rate) * base + rate * shifted - math.exp(e) * base
        ratio = (math.exp(-e) - 1 + rate) / rate
        if ratio <= 0:
            return remove - delta
        x = sigma**2 * math.log(ratio) + 0.5
        base, shifted = stats.norm.cdf(x / sigma), stats.norm.cdf((x - 1) / sigma)
        return max(remove, base - math.exp(e) * ((1 - rate) * base + rate * shifted)) - delta

    return optimize.brentq(divergence, 1e-9, 20, xtol=1e-12)


# --- against values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "rdp", "pld"),
    [(1.0, 0.01, 1000, 2.10137, 1.82824), (1.1, 256 / 60000, 14062, 2.59656, 2.38169)],
)
def test_known_values_of_poisson_sampled_gaussians(sigma, rate, steps, rdp, pld):
    """Break: one step more in the event, or the rate's accountant left at a coarse grid (1e-2 gives 3.135)."""
    event = poisson(sigma, rate, steps)
    assert epsilon(event, 1e-5, "rdp") == pytest.approx(rdp, abs=1e-5)
    assert epsilon(event, 1e-5, "pld") == pytest.approx(pld, rel=1e-4)


def test_a_coarse_grid_would_be_far_off():
    """What the refinement of the grid is for. Break: `pld_epsilon` ignores its grid."""
    event = poisson(1.1, 256 / 60000, 14062)
    assert pld_epsilon(event, 1e-5, 1e-2) == pytest.approx(3.135, rel=1e-3)
    assert pld_epsilon(event, 1e-5, 1e-4) == pytest.approx(2.382, rel=1e-3)


def test_the_plain_gaussian():
    """Rate 1 and one step. Break: the multiplier squared."""
    assert exact_gaussian(1.0, 1e-5) == pytest.approx(4.377178096, rel=1e-9)
    found = epsilon(poisson(1.0, 1.0, 1), 1e-5)
    assert 4.377178095 <= found <= 4.377178096 * (1 + 1e-4)
    assert epsilon(poisson(1.0, 1.0, 1), 1e-5, "rdp") > 4.377178096


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"), [(0.6, 1, 1e-5), (4.0, 9, 1e-6), (2.0, 16, 1e-3), (30.0, 30, 1e-8)]
)
def test_without_sampling_steps_add_up_to_one_exact_gaussian(sigma, steps, delta):
    """Never below the exact value, and close above it. Break: optimistic rounding (``pessimistic_estimate=False``)."""
    exact = exact_gaussian(sigma / math.sqrt(steps), delta)
    assert exact <= epsilon(poisson(sigma, 1.0, steps), delta) <= exact * (1 + 5e-4)
    assert exact <= epsilon(poisson(sigma, 1.0, steps), delta, "rdp") <= exact * 1.6


@pytest.mark.parametrize(("sigma", "rate", "delta"), [(0.7, 0.1, 1e-5), (1.0, 0.01, 1e-6), (1.0, 0.5, 1e-4)])
def test_one_sampled_step_against_its_exact_trade_off(sigma, rate, delta):
    """Both directions, adding and removing a user. Break: the sampling rate halved."""
    exact = exact_single_step(sigma, rate, delta)
    assert exact * (1 - 1e-6) <= epsilon(poisson(sigma, rate, 1), delta) <= exact * (1 + 5e-4)


# --- the grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.05, 60), (0.6, 0.3, 3), (5.0, 0.2, 100)])
def test_epsilon_is_an_upper_bound_and_settled(sigma, rate, steps):
    """Never below a finer grid's value; halving the grid changes little.

    Break: the first grid's ε returned without a second, or the smaller of two grids less a tolerance.
    """
    event = poisson(sigma, rate, steps)
    found, grid = epsilon(event, 1e-5), settled_grid(event, 1e-5)
    reference = pld_epsilon(event, 1e-5, grid / 8)
    assert reference <= found <= reference * (1 + 2e-4)
    assert pld_epsilon(event, 1e-5, grid / 2) == pytest.approx(pld_epsilon(event, 1e-5, grid), rel=5e-3)
    assert found <= epsilon(event, 1e-5, "rdp")


def test_every_grid_bounds_from_above():
    """Break: `pld_epsilon` rounds optimistically."""
    event = poisson(1.0, 0.1, 20)
    values = [pld_epsilon(event, 1e-5, 2.0**-k) for k in (3, 5, 7, 9, 12)]
    assert all(coarse >= fine for coarse, fine in itertools.pairwise(values))
    assert values[0] > 1.03 * values[-1]


# --- how it moves -------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    sigma=st.floats(0.7, 4.0),
    rate=st.floats(0.02, 0.4),
    steps=st.integers(1, 20),
    accountant=st.sampled_from(["pld", "rdp"]),
)
def test_epsilon_falls_with_noise_and_rises_with_steps_and_rate(sigma, rate, steps, accountant):
    """Break: the number of steps left out of the event."""
    here = epsilon(poisson(sigma, rate, steps), 1e-5, accountant)
    assert epsilon(poisson(1.2 * sigma, rate, steps), 1e-5, accountant) < here
    assert epsilon(poisson(sigma, rate, steps + 5), 1e-5, accountant) > here
    assert epsilon(poisson(sigma, 1.2 * rate, steps), 1e-5, accountant) > here
    assert epsilon(poisson(sigma, rate, steps), 1e-6, accountant) > here


# --- the edges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_must_be_a_probability(delta):
    """Break: the check taken out."""
    with pytest.raises(ValueError, match="Expected 0 < delta"):
        epsilon(poisson(1.0, 0.1, 3), delta)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_no_noise_is_infinite_and_no_step_is_free(accountant):
    """Break: an infinite scale answered with 0."""
    assert epsilon(dp_event.NonPrivateDpEvent(), 1e-5, accountant) == math.inf
    assert epsilon(dp_event.NoOpDpEvent(), 1e-5, accountant) == 0


def test_an_enormous_epsilon_is_still_a_bound():
    """Where no PLD fits into memory, RDP answers. Break: ``LARGEST_PLD`` returned instead."""
    event = poisson(0.02, 1.0, 10)
    found = epsilon(event, 1e-5)
    assert found > accounting.LARGEST_PLD
    assert found == epsilon(event, 1e-5, "rdp")
    assert found >= 10 / (2 * 0.02**2)  # the mean of the privacy loss


def test_where_delta_covers_everything_epsilon_is_zero():
    """A user who is hardly ever sampled, and a large δ. Break: 0 refused as an answer of the PLD."""
    assert epsilon(poisson(5.0, 1e-4, 1), 1e-5) == 0.0


def test_the_stated_epsilon_is_the_largest_of_the_groups():
    """Break: the mean, or the first group's."""
    strict = dataclasses.replace(GROUP, name="strict", clip_norm=0.25)
    rare = dataclasses.replace(GROUP, name="rare", sampling_rate=0.01)
    for groups in [(GROUP, strict, rare), (strict, rare, GROUP)]:
        mechanism = Mechanism(40, 1.0, groups, "add_or_remove")
        each = [group_epsilon(mechanism, i, 1e-5) for i in range(3)]
        assert len(set(each)) == 3
        assert total_epsilon(mechanism, 1e-5) == max(each) == each[groups.index(GROUP)]


# --- the curve ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_curve_rises_to_the_total_and_is_never_below_it(accountant):
    """Break: the curve's points taken from the first group alone, or interpolated between 0 and the total."""
    seldom = dataclasses.replace(GROUP, name="seldom", steps=10, clip_norm=2.0)
    mechanism = Mechanism(40, 1.0, (GROUP, seldom), "add_or_remove")
    curve = epsilon_curve(mechanism, 1e-5, accountant, 7)
    assert [t for t, _ in curve] == [0, 7, 14, 21, 28, 35, 40]
    values = [e for _, e in curve]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == total_epsilon(mechanism, 1e-5, accountant)
    for t, e in curve[1:-1]:
        finer = total_epsilon(mechanism, 1e-5, accountant, steps=t)
        assert finer * (1 - 1e-3) <= e <= finer * 1.01
    each = [group_epsilon(mechanism, i, 1e-5, accountant) for i in (0, 1)]
    assert each[1] > each[0]


@pytest.mark.parametrize(("steps", "every"), [(40, 1), (41, 2), (5, 100), (1, 1)])
def test_a_long_run_has_a_short_curve(steps, every):
    """Break: the thinning taken out, or the last step thinned away."""
    mechanism = Mechanism(steps, 1.0, (dataclasses.replace(GROUP, steps=steps),), "add_or_remove")
    curve = epsilon_curve(mechanism, 1e-5, "rdp", every)
    assert len(curve) <= 21
    assert curve[0] == (0, 0.0)
    assert curve[-1] == (steps, total_epsilon(mechanism, 1e-5, "rdp"))
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))
    assert all(t % every == 0 for t, _ in curve[:-1])
