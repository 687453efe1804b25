"""Levers from targets: the least noise, the right clip norms, and no plan above its target."""

from __future__ import annotations

import dataclasses
import math

import pytest

from harness.errors import BudgetError
from harness.privacy.accounting import epsilon, group_epsilon
from harness.privacy.calibration import by_clip_norm, noise_multiplier, verify
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.terms import Terms

TARGETS = {"one": 1.0, "two": 2.0, "three": 3.0}
WEIGHTS = {"one": 0.34, "two": 0.43, "three": 0.23}


def scaled(targets=TARGETS, weights=WEIGHTS, **changes):
    """Three groups, as in the worked example."""
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
    return by_clip_norm(targets, Terms(weights, **(options | changes)))


def sampled(sigma, rate, steps):
    group = GroupMechanism("everyone", 1000.0, rate, 1.0, steps, 1)
    return Mechanism(steps, sigma, (group,), "add_or_remove").event(0)


# --- one noise multiplier -----------------------------------------------------------------------------------


def test_the_smallest_sigma_of_a_plain_gaussian():
    """Never below the exact one, and close above it. Break: the search's final check of ε left out and σ rounded."""
    found = noise_multiplier(1.0, Exposure(1.0, 1, 1e-6))
    assert 4.224678889 * (1 - 1e-9) <= found <= 4.224678889 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("target", "rate", "steps", "delta", "accountant"),
    [
        (1.0, 0.02, 200, 1e-5, "rdp"),
        (1.0, 0.02, 100, 1e-5, "pld"),
        (8.0, 0.3, 5, 1e-5, "pld"),
        (0.5, 0.01, 3, 1e-4, "pld"),
        (50.0, 0.2, 10, 1e-6, "pld"),
    ],
)
def test_the_noise_is_enough_and_hardly_more_than_enough(target, rate, steps, delta, accountant):
    """Break: σ divided by 1.001 at the end (too little), or the coarse search's σ returned (too much)."""
    sigma = noise_multiplier(target, Exposure(rate, steps, delta, accountant))
    assert epsilon(sampled(sigma, rate, steps), delta, accountant) <= target
    assert epsilon(sampled(sigma * (1 - 3e-4), rate, steps), delta, accountant) > target


@pytest.mark.parametrize(
    ("target", "rate", "steps", "delta"), [(0.001, 1e-3, 10, 1e-4), (0.001, 1e-3, 10, 1e-2), (0.05, 1e-3, 5, 1e-3)]
)
def test_a_target_beside_a_noise_at_which_epsilon_is_zero(target, rate, steps, delta):
    """The search passes through ε = 0, which has no logarithm. Break: ``max(…, tiny)`` taken out of `_solve`."""
    sigma = noise_multiplier(target, Exposure(rate, steps, delta, "rdp"))
    assert epsilon(sampled(sigma, rate, steps), delta, "rdp") <= target


def test_a_target_out_of_reach_is_the_budgets_refusal():
    """Break: the bound on σ taken out (it would look forever), or another kind of error."""
    with pytest.raises(BudgetError, match=r"no noise reaches ε = 0\.0001 at δ = 1e-09 in 1000000000 steps") as caught:
        noise_multiplier(1e-4, Exposure(1.0, 10**9, 1e-9, "rdp"))
    assert caught.value.exit_code == 3


# --- clip norms ---------------------------------------------------------------------------------------------


def test_three_groups_by_their_clip_norms():
    """Break: the arithmetic mean of the multipliers in place of the harmonic one (σ_h would be 2.248)."""
    mechanism = scaled()
    assert [mechanism.noise_multiplier(i) for i in range(3)] == pytest.approx([3.299, 1.870, 1.401], abs=5e-4)
    assert mechanism.noise_std / 0.4 == pytest.approx(2.0111, abs=5e-5 + 5e-5)
    assert [g.clip_norm for g in mechanism.groups] == pytest.approx([0.2439, 0.4302, 0.5743], abs=5.1e-5)
    assert [g.name for g in mechanism.groups] == list(TARGETS)


