"""What the spec leaves to noisy answers: how it is chosen, that it is charged before, and that it can't cost more."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import BudgetError
from harness.planning import make_plan
from harness.planning.asking import EVALUATION, EXAMPLES, GROUPS
from harness.planning.choosing import Candidate, best
from harness.planning.completing import settle, weights_of
from harness.privacy.accounting import charges_epsilon, rdp_at
from harness.privacy.mechanism import Charge, Stretch
from policies.segmentation.usage import Usage
from tests.plans import ATTRIBUTE, USAGE, write_spec

RDP = {"accountant": "rdp", "epsilon": 8.0, "delta": 1e-5}
AUTO = {"unit": "auto", "examples_per_user": "auto", "expected": 20}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plans a changed spec, whose texts nobody may touch."""
    monkeypatch.setattr(Usage, "assign", lambda *_: pytest.fail("an own-records rule was run"))
    source = {"type": "tests.plans:Trapped"}
    return lambda **changes: make_plan(
        write_spec(tmp_path, **{"privacy": RDP, **changes, "data": {**changes.get("data", {}), "source": source}})
    )


def candidates():
    users = [Candidate("user", g, 1.0, 1.0 / g**0.1 + (g > 4)) for g in (1, 2, 4, 8)]
    return tuple(users + [Candidate("example", g, 1.0, 0.9 + g / 50) for g in (1, 2, 4, 8)])


@pytest.mark.parametrize(
    ("limit", "unit", "examples"), [(1, "example", 1), (2, "user", 2), (4, "user", 4), (8, "user", 4)]
)
def test_the_median_bounds_what_is_chosen(limit, unit, examples):
    """Of users, the least predicted noise; of examples, as many as the median. Red when the median is ignored."""
    found = best(candidates(), limit)
    assert (found.unit, found.examples_per_user) == (unit, examples)


def test_examples_alone_take_as_many_as_half_of_all_users_have():
    """Red when the smallest prediction decides (always one example), or the median is rounded up."""
    examples = tuple(c for c in candidates() if c.unit == "example")
    assert [best(examples, limit).examples_per_user for limit in (1, 3, 7, 8, 99)] == [1, 2, 4, 8, 8]


def test_a_plan_before_the_answer_and_after_it(plan):
    """The bound says the targets; what is settled lies under them, at the same cost. No text is read by either.

    Red when the bound says the ε of what stands in for the choice.
    """
    bound = plan(sampling=AUTO)
    assert set(bound.pending) == {"sampling.unit", "sampling.examples_per_user"}
    assert [c.what for c in bound.mechanism.choice] == [EXAMPLES]
    assert bound.mechanism.choice_delta == pytest.approx(1e-6)
    assert bound.guarantee.total == 8.0
    for median in (0.2, 3.4, 40.0):
        found = settle(bound, bound.population, median)
        assert found.pending == ()
        assert found.guarantee.total <= bound.guarantee.total
        assert found.guarantee.total >= 7.9
        assert found.mechanism.choice == bound.mechanism.choice
        assert found.choice.terms.examples_per_user <= max(1, round(median))
    assert rdp_at(bound.mechanism, 8.0) == float("inf")


def test_a_settled_plan_that_costs_more_is_refused(plan):
    """By ε, or by any of what is asked. Red when `settle` does not compare it (exposure is the next test's)."""
    bound = plan(sampling=AUTO)
    cheaper = dataclasses.replace(bound, guarantee=dataclasses.replace(bound.guarantee, epsilon=(7.0,)))
    with pytest.raises(BudgetError, match="it would not be the one that was accounted") as caught:
        settle(cheaper, bound.population, 3.0)
    assert caught.value.exit_code == 3
    asked = (Charge("another answer", 99.0),)
    for change in ({"charges": asked}, {"choice": asked}, {"choice_delta": 2e-6}, {"holdout": asked[0]}):
        other = dataclasses.replace(bound.mechanism, **change)
        with pytest.raises(BudgetError, match="it would not be the one that was accounted"):
            settle(dataclasses.replace(bound, mechanism=other), bound.population, 3.0)


@pytest.mark.parametrize("field", ["noise", "rate", "steps", "name", "holdout", "schedule", "unit"])
def test_noisy_sizes_change_common_scales_alone(plan, field):
    """Each group is exposed to what was accounted. Red when `_same_exposure` overlooks that number."""
    bound = plan(segmentation=USAGE, data={"weights": "noisy"}, noise={"type": "uniform"})
    answered = dataclasses.replace(bound.population, weights={"few": 0.9, "many": 0.1}, known=True)
    found = settle(bound, answered, None)
    assert [g.users for g in found.mechanism.groups] == pytest.approx([900.0, 100.0])
    assert found.guarantee.epsilon == pytest.approx(bound.guarantee.epsilon)
    mechanism = bound.mechanism
    first, *others = mechanism.groups
    bent = {
        "noise": lambda: dataclasses.replace(mechanism, noise_std=mechanism.noise_std * 1.001),
        "rate": lambda: {"sampling_rate": first.sampling_rate * 0.999},
        "steps": lambda: {"steps": first.steps - 1},
        "name": lambda: {"name": "else"},
        "holdout": lambda: dataclasses.replace(mechanism, holdout=mechanism.charges[0]),
        "schedule": lambda: dataclasses.replace(mechanism, schedule=(Stretch(5), Stretch(5, noise=0.9))),
        "unit": lambda: dataclasses.replace(mechanism, sampling_unit="example"),
    }[field]()
    if isinstance(bent, dict):
        bent = dataclasses.replace(mechanism, groups=(dataclasses.replace(first, **bent), *others))
    with pytest.raises(BudgetError, match="it would not be the one that was accounted"):
        settle(dataclasses.replace(bound, mechanism=bent), answered, None)


def test_noisy_weights_and_population_are_asked_for_once(plan):
    """One histogram says both. Red when the population is counted exactly, or charged twice."""
    bound = plan(segmentation=ATTRIBUTE, data={"weights": "noisy"})
    assert [c.what for c in bound.mechanism.charges] == [GROUPS]
    assert bound.pending == ("data.weights",)
    document = bound.document()
    assert [g["weight"] for g in document["groups"]] == [None] * len(bound.groups)
    assert document["charges"][0]["what"] == GROUPS


def test_weights_from_answers_below_zero():
    """A group that comes out below one counts as one user. Red when a weight can be negative or zero."""
    assert weights_of({"a": 99.0, "b": -7.0}) == {"a": 0.99, "b": 0.01}


def test_private_holdout_users_get_the_loosest_groups_budget(plan):
    """And hardly less. Red when the number of evaluations is left out of the noise."""
    found = plan(data={"holdout": {"users": 0.1, "visibility": "private"}}, train={"steps": 10, "checkpoint_every": 5})
    charge = found.mechanism.holdout
    assert (charge.what, charge.count) == (EVALUATION, 3)
    spent = charges_epsilon((charge,), 1e-5, "rdp")
    assert 8.0 * (1 - 1e-3) <= spent <= 8.0
    assert found.guarantee.holdout == spent
