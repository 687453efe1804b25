"""The noise policies: what they propose, and which keys a spec may use for groups."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from harness import plugins
from harness.plugins import Group, Lever, PluginError, Proposal, resolve_by_group

PLAIN = [Group("free", "free"), Group("paid", "paid")]
TIERED = [Group(f"{s}/{t}", s, t) for s in ("free", "paid") for t in ("low", "high")]


def scale(**epsilon):
    return plugins.noise.build("scale", {"epsilon": epsilon})


def test_uniform_proposes_the_whole_budget_for_everyone():
    """Break: the budget shared out."""
    policy = plugins.noise.build("uniform", {})
    assert policy.private
    assert policy.propose(TIERED, 3.0) == Proposal(dict.fromkeys((g.name for g in TIERED), 3.0), Lever.CLIP_NORM)


def test_none_promises_nothing_and_says_so():
    """Break: ``private`` left true (a run would not ask for consent)."""
    policy = plugins.noise.build("none", {})
    assert policy.private is False
    assert policy.propose(PLAIN, 3.0) == Proposal(None)


def test_scale_proposes_what_the_spec_says():
    """Break: targets in the order of the spec in place of the groups."""
    found = scale(paid=1.0, free=2.0).propose(PLAIN, 2.0)
    assert found == Proposal({"free": 2.0, "paid": 1.0}, Lever.CLIP_NORM)
    assert list(found.epsilon) == ["free", "paid"]


def test_a_target_above_the_budget_is_refused_where_it_stands():
    """Break: the comparison taken out of `scale` (the harness would still refuse it, without the place)."""
    with pytest.raises(PluginError, match=r"^2\.5 is above privacy\.epsilon \(2\)$") as caught:
        scale(free=2.5, paid=1.0).propose(PLAIN, 2.0)
    assert caught.value.key == ("epsilon", "free")


@pytest.mark.parametrize("epsilon", [{}, {"free": 0}, {"free": -1}, {"free": math.nan}, {"free": math.inf}])
def test_targets_that_make_no_sense(epsilon):
    """Break: any one constraint taken out."""
    with pytest.raises(ValidationError):
        scale(**epsilon)
    with pytest.raises(ValidationError):
        plugins.noise.build("scale", {})


@pytest.mark.parametrize("name", ["uniform", "none"])
def test_policies_without_parameters_take_none(name):
    with pytest.raises(ValidationError, match="Extra inputs"):
        plugins.noise.build(name, {"epsilon": 1})


# --- keys of groups -----------------------------------------------------------------------------------------


def test_the_most_specific_key_wins():
    """segment/tier, then segment, then tier. Break: the order of the options turned round."""
    values = {"high": 1.0, "low": 2.0, "paid": 3.0, "paid/high": 4.0}
    assert resolve_by_group(values, TIERED, "epsilon") == {
        "free/low": 2.0,
        "free/high": 1.0,
        "paid/low": 3.0,
        "paid/high": 4.0,
    }


def test_a_key_that_names_nothing_is_refused():
    """With what there is. Break: unknown keys ignored (a target that silently does not hold)."""
    with pytest.raises(PluginError, match=r'^"fre" is no group of this spec \(there are: free, paid\)$') as caught:
        resolve_by_group({"fre": 1.0, "paid": 1.0}, PLAIN, "epsilon")
    assert caught.value.key == ("epsilon", "fre")
    assert caught.value.candidates == ("free", "paid")


def test_a_key_that_names_a_segment_and_a_tier_is_refused():
    """Break: the segment taken."""
    groups = [Group("high/low", "high", "low"), Group("high/high", "high", "high")]
    with pytest.raises(PluginError, match=r'^"high" is both a segment and a tier; write "segment/tier"$') as caught:
        resolve_by_group({"high": 1.0}, groups, "epsilon")
    assert caught.value.key == ("epsilon", "high")
    assert resolve_by_group({"high/low": 1.0, "high/high": 2.0}, groups, "epsilon") == {
        "high/low": 1.0,
        "high/high": 2.0,
    }


@pytest.mark.parametrize(("values", "groups"), [({"free": 1.0}, PLAIN), ({"low": 1.0, "free/high": 2.0}, TIERED)])
def test_a_group_without_a_value_is_refused(values, groups):
    """Break: the budget, or the mean of the others, given to it."""
    with pytest.raises(PluginError, match=r'^nothing is given for the group "paid') as caught:
        resolve_by_group(values, groups, "epsilon")
    assert caught.value.key == ("epsilon",)


# --- two levers, examples, steps ----------------------------------------------------------------------------

TARGETS = {"free": 2.0, "paid": 1.0}


@pytest.mark.parametrize(
    ("name", "lever"),
    [
        ("product", Lever.CLIP_NORM_AND_SAMPLING_RATE),
        ("contribution", Lever.EXAMPLES),
        ("participation", Lever.STEPS),
        ("sample", Lever.SAMPLING_RATE),
    ],
)
def test_each_policy_proposes_the_targets_and_its_own_lever(name, lever):
    """Red when two policies swap their levers, or one forgets its targets."""
    found = plugins.noise.build(name, {"epsilon": {"paid": 1.0, "free": 2.0}}).propose(PLAIN, 2.0)
    assert found.epsilon == TARGETS
    assert list(found.epsilon) == ["free", "paid"]
    assert found.lever is lever
    assert found.schedule == ()


def test_product_hands_its_share_on():
    """Red when `clip_share` is dropped, so that a spec's 0.25 means 0.5."""
    given = {"epsilon": {"free": 2.0, "paid": 1.0}}
    assert plugins.noise.build("product", given).propose(PLAIN, 2.0).clip_share == 0.5
    assert plugins.noise.build("product", given | {"clip_share": 0.25}).propose(PLAIN, 2.0).clip_share == 0.25


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf, "half", None])
def test_a_share_that_is_none(share):
    """Red when a bound of `clip_share` is taken out."""
    with pytest.raises(ValidationError) as caught:
        plugins.noise.build("product", {"epsilon": {"free": 1.0}, "clip_share": share})
    assert [error["loc"] for error in caught.value.errors()] == [("clip_share",)]


