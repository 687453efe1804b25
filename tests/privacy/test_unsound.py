"""What would be unsound, or pointless, can't be expressed or is refused: one test for each such thing."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.privacy_accountant import NeighboringRelation as NeighborRel
from dp_accounting.rdp import RdpAccountant

from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.privacy import accounting, mixture, renyi
from harness.privacy.mechanism import Charge, GroupMechanism, Mechanism
from harness.privacy.terms import Levers, Terms
from harness.spec import SpecErrors
from harness.training import noise
from tests.plans import ATTRIBUTE, USAGE, write_spec

LIGHT = GroupMechanism("light", 600.0, 0.02, 0.6, 10, 2)
HEAVY = GroupMechanism("heavy", 400.0, 0.05, 0.25, 10, 3)
MECHANISM = Mechanism(10, 0.9, (LIGHT, HEAVY), "add_or_remove")
PUBLIC_OF_A_STEP = {"self", "step", "factor"}


def test_noise_cannot_depend_on_who_is_in_the_batch():
    """A variance that follows the cohort leaks by itself. The noise is a function of the step and a released factor.

    Red when `noise_std_at`, `clip_norms_at` or `denominator` takes a cohort, or a group gets a noise of its own.
    """
    for function in (Mechanism.noise_std_at, Mechanism.clip_norms_at, Mechanism.denominator):
        assert set(inspect.signature(function).parameters) <= PUBLIC_OF_A_STEP
    assert not any("noise" in f.name for f in dataclasses.fields(GroupMechanism))
    assert MECHANISM.noise_std_at(3) == MECHANISM.noise_std


def test_noise_is_never_added_per_user():
    """There is one sum and one noise; what is accounted is that noise over the clip norm, never a shift by user.

    Red when `noisy_sum` takes users, or the event of a group has any other scale than s / C_p.
    """
    assert set(inspect.signature(noise.noisy_sum).parameters) == {
        "values",
        "noise_std",
        "randomness",
        "purpose",
        "step",
        "name",
        "start",
    }
    for i, g in enumerate(MECHANISM.groups):
        # The last bits are dropped, so that no noise is accounted that is not there.
        accounted = MECHANISM.event(i).event.event.noise_multiplier
        assert 0.9 / g.clip_norm * (1 - 1e-11) <= accounted <= 0.9 / g.clip_norm


def test_weights_after_clipping_have_no_place():
    """A unit's sensitivity is C_p and nothing multiplies it: weight enters by the clip norm, which is accounted.

    Red when a group gets a weight of its own, or a doubled clip norm does not halve the multiplier.
    """
    assert {f.name for f in dataclasses.fields(GroupMechanism)} == {
        "name",
        "users",
        "sampling_rate",
        "clip_norm",
        "steps",
        "examples_per_user",
        "canaries",
    }
    doubled = dataclasses.replace(LIGHT, clip_norm=2 * LIGHT.clip_norm)
    heavier = dataclasses.replace(MECHANISM, groups=(doubled, HEAVY))
    assert heavier.noise_multiplier(0) == MECHANISM.noise_multiplier(0) / 2
    assert accounting.group_epsilon(heavier, 0, 1e-5, "rdp") > accounting.group_epsilon(MECHANISM, 0, 1e-5, "rdp")


def test_an_answer_about_private_data_is_charged(tmp_path):
    """A noisy count, or a noisy median, is a charge before it is asked. Red when `questions` leaves either out."""
    counted = make_plan(
        write_spec(tmp_path, segmentation=USAGE, data={"weights": "noisy"}, privacy={"accountant": "rdp"})
    )
    assert [c.what for c in counted.mechanism.charges] == ["users per group"]
    bare = dataclasses.replace(counted.mechanism, charges=())
    assert accounting.group_epsilon(counted.mechanism, 0, 1e-5, "rdp") > accounting.group_epsilon(bare, 0, 1e-5, "rdp")
    asked = make_plan(write_spec(tmp_path, sampling={"unit": "auto", "examples_per_user": "auto"}))
    assert [c.what for c in asked.mechanism.choice] == ["examples per user (median)"]
    assert asked.mechanism.choice_delta > 0


def test_exact_counts_of_own_records_are_refused(tmp_path):
    """Sizes of groups made from users' own records are given or noisy. Red without the spec's check (`_weights`)."""
    with pytest.raises(SpecErrors, match="can't be counted where segments are made from users' own records"):
        make_plan(write_spec(tmp_path, segmentation=USAGE))


def test_a_realised_cohort_cannot_reach_the_denominator():
    """The public constant alone divides: no mean over the drawn users.

    Red when `noisy_mean` or `noisy_share` takes a size, when D_t leaves out rates or kept examples, or moves with t.
    """
    for function in (noise.noisy_mean, noise.noisy_share):
        names = set(inspect.signature(function).parameters)
        assert names <= {"total", "bits", "trainables", "mechanism", "step", "randomness", "factor"}
    assert MECHANISM.denominator(0) == pytest.approx(600 * 0.02 + 400 * 0.05)
    unequal = dataclasses.replace(MECHANISM, sampling_unit="example")
    assert unequal.denominator(0) == pytest.approx(600 * 2 * 0.02 + 400 * 3 * 0.05)
    assert np.unique([MECHANISM.denominator(t) for t in range(10)]).size == 1


def test_a_rate_above_one_is_refused():
    """Red when the rate is cut to 1: the denominator would be wrong, and a user could count twice."""
    with pytest.raises(ValueError, match="sampling_rate"):
        dataclasses.replace(LIGHT, sampling_rate=1.0 + 1e-9)
    terms = Terms({"all": 1.0}, 100.0, 0.5, 10, 1e-5, 0.5)
    with pytest.raises(ValueError, match="sampling_rate"):
        terms.build({"all": Levers(1.0, rate=1.2)})


def test_records_cannot_be_duplicated_to_weigh_more(tmp_path):
    """A spec has no word for weights of users or records. Red when an unknown key passes."""
    for block in ({"weight": 3}, {"repeat": 2}, {"oversample": {"paid": 2}}):
        with pytest.raises(SpecErrors, match=next(iter(block))):
            make_plan(write_spec(tmp_path, sampling={"expected": 20, **block}))


def test_noise_before_a_users_own_clip_has_no_place(tmp_path):
    """It costs utility and protects nobody. Red when a clipping block takes a noise of its own."""
    with pytest.raises(SpecErrors, match="noise"):
        make_plan(write_spec(tmp_path, clipping={"norm": 0.5, "noise": 1.0}))


def test_neither_fixed_batches_nor_correlated_noise_can_be_asked_for(tmp_path):
    """Every event is of Poisson sampling with fresh noise in each step, because nothing else is executed.

    Red when a sampling or noise block takes another scheme.
    """
    for changes, key in (
        ({"sampling": {"expected": 20, "scheme": "shuffle"}}, "scheme"),
        ({"noise": {"type": "uniform", "correlation": 0.5}}, "correlation"),
    ):
        with pytest.raises(SpecErrors, match=key):
            make_plan(write_spec(tmp_path, **changes))
    for unit in ("user", "example"):
        one = dataclasses.replace(MECHANISM, sampling_unit=unit, noise_std=3.0)
        for i in (0, 1):
            step = one.event(i).event
            assert isinstance(step, dp_event.PoissonSampledDpEvent | dp_event.MixtureOfGaussiansDpEvent)


def test_neighbours_that_exchange_a_user_are_refused():
    """dp-accounting's Rényi accountant takes them for users added or removed: half the true distance.

    Red when our accountants are made with another relation, or a mechanism takes one.
    """
    plain = dp_event.GaussianDpEvent(1.0)
    silent = RdpAccountant(neighboring_relation=NeighborRel.REPLACE_ONE).compose(plain).get_epsilon(1e-5)
    assert silent == RdpAccountant().compose(plain).get_epsilon(1e-5)  # what must not happen to us
    for made in (renyi.accountant(), renyi.accountant([2.0]), mixture.accountant(0.1)):
        assert made._neighboring_relation == NeighborRel.ADD_OR_REMOVE_ONE
    with pytest.raises(ValueError, match="Unknown relation"):
        dataclasses.replace(MECHANISM, relation="replace_one")


def test_no_epsilon_of_another_cohort_is_shown(tmp_path):
    """As if the cohort were larger: every ε of a plan is that of its own mechanism. Red when a plan extrapolates.

    Break: the curve at half the rate; a total, a group's ε or one more number of another cohort.
    """
    plan = make_plan(write_spec(tmp_path, segmentation=ATTRIBUTE, privacy={"accountant": "rdp"}))

    def numbers(node, path=()):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from numbers(value, (*path, key))
        elif isinstance(node, list):
            for value in node:
                yield from numbers(value, path)
        elif isinstance(node, float) and "epsilon" in path[-1] and path[0] not in ("spec", "ledger"):
            yield path, node

    mechanism = plan.mechanism
    groups = range(len(mechanism.groups))
    on_the_way = {accounting.group_epsilon(mechanism, i, 1e-5, "rdp", t) for i in groups for t in range(11)}
    in_all = {accounting.group_epsilon(mechanism, i, 1e-5, "rdp") for i in groups} | set(plan.targets.values())
    found = list(numbers(plan.document()))
    assert {path[0] for path, _ in found} == {"epsilon", "groups", "epsilon_by_step"}
    for path, value in found:
        known, rough = (on_the_way, 6e-3) if path[0] == "epsilon_by_step" else (in_all, 1e-9)
        assert any(math.isclose(value, one, rel_tol=rough) for one in known), path


def test_charges_without_noise_do_not_exist():
    """Red when a charge of no noise, or of none at all, passes."""
    for std, count in ((0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (5.0, 0)):
        with pytest.raises(ValueError, match="positive noise_multiplier"):
            Charge("a", std, count)


def test_answers_that_decide_levers_need_a_delta_of_their_own():
    """Red when they are composed with what they decide as if it had been fixed before."""
    with pytest.raises(ValueError, match="δ of their own"):
        dataclasses.replace(MECHANISM, choice=(Charge("a", 9.0),))
    with pytest.raises(ValueError, match="δ of their own"):
        dataclasses.replace(MECHANISM, choice_delta=1e-6)


def test_selection_has_no_privacy_loss_distribution():
    """Only Rényi DP prices it. Red when the PLD accountant takes it as one run."""
    from harness.privacy.selection import selection_event

    event = selection_event(MECHANISM.event(0), "geometric", 10.0)
    with pytest.raises(Exception, match=r"RepeatAndSelect"):
        accounting.pld_epsilon(event, 1e-5, 1e-2)
    with pytest.raises(ArgumentError, match="no law"):
        selection_event(MECHANISM.event(0), "uniform", 10.0)  # type: ignore[arg-type]
