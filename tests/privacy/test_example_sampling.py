"""Example sampling: a user's several kept examples, as a mixture of Gaussians, by both accountants."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import integrate, stats

from harness.privacy import mixture
from harness.privacy.accounting import epsilon, pld_epsilon, rdp_epsilon
from harness.privacy.calibration import noise_multiplier
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import GroupMechanism, Mechanism, binomial
from harness.privacy.renyi import accountant, mixture_rdp, rdp_at
from harness.privacy.selection import selection_event

GROUP = GroupMechanism("everyone", 1000.0, 1e-3, 1.0, 2000, 1)


def examples(most, sigma=1.0, rate=1e-3, steps=2000, unit="example"):
    group = dataclasses.replace(GROUP, sampling_rate=rate, steps=steps, examples_per_user=most)
    return Mechanism(steps, sigma, (group,), "add_or_remove", unit).event(0)


# --- against values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "expected"), [(1, 0.2523), (4, 1.1231), (16, 5.1033)])
def test_known_values_of_example_sampling(most, expected):
    """At a grid of 1e-4. Red when a user's number of drawn examples is taken as 0 or 1 in `_release`."""
    assert pld_epsilon(examples(most), 1e-6, 1e-4) == pytest.approx(expected, abs=6e-5)


def test_renyi_is_looser_for_one_example():
    """Why PLD is the default. Red when `rdp_epsilon` answers by PLD."""
    assert rdp_epsilon(examples(1), 1e-6) == pytest.approx(0.882, abs=5e-4)


def test_a_composition_of_two_mixtures():
    """A published composition of unlike mixtures. Red when the count of an event is dropped in `_maybe_compose`."""
    one = dp_event.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0, 2.0), (0.2, 0.6, 0.2))
    two = dp_event.MixtureOfGaussiansDpEvent(2.0, (0.0, 2.0, 3.0), (0.33, 0.34, 0.33))
    both = dp_event.ComposedDpEvent((dp_event.SelfComposedDpEvent(one, 3), dp_event.SelfComposedDpEvent(two, 2)))
    assert pld_epsilon(both, 1e-6, 1e-4) == pytest.approx(17.193115, abs=2e-3)
    assert pld_epsilon(both, 1e-6, 1e-4) >= 17.193115 * (1 - 1e-6)
    assert epsilon(both, 1e-6) == pytest.approx(17.193115, rel=2e-4)


@pytest.mark.parametrize(("law", "expected"), [("geometric", 4.1033), ("logarithmic", 3.5226), ("poisson", 4.3295)])
def test_selection_among_ten_trials(law, expected):
    """Dearer than one trial (2.1014), cheaper than all ten. Red when the laws' shapes are exchanged."""
    one = examples(1, rate=0.01, steps=1000)
    assert rdp_epsilon(selection_event(one, law, 10.0), 1e-5) == pytest.approx(expected, abs=6e-5)


def test_ten_trials_composed_cost_more_than_selection():
    """What naive composition would say. Red when the composition forgets the count."""
    one = examples(1, rate=0.01, steps=1000)
    assert rdp_epsilon(dp_event.SelfComposedDpEvent(one, 10), 1e-5) == pytest.approx(6.7128, abs=6e-5)


def test_a_shape_between_the_laws():
    """Negative binomial with η = 1 is geometric; nearly 0 is nearly logarithmic. Red when the shape is ignored."""
    one = examples(1, rate=0.01, steps=1000)
    geometric, logarithmic = (
        rdp_epsilon(selection_event(one, law, 10.0), 1e-5) for law in ("geometric", "logarithmic")
    )
    assert rdp_epsilon(selection_event(one, "negative_binomial", 10.0, 1.0), 1e-5) == pytest.approx(geometric, rel=1e-7)
    near = rdp_epsilon(selection_event(one, "negative_binomial", 10.0, 1e-4), 1e-5)
    assert near == pytest.approx(logarithmic, rel=1e-3)


@pytest.mark.parametrize(
    ("target", "unit", "most", "expected"),
    [
        (1.0, "example", 16, 13.46),
        (1.0, "user", 1, 13.45),
        (1.0, "user", 4, 13.89),
        (1.0, "user", 16, 18.00),
        (8.0, "example", 16, 2.239),
        (8.0, "user", 1, 2.212),
        (8.0, "user", 4, 3.360),
        (8.0, "user", 16, 8.651),
    ],
)
def test_users_against_examples(target, unit, most, expected):
    """10,000 users with 16 examples, 1,024 examples a step: noise / (C · units) · 10³, within half a percent.

    Users of G examples in a step: 1,024 / G users. Red when a group's ε ends below its target for want of an accountant
    that fits (σ came out 13 % too large once), or when the rate counts users for examples.
    """
    units = 1024 if unit == "example" else 1024 / most
    rate = units / (160_000 if unit == "example" else 10_000)
    sigma = noise_multiplier(target, Exposure(rate, 1000, 1e-6, unit=unit, examples=most if unit == "example" else 1))
    assert sigma / units * 1e3 == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("target", "most", "rate", "steps"), [(8.0, 16, 0.0032, 500), (2.0, 8, 0.01, 100)])