@pytest.mark.parametrize("name", ["product", "contribution", "participation", "schedule"])
def test_every_policy_refuses_a_target_above_the_budget_and_one_that_is_missing(name):
    """Where it stands. Red when a policy reads its targets without `targets`."""
    with pytest.raises(PluginError, match=r"^3 is above privacy\.epsilon \(2\)$") as caught:
        plugins.noise.build(name, {"epsilon": {"free": 3, "paid": 1}}).propose(PLAIN, 2.0)
    assert caught.value.key == ("epsilon", "free")
    with pytest.raises(PluginError, match=r'^nothing is given for the group "paid"') as caught:
        plugins.noise.build(name, {"epsilon": {"free": 1}}).propose(PLAIN, 2.0)
    assert caught.value.key == ("epsilon",)


@pytest.mark.parametrize("name", ["product", "contribution", "participation"])
def test_policies_with_targets_need_some(name):
    """Red when `epsilon` gets a default."""
    with pytest.raises(ValidationError) as caught:
        plugins.noise.build(name, {})
    assert [error["loc"] for error in caught.value.errors()] == [("epsilon",)]


# --- risk -----------------------------------------------------------------------------------------------------


def risky(**given):
    return plugins.noise.build("risk_proportional", {"risk": {"free": 0, "paid": 0.5}, **given})


def test_the_target_falls_with_risk_and_strength():
    """ε / (1 + strength · risk). Red when the strength is dropped, or multiplies the ε of groups without risk."""
    assert risky().propose(PLAIN, 3.0) == Proposal({"free": 3.0, "paid": 2.0}, Lever.CLIP_NORM)
    assert risky(strength=4).propose(PLAIN, 3.0).epsilon == {"free": 3.0, "paid": 1.0}
    assert (
        risky(strength=0).propose(PLAIN, 3.0).epsilon == plugins.noise.build("uniform", {}).propose(PLAIN, 3.0).epsilon
    )


def test_risk_reaches_its_targets_by_the_lever_that_was_named():
    """Red when two levers are swapped, or `clip_share` is dropped."""
    assert risky(lever="sampling_rate", clip_share=0.2).propose(PLAIN, 3.0).lever is Lever.SAMPLING_RATE
    both = risky(lever="both", clip_share=0.2).propose(PLAIN, 3.0)
    assert (both.lever, both.clip_share) == (Lever.CLIP_NORM_AND_SAMPLING_RATE, 0.2)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"risk": {}}, "risk"),
        ({"risk": {"free": 1.01, "paid": 0}}, "risk"),
        ({"risk": {"free": -0.01, "paid": 0}}, "risk"),
        ({"risk": {"free": math.nan, "paid": 0}}, "risk"),
        ({"strength": -1}, "strength"),
        ({"strength": math.inf}, "strength"),
        ({"lever": "noise"}, "lever"),
        ({"clip_share": 2}, "clip_share"),
    ],
)
def test_risks_that_make_no_sense(given, place):
    """Red when any one bound is taken out."""
    with pytest.raises(ValidationError) as caught:
        risky(**given)
    assert {error["loc"][0] for error in caught.value.errors()} == {place}


