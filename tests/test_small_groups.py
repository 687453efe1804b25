"""Small groups become one: by public numbers alone, and everything after the plan knows the merged groups only."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.planning.basis import Population
from harness.planning.small_groups import merge_small
from harness.plugins import Group, Proposal
from harness.running import answers
from harness.spec import SpecErrors
from harness.spec.models import GroupsBlock
from tests.plans import ATTRIBUTE, posts, write_spec

REST = GroupsBlock(smallest=0.1)


@pytest.fixture
def plan(tmp_path):
    """Plans a changed spec."""
    return lambda records=None, overrides=(), **changes: make_plan(write_spec(tmp_path, records, **changes), overrides)


def grouped(weights, smallest=0.1, targets=None, merged="rest"):
    """What becomes of groups a, b, c, … with these weights."""
    groups = tuple(Group(name, name, None, w) for name, w in weights.items())
    population = Population(1000.0, None, "declared", dict(weights), "declared")
    proposal = Proposal(dict(targets) if targets else dict.fromkeys(weights, 8.0))
    return merge_small(groups, proposal, population, GroupsBlock(smallest=smallest, merged=merged))


def names(found):
    return {g.name: [one.name for one in held] for g, held in zip(found.groups, found.holds, strict=True)}


@pytest.mark.parametrize(
    ("weights", "smallest", "expected"),
    [
        # Nothing is below: a weight equal to the minimum is none.
        ([0.5, 0.4, 0.1], 0.1, {"a": "a", "b": "b", "c": "c"}),
        # Two that are enough together.
        ([0.05, 0.8, 0.08, 0.07], 0.1, {"rest": "acd", "b": "b"}),
        # One alone: the next smallest joins, whatever it has.
        ([0.05, 0.6, 0.35], 0.1, {"rest": "ac", "b": "b"}),
        # Two that are not enough: the next smallest joins as well.
        ([0.02, 0.6, 0.03, 0.2, 0.15], 0.1, {"rest": "ace", "b": "b", "d": "d"}),
        # Of two alike, the first.
        ([0.05, 0.475, 0.475], 0.1, {"rest": "ab", "c": "c"}),
        # Nothing but the whole is enough.
        ([0.3, 0.3, 0.4], 0.95, {"rest": "abc"}),
        # One group is nobody's to merge with.
        ([1.0], 0.5, {"a": "a"}),
    ],
)
def test_what_is_merged(weights, smallest, expected):
    """Red when a lone small group stays, the sum is not looked at, or the largest joins in place of the smallest."""
    found = names(grouped(dict(zip("abcde", weights, strict=False)), smallest))
    assert found == {name: list(held) for name, held in expected.items()}


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_whatever_the_weights(counts, smallest):
    """Everybody is in one group, none but a lone one is too small, and order is kept."""
    weights = {f"g{i}": count / sum(counts) for i, count in enumerate(counts)}
    targets = {name: 1.0 + i for i, name in enumerate(weights)}
    found = grouped(weights, smallest, targets)
    held = [one.name for ones in found.holds for one in ones]
    assert sorted(held) == sorted(weights)
    assert math.isclose(sum(found.population.weights.values()), 1.0)
    assert set(found.population.weights) == {g.name for g in found.groups} == set(found.proposal.epsilon)
    if len(found.groups) > 1:
        assert min(found.population.weights.values()) >= smallest
    firsts = [list(weights).index(ones[0].name) for ones in found.holds]
    assert firsts == sorted(firsts)
    for g, ones in zip(found.groups, found.holds, strict=True):
        assert found.proposal.epsilon[g.name] == min(targets[one.name] for one in ones)
        assert len(ones) == 1 or g.name == "rest"


def test_the_strictest_target_of_the_merged_is_theirs():
    """Red when the merged group is given the loosest, the first or the mean: somebody would lose what they were told.

    Weights of noise policies, and no policy at all, stay as they are."""
    found = grouped({"a": 0.05, "b": 0.9, "c": 0.05}, 0.1, {"a": 8.0, "b": 6.0, "c": 2.0})
    assert found.proposal.epsilon == {"rest": 2.0, "b": 6.0}
    assert list(found.proposal.epsilon) == ["rest", "b"]
    groups = (Group("a", "a", None, 0.01), Group("b", "b", None, 0.99))
    bare = merge_small(
        groups, Proposal(None), Population(9.0, None, "declared", {"a": 0.01, "b": 0.99}, "declared"), REST
    )
    assert bare.proposal.epsilon is None
    assert names(bare) == {"rest": ["a", "b"]}


def test_a_name_that_is_taken_is_refused():
    """Red when two groups are called alike."""
    with pytest.raises(ArgumentError, match=r'^groups\.merged: "b" is a segment, tier or group itself'):
        grouped({"a": 0.05, "b": 0.95}, merged="b")


def test_noisy_weights_merge_nothing(plan):
    """What is merged decides levers, and would follow from an answer that is asked afterwards. Red when it passes."""
    with pytest.raises(SpecErrors, match=r"groups\.smallest: needs weights that are known beforehand"):
        plan(data={"weights": "noisy"}, segmentation=ATTRIBUTE, groups={"smallest": 0.1})
    groups = (Group("a", "a"), Group("b", "b"))
    population = Population(1.0, None, "noisy", {"a": 0.5, "b": 0.5}, "noisy")
    with pytest.raises(ArgumentError, match=r"data\.weights is noisy"):
        merge_small(groups, Proposal({"a": 1.0, "b": 2.0}), population, REST)


# --- the plan -----------------------------------------------------------------------------------------------

FIVE = ["free", "team", "school", "press", "partner"]
EPSILON = {"free": 8.0, "team": 6.0, "school": 4.0, "press": 3.0, "partner": 5.0, "other": 2.0}
SMALL = {"type": "attribute", "column": "plan", "values": FIVE}


def planned(u):
    """Of forty users 30 free, 6 team, 2 school, 1 press and 1 partner."""
    return FIVE[(u >= 30) + (u >= 36) + (u >= 38) + (u >= 39)]


@pytest.mark.parametrize("noise", ["scale", "sample"])
def test_it_is_the_mechanism_of_a_spec_with_the_merged_groups_by_hand(plan, noise):
    """To the digest: the same levers from the same public counts. Red when weights are summed with another rounding,
    the merged group stands elsewhere, or its target is not the strictest."""
    changes = {"data": {"population": "public"}, "sampling": {"expected": 5}}

    def five(u):
        return FIVE[(u >= 37) + (u >= 43) + (u >= 46) + (u >= 47)]

    def by_hand(u):
        return five(u) if u < 43 else "few"

    assert 3 / 48 + 1 / 48 + 1 / 48 != 5 / 48  # as fractions these counts would not sum to the same
    small = plan(
        posts(48, five),
        **changes,
        segmentation=SMALL,
        noise={"type": noise, "epsilon": EPSILON},
        groups={"smallest": 0.08, "merged": "few"},
    )
    hand = plan(
        posts(48, by_hand),
        **changes,
        segmentation=SMALL | {"values": ["free", "team", "few"]},
        noise={"type": noise, "epsilon": {"free": 8.0, "team": 6.0, "few": 3.0, "other": 2.0}},
    )
    assert [g.name for g in small.mechanism.groups] == ["free", "team", "few"]
    assert small.mechanism == hand.mechanism
    assert small.mechanism.digest == hand.mechanism.digest
    assert small.guarantee.epsilon == hand.guarantee.epsilon
    assert small.population.weights == {name: w for name, w in hand.population.weights.items() if w}
    assert small.mechanism.relation == "zero_out"
    assert small.guarantee.epsilon[2] <= 3.0 * (1 + 1e-9)


def test_declared_weights_decide_as_well_and_tiers_are_merged_like_segments(plan):
    """By hand: the same weights under the merged names. Red when only segments are merged."""
    tiers = {
        "scores": [{"type": "volume", "measure": "records", "low": 1, "high": 9}],
        "tiers": {"edges": [0.5], "names": ["low", "high"]},
    }
    weights = {
        "free/low": 0.5,
        "free/high": 0.03125,
        "paid/low": 0.25,
        "paid/high": 0.0625,
        "other/low": 0.125,
        "other/high": 0.03125,
    }
    found = plan(
        data={"weights": weights},
        segmentation=ATTRIBUTE,
        sensitivity=tiers,
        noise={"type": "scale", "epsilon": {"low": 8.0, "free/high": 2.0, "paid/high": 5.0, "other/high": 3.0}},
        groups={"smallest": 0.0625},
    )
    assert names(dataclasses.replace(found.basis)) == {
        "free/low": ["free/low"],
        "rest": ["free/high", "other/high"],
        "paid/low": ["paid/low"],
        "paid/high": ["paid/high"],
        "other/low": ["other/low"],
    }
    hand = plan(
        data={"weights": {"l": 0.5, "rest": 0.0625, "m": 0.25, "n": 0.0625, "other": 0.125}},
        segmentation={"type": "attribute", "column": "plan", "values": ["l", "rest", "m", "n"]},
        noise={"type": "scale", "epsilon": {"l": 8.0, "rest": 2.0, "m": 8.0, "n": 5.0, "other": 8.0}},
    )
    assert [(g.clip_norm, g.sampling_rate, g.users) for g in found.mechanism.groups] == [
        (g.clip_norm, g.sampling_rate, g.users) for g in hand.mechanism.groups
    ]
    assert found.mechanism.relation == "add_or_remove"


def test_a_segment_of_nobody_is_not_merged(plan):
    """It has no users to protect. Red when it joins, and a group of one stays alone with nobody."""
    found = plan(
        posts(40, lambda u: "free" if u % 20 else "team"),
        data={"population": "public"},
        sampling={"expected": 5},
        segmentation=SMALL,
        noise={"type": "scale", "epsilon": EPSILON},
        groups={"smallest": 0.2},
    )
    assert names(found.basis) == {"rest": ["free", "team"]}
    assert any("number of users in each group" in words for words in found.guarantee.counts_public)
    assert found.mechanism.relation == "zero_out"


def test_what_was_merged_is_said(plan):
    """In the plan's document and in its notes, which the report shows. Red when a reader can't tell."""
    found = plan(
        posts(40, planned),
        data={"population": "public"},
        sampling={"expected": 5},
        segmentation=SMALL,
        noise={"type": "scale", "epsilon": EPSILON},
        groups={"smallest": 0.06},
    )
    document = found.document()
    json.dumps(document)
    assert {g["name"]: (g["segment"], g["holds"]) for g in document["groups"]} == {
        "free": ("free", []),
        "team": ("team", []),
        "rest": (None, ["school", "press", "partner"]),
    }
    assert [g["target_epsilon"] for g in document["groups"]] == [8.0, 6.0, 3.0]
    assert document["spec"]["groups"] == {"smallest": 0.06, "merged": "rest", "drop": []}
    note = (
        'Merged, since groups below 0.06 of all users are, by their public counts: "rest" holds "school", "press", '
        '"partner", with the strictest ε of theirs.'
    )
    assert note in document["notes"]
    plain = plan(segmentation=ATTRIBUTE, data={"weights": {"free": 0.6, "paid": 0.3, "other": 0.1}}).document()
    assert not any("erged" in note for note in plain["notes"])
    assert plain["spec"]["groups"] is None


# --- users --------------------------------------------------------------------------------------------------


class Members:
    """A folder whose private part is nowhere."""

    private = None


def test_users_of_merged_groups_are_in_the_merged_one(plan, monkeypatch):
    """Segments × tiers of users, as places of the mechanism's groups. Red when the originals are looked up."""
    found = plan(
        posts(40, planned),
        data={"population": "public"},
        sampling={"expected": 5},
        segmentation=SMALL,
        noise={"type": "scale", "epsilon": EPSILON},
        groups={"smallest": 0.06},
    )
    segments = found.segmenter.segments
    monkeypatch.setattr(
        answers,
        "assign_groups",
        lambda *_, **__: np.arange(len(segments), dtype=np.int16),  # one user of each
    )
    places = answers.assigned_groups(found, None, Members(), None)
    assert dict(zip(segments, places.tolist(), strict=True)) == {
        "free": 0,
        "team": 1,
        "school": 2,
        "press": 2,
        "partner": 2,
        "other": -1,
    }
