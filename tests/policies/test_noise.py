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