def test_the_noise_of_several_examples_is_hardly_more_than_enough(target, most, rate, steps):
    """Rényi DP is loose here, and must not decide which accountant answers.

    Red when `rough_epsilon` has integer orders alone: ε then came to 6.15 for a target of 8.
    """
    sigma = noise_multiplier(target, Exposure(rate, steps, 1e-5, unit="example", examples=most))
    assert target * (1 - 1e-4) <= epsilon(examples(most, sigma, rate, steps), 1e-5) <= target


# --- how examples compare with users ------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.01, 50), (0.8, 0.2, 5)])
def test_one_example_is_one_user(sigma, rate, steps):
    """The same event, so the same ε by any accountant. Red when G = 1 gets an event of its own with other numbers."""
    assert examples(1, sigma, rate, steps) == examples(7, sigma, rate, steps, unit="user")
    mixed = dp_event.SelfComposedDpEvent(dp_event.MixtureOfGaussiansDpEvent(sigma, (0.0, 1.0), (1 - rate, rate)), steps)
    assert epsilon(mixed, 1e-5) == pytest.approx(epsilon(examples(1, sigma, rate, steps), 1e-5), rel=2e-4)


@pytest.mark.parametrize(("sigma", "most", "rate", "steps"), [(4.0, 3, 0.3, 4), (6.0, 8, 0.05, 10)])
def test_examples_never_cost_more_than_the_whole_group_of_them(sigma, most, rate, steps):
    """All G at once whenever one of them is drawn: that costs more. Red when the probabilities are reversed."""
    found = epsilon(examples(most, sigma, rate, steps), 1e-5)
    at_least_one = -math.expm1(most * math.log1p(-rate))
    group = dp_event.PoissonSampledDpEvent(at_least_one, dp_event.GaussianDpEvent(sigma / most))
    assert found < epsilon(dp_event.SelfComposedDpEvent(group, steps), 1e-5)
    assert found > epsilon(examples(1, sigma, rate, steps), 1e-5)


def test_all_examples_in_every_step_are_one_gaussian():
    """At a rate of 1 nothing is drawn. Red when the last probability of `binomial` is that of the tail above it."""
    found = epsilon(examples(3, 5.0, 1.0, 2), 1e-5)
    plain = dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(5.0 / 3), 2)
    assert found == pytest.approx(epsilon(plain, 1e-5), rel=3e-4)


@pytest.mark.parametrize(("count", "rate"), [(1, 0.3), (16, 1e-3), (300, 1e-4), (40, 0.9), (5, 1.0), (1000, 0.02)])
def test_cut_off_numbers_of_examples_count_as_more_never_as_less(count, rate):
    """P[at least k] is never below the truth, at any k. Red when the mass of the tail is dropped or put on 0."""
    kept = binomial(count, rate)
    assert len(kept) <= count + 1
    assert sum(kept) == pytest.approx(1.0, rel=1e-12)
    for k in range(1, len(kept)):
        true = stats.binom.sf(k - 1, count, rate)
        assert sum(kept[k:]) >= true * (1 - 1e-11)
    assert stats.binom.sf(len(kept) - 1, count, rate) < 1e-30


# --- the privacy loss distribution --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "most", "rate", "steps"), [(1.0, 2, 0.1, 3), (2.0, 5, 0.02, 10), (0.7, 3, 0.4, 2), (3.0, 16, 0.01, 4)]
)
def test_whole_arrays_give_what_dp_accounting_gives_point_by_point(sigma, most, rate, steps):
    """Red when the search takes ``losses(x) >= loss`` with the sign of the other direction."""
    event = examples(most, sigma, rate, steps)
    grid = 2.0**-6
    theirs = PLDAccountant(value_discretization_interval=grid).compose(event)
    ours = mixture.accountant(grid).compose(event)
    for delta in (1e-3, 1e-5, 1e-8):
        assert ours.get_epsilon(delta) == pytest.approx(theirs.get_epsilon(delta), abs=1e-7)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "grid"),
    [(1.0, 0.01, 200, 1e-3), (0.5, 0.3, 5, 2.0**-6), (5.0, 0.9, 20, 2.0**-8), (3.0, 1 - 1e-9, 4, 2.0**-7)],
)
def test_sampled_gaussians_are_discretised_as_dp_accounting_does(sigma, rate, steps, grid):
    """δ and ε, both directions. Red when either direction's edge, log(1 − q), has the other's sign."""
    event = examples(1, sigma, rate, steps)
    theirs = PLDAccountant(value_discretization_interval=grid).compose(event)
    ours = mixture.accountant(grid).compose(event)
    for delta in (1e-3, 1e-6, 1e-9):
        assert ours.get_epsilon(delta) == pytest.approx(theirs.get_epsilon(delta), abs=2e-7)
    for spent in (0.0, 0.3, 1.0):
        assert ours.get_delta(spent) == pytest.approx(theirs.get_delta(spent), rel=1e-6, abs=1e-14)