def test_a_risk_for_every_group_and_no_epsilon_below_what_can_be_planned():
    """Red when a missing group gets no risk, or a tiny target is handed on."""
    with pytest.raises(PluginError, match=r'^nothing is given for the group "paid"') as caught:
        risky(risk={"free": 1}).propose(PLAIN, 2.0)
    assert caught.value.key == ("risk",)
    with pytest.raises(
        PluginError, match=r"^paid would have ε = 0\.00399, below 0\.01; take a smaller strength"
    ) as caught:
        risky(strength=1000).propose(PLAIN, 2.0)
    assert caught.value.key == ("strength",)


# --- schedules ----------------------------------------------------------------------------------------------


def schedule(**parameters):
    return plugins.noise.build("schedule", parameters).propose(PLAIN, 2.0)


def ideal(shape, end, x):
    """The shapes, written down a second time."""
    return {
        "linear": 1 - x + end * x,
        "exponential": math.exp(x * math.log(end)),
        "cosine": (1 + end) / 2 + (1 - end) / 2 * math.cos(math.pi * x),
    }[shape]


def test_a_schedule_gives_everyone_the_budget_unless_it_has_targets():
    """By clip norms. Red when targets are dropped."""
    assert schedule().epsilon == {"free": 2.0, "paid": 2.0}
    found = schedule(epsilon={"free": 2.0, "paid": 1.0})
    assert (found.epsilon, found.lever) == (TARGETS, Lever.CLIP_NORM)


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [1.0, 0.875, 0.75, 0.625]),
        ("cosine", [1.0, 0.9267767, 0.75, 0.5732233]),
        ("exponential", [1.0, 0.8408964, 0.7071068, 0.5946036]),
    ],
)
def test_falling_noise_by_hand(shape, values):
    """From 1 to ½ in four parts: each has the noise of its beginning. Red when the end, or the middle, is taken."""
    found = schedule(shape=shape, end=0.5, plateaus=4).schedule
    assert [p.noise for p in found] == pytest.approx(values, abs=1e-7)
    assert [p.share for p in found] == [0.25] * 4
    assert {p.clip for p in found} == {1.0}


def test_growing_noise_and_growing_clip_norms_by_hand():
    """Growing noise counts at a part's end, a growing clip norm at its beginning. Red when `safe` is always max."""
    assert [p.noise for p in schedule(shape="linear", end=2, plateaus=2).schedule] == [1.5, 2.0]
    grown = schedule(shape="linear", over="clip", end=2, plateaus=2).schedule
    assert [(p.clip, p.noise) for p in grown] == [(1.0, 1.0), (1.5, 1.0)]
    shrunk = schedule(shape="linear", over="clip", end=0.5, plateaus=2).schedule
    assert [(p.clip, p.noise) for p in shrunk] == [(0.75, 1.0), (0.5, 1.0)]


def test_a_step_by_hand():
    """Red when `at` is ignored, or is the share of the second part."""
    assert [(p.share, p.noise) for p in schedule(shape="step", end=0.4).schedule] == [(0.5, 1.0), (0.5, 0.4)]
    assert [(p.share, p.noise) for p in schedule(shape="step", end=0.4, at=0.75).schedule] == [(0.75, 1.0), (0.25, 0.4)]
    assert [p.clip for p in schedule(shape="step", over="clip", end=3).schedule] == [1.0, 3.0]


@pytest.mark.parametrize("shape", ["linear", "cosine", "exponential"])
@pytest.mark.parametrize("over", ["noise", "clip"])
@pytest.mark.parametrize("end", [0.05, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("plateaus", [2, 7, 32])
def test_no_step_is_less_protected_than_the_curve(shape, over, end, plateaus):
    """A clip norm over its noise lies nowhere above the ideal curve's. Red when `max` and `min` change places."""
    found = schedule(shape=shape, over=over, end=end, plateaus=plateaus).schedule
    assert len(found) == plateaus
    assert math.fsum(p.share for p in found) == pytest.approx(1)
    for k, plateau in enumerate(found):
        for i in range(11):
            curve = ideal(shape, end, (k + i / 10) / plateaus)
            most = curve if over == "clip" else 1 / curve
            assert plateau.clip / plateau.noise <= most * (1 + 1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": "square"}, {"over": "rate"}, {"end": 0.04}, {"end": 21}, {"end": math.nan}, {"plateaus": 1},
        {"plateaus": 33}, {"plateaus": 2.5}, {"at": 0, "shape": "step"}, {"at": 1, "shape": "step"}, {"epsilon": {}},
    ],
)  # fmt: skip
def test_a_schedule_refuses_what_makes_no_sense(wrong):
    """At the key. Red when any one constraint is taken out."""
    with pytest.raises(ValidationError) as caught:
        schedule(**wrong)
    assert {error["loc"][0] for error in caught.value.errors()} == {next(iter(wrong))}


def test_only_a_step_has_a_place():
    """Red when `at` of another shape is ignored."""
    with pytest.raises(ValidationError, match="at: only shape: step has it"):
        schedule(shape="linear", at=0.3)