@pytest.mark.parametrize("weights", [(0.34, 0.43, 0.23), (0.98, 0.01, 0.01), (1 / 3, 1 / 3, 1 / 3)])
def test_the_mean_clip_norm_is_the_specs_and_the_ratios_are_the_multipliers(weights):
    """Σ r_p C_p = C and s / C_p = σ_p. Break: ``s = C · min σ``."""
    weights = dict(zip(TARGETS, weights, strict=True))
    for clip_norm in (0.4, 7.0):
        mechanism = scaled(weights=weights, clip_norm=clip_norm)
        mean = sum(weights[g.name] * g.clip_norm for g in mechanism.groups)
        assert mean == pytest.approx(clip_norm, rel=1e-12)
        for g in mechanism.groups:
            sigma = noise_multiplier(TARGETS[g.name], Exposure(1024 / 50000, 1465, 1e-5, "rdp"))
            assert mechanism.noise_std / g.clip_norm == pytest.approx(sigma, rel=1e-12)


def test_levers_come_from_public_constants():
    """Group sizes, rate, steps and contribution are what was asked. Break: the groups' sizes taken as equal."""
    mechanism = scaled(relation="zero_out")
    assert mechanism.relation == "zero_out"
    assert [g.users for g in mechanism.groups] == pytest.approx([17000.0, 21500.0, 11500.0], rel=1e-12)
    assert {(g.sampling_rate, g.steps, g.examples_per_user) for g in mechanism.groups} == {(1024 / 50000, 1465, 2)}
    assert mechanism.denominator(0) == pytest.approx(1024, rel=1e-12)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_equal_targets_give_back_uniform(accountant):
    """To 1e-6, for any weights. Break: each group's clip norm multiplied by 1 + its weight / 1000."""
    steps = 1465 if accountant == "rdp" else 20
    mechanism = scaled(dict.fromkeys(TARGETS, 2.0), steps=steps, accountant=accountant)
    uniform = scaled({"all": 2.0}, {"all": 1.0}, steps=steps, accountant=accountant)
    assert mechanism.noise_std == pytest.approx(uniform.noise_std, rel=1e-6)
    for g in mechanism.groups:
        assert g.clip_norm == pytest.approx(0.4, rel=1e-6)
        assert g.sampling_rate == uniform.groups[0].sampling_rate


# --- accounted again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_every_group_recomputed_meets_its_target(accountant):
    """Break: clip norms in the order of the weights in place of the targets."""
    mechanism = scaled(accountant=accountant) if accountant == "rdp" else scaled(accountant=accountant, steps=20)
    values = verify(mechanism, TARGETS, 3.0, 1e-5, accountant)
    assert values == tuple(group_epsilon(mechanism, i, 1e-5, accountant) for i in range(3))
    for value, target in zip(values, TARGETS.values(), strict=True):
        assert target * (1 - 1e-3) <= value <= target * (1 + 1e-9)


def bent(mechanism, group, **change):
    groups = list(mechanism.groups)
    groups[group] = dataclasses.replace(groups[group], **change)
    return dataclasses.replace(mechanism, groups=tuple(groups))


@pytest.mark.parametrize(
    "bend",
    [
        lambda m: dataclasses.replace(m, noise_std=m.noise_std * 0.999),
        lambda m: bent(m, 2, clip_norm=m.groups[2].clip_norm * 1.001),
        lambda m: bent(m, 1, sampling_rate=m.groups[1].sampling_rate * 1.001),
        lambda m: m.without_privacy(),
        lambda m: bent(dataclasses.replace(m, steps=m.steps + 15), 2, steps=m.steps + 15),
    ],
    ids=["less noise", "a larger clip norm", "a higher rate", "no noise", "more steps"],
)
def test_a_mechanism_over_its_target_is_refused(bend):
    """Each lever bent by a little. Break: `verify` without its comparison, or with a tolerance of a percent."""
    good = scaled()
    verify(good, TARGETS, 3.0, 1e-5, "rdp")
    with pytest.raises(BudgetError, match=r"the plan is refused: group (one|two|three) comes to ε = ") as caught:
        verify(bend(good), TARGETS, 3.0, 1e-5, "rdp")
    assert caught.value.exit_code == 3


def test_a_target_above_the_budget_does_not_raise_the_budget():
    """Break: the limit taken from the targets alone."""
    with pytest.raises(BudgetError, match=r"group three comes to ε = 3.*above its target 2\.5"):
        verify(scaled(), TARGETS, 2.5, 1e-5, "rdp")


def test_an_epsilon_that_is_no_number_is_refused(monkeypatch):
    """Break: ``if value > limit``, which lets a NaN pass."""
    monkeypatch.setattr("harness.privacy.calibration.group_within", lambda *_: math.nan)
    with pytest.raises(BudgetError, match="comes to ε = nan"):
        verify(scaled(), TARGETS, 3.0, 1e-5, "rdp")