# --- Rényi DP -----------------------------------------------------------------------------------------------

ORDERS = (1.1, 1.5, 2.0, 2.7, 3.0, 5.0, 16.0, 33.3)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.01), (0.6, 0.3), (4.0, 0.5)])
def test_the_integral_of_one_example_is_the_poisson_gaussian(sigma, rate):
    """Exactly at whole orders; at others dp-accounting only has a bound. Red when the step is ten times as wide."""
    once = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    theirs = RdpAccountant(orders=ORDERS).compose(once).rdp
    ours = mixture_rdp(sigma, (0.0, 1.0), (1 - rate, rate), ORDERS)
    for order, value, bound in zip(ORDERS, ours, theirs, strict=True):
        assert value <= bound * (1 + 1e-9)
        if order == int(order):
            assert value == pytest.approx(bound, rel=1e-8)


@pytest.mark.parametrize(
    ("sigma", "most", "rate"), [(1.0, 1, 0.01), (1.0, 4, 0.05), (0.9, 2, 0.4), (3.0, 16, 0.1), (2.0, 3, 0.9)]
)
def test_the_integral_of_several_examples(sigma, most, rate):
    """Both directions by adaptive quadrature over the plain densities; the larger counts.

    Red when `_one_order` takes the smaller direction: of these, that of the added user.
    """
    kept = binomial(most, rate)

    def log_ratio(x):
        return np.logaddexp.reduce([math.log(p) + (2 * c * x - c * c) / (2 * sigma**2) for c, p in enumerate(kept)])

    def moment(power):
        def integrand(x):
            return math.exp(-0.5 * (x / sigma) ** 2 + power * log_ratio(x)) / (sigma * math.sqrt(2 * math.pi))

        middle = max(power, 0) * most
        edges = np.linspace(-12 * sigma - most, middle + 12 * sigma + most, 41)
        return sum(integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in itertools.pairwise(edges))

    for order in (1.3, 2.0, 3.5, 6.0):
        both = [math.log(moment(power)) / (order - 1) for power in (order, 1 - order)]
        (found,) = mixture_rdp(sigma, tuple(map(float, range(len(kept)))), kept, (order,))
        assert found == pytest.approx(max(both), rel=1e-7)


def test_renyi_composes_with_everything_else():
    """A session's Gaussian, then mixtures: sums at every order. Red when the mixture replaces what was there."""
    event = examples(4, 2.0, 0.05, 7)
    gaussian = dp_event.GaussianDpEvent(3.0)
    both = accountant(ORDERS).compose(gaussian).compose(event).rdp
    apart = accountant(ORDERS).compose(event).rdp + accountant(ORDERS).compose(gaussian).rdp
    assert list(both) == pytest.approx(list(apart), rel=1e-12)
    assert rdp_at(event, 5.0) == pytest.approx(7 * rdp_at(event.event, 5.0), rel=1e-12)


def test_an_integral_beyond_reach_promises_nothing_at_that_order():
    """Red when such an order is answered with 0."""
    kept = binomial(16, 0.5)
    found = mixture_rdp(0.01, tuple(map(float, range(17))), kept, (2.0, 1e5))
    assert found[1] == math.inf
    assert found[0] > 0


@pytest.mark.parametrize("accountant_name", ["pld", "rdp"])
def test_epsilon_rises_with_the_number_of_examples(accountant_name):
    """Red when G does not reach the mixture's probabilities."""
    values = [epsilon(examples(most, 2.0, 0.02, 20), 1e-5, accountant_name) for most in (1, 2, 3, 6)]
    assert all(a < b for a, b in itertools.pairwise(values))


def test_selection_over_examples_by_quadrature():
    """One example per user: the price is that of sampled users. Red when the mixture inside a selection is skipped."""
    rate, steps = 0.01, 1000
    mixed = dp_event.SelfComposedDpEvent(dp_event.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (1 - rate, rate)), steps)
    assert rdp_epsilon(selection_event(mixed, "geometric", 10.0), 1e-5) == pytest.approx(4.1033, abs=6e-5)
