"""The `sample` lever: one noise for all, and rates whose mean is the spec's."""

from __future__ import annotations

import pytest

from harness.errors import ArgumentError
from harness.privacy.accounting import group_epsilon
from harness.privacy.calibration import noise_multiplier, verify
from harness.privacy.curves import trade_offs
from harness.privacy.exposure import Exposure
from harness.privacy.rates import by_sampling_rate
from harness.privacy.terms import Terms

TARGETS = {"one": 1.0, "two": 2.0, "three": 3.0}
WEIGHTS = {"one": 0.34, "two": 0.43, "three": 0.23}


def sampled(targets=TARGETS, weights=WEIGHTS, **changes):
    options = {
        "users": 50000.0,
        "rate": 1024 / 50000,
        "steps": 1465,
        "delta": 1e-5,
        "clip_norm": 0.4,
        "examples_per_user": 2,
        "relation": "add_or_remove",
        "accountant": "rdp",
    }
    return by_sampling_rate(targets, Terms(weights, **(options | changes)))


def test_three_groups_by_their_sampling_rates():
    """A worked example. Break: rates in proportion to the targets (.0108, .0217, .0325)."""
    mechanism = sampled()
    assert mechanism.noise_std / 0.4 == pytest.approx(1.967, abs=5e-4)
    assert [g.sampling_rate for g in mechanism.groups] == pytest.approx([0.0115, 0.0217, 0.0313], abs=5.1e-5)
    assert {(g.steps, g.examples_per_user) for g in mechanism.groups} == {(1465, 2)}
    assert [g.clip_norm for g in mechanism.groups] == pytest.approx([0.4] * 3, rel=1e-12)
    assert mechanism.denominator(0) == pytest.approx(1024, rel=1e-9)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_every_group_meets_its_target_and_the_mean_rate_is_the_specs(accountant):
    """Break: the last loop of `by_sampling_rate` left out (an ε above its target by rounding)."""
    mechanism = sampled(steps=20, rate=0.1, accountant=accountant)
    values = verify(mechanism, TARGETS, 3.0, 1e-5, accountant)
    assert values == tuple(group_epsilon(mechanism, i, 1e-5, accountant) for i in range(3))
    for value, target in zip(values, TARGETS.values(), strict=True):
        assert target * (1 - 1e-3) <= value <= target
    assert sum(WEIGHTS[g.name] * g.sampling_rate for g in mechanism.groups) == pytest.approx(0.1, rel=1e-9)


def test_equal_targets_give_back_uniform():
    """To 1e-6, full sampling included. Break: each weight times its target in the gap of the mean rate."""
    for rate in (0.05, 1.0):
        mechanism = sampled(dict.fromkeys(TARGETS, 2.0), steps=20, rate=rate)
        sigma = noise_multiplier(2.0, Exposure(rate, 20, 1e-5, "rdp"))
        assert mechanism.noise_std / 0.4 == pytest.approx(sigma, rel=1e-5)
        assert [g.sampling_rate for g in mechanism.groups] == pytest.approx([rate] * 3, rel=1e-6)


def test_a_rate_above_one_is_refused():
    """Break: the rate cut to 1 without a word (a target that silently is not used)."""
    with pytest.raises(
        ArgumentError, match='users of "three" would have to be sampled more than once a step'
    ) as caught:
        sampled({"one": 0.5, "two": 2.0, "three": 8.0}, steps=5, rate=0.9)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_trade_off_agrees_with_epsilon(accountant):
    """δ falls with ε, and meets the guarantee's δ at the group's ε, from above. Break: another group's event."""
    mechanism = sampled(steps=20, rate=0.1, accountant=accountant)
    curves = trade_offs(mechanism, 1e-5, accountant)
    assert len(curves) == 3
    for i, curve in enumerate(curves):
        deltas = [delta for _, delta in curve]
        assert curve[0][0] == 0.0
        assert 0 < deltas[0] <= 1
        assert deltas == sorted(deltas, reverse=True)
        spent = group_epsilon(mechanism, i, 1e-5, accountant)
        assert all(delta >= 1e-5 * (1 - 1e-2) for epsilon, delta in curve if epsilon < spent * 0.99)
        assert all(delta <= 1e-5 * (1 + 1e-1) for epsilon, delta in curve if epsilon > spent * 1.01)
    marks = [epsilon for epsilon, _ in curves[0]]
    assert marks == [round(mark, 2) for mark in marks]  # which people can read
    assert max(marks) >= max(group_epsilon(mechanism, i, 1e-5, accountant) for i in range(3))
    assert 8 <= len(marks) <= 14
    assert trade_offs(sampled(dict.fromkeys(TARGETS, 2.0), steps=1, rate=1.0), 1e-5, accountant) == ()
