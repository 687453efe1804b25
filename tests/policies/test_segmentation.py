"""The segmentation policies: edges, names and fallbacks, and parameters that make no sense."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import plugins
from harness.plugins import Access, PluginError, UserRecords


def usage(**parameters):
    return plugins.segmentation.build("usage", {"measure": "records", "edges": (3, 12)} | parameters)


def user(records=0, tokens=0, examples=0):
    """Own records with these counts."""
    each = [tokens // records if records else 0] * records
    if records:
        each[0] += tokens - sum(each)
    return UserRecords(("x",) * records, tuple(each), examples)


# --- usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "segment"),
    [(0, "under-3"), (2, "under-3"), (3, "3-11"), (11, "3-11"), (12, "from-12"), (10**6, "from-12")],
)
@pytest.mark.parametrize("measure", ["records", "tokens", "examples"])
def test_a_count_equal_to_an_edge_lies_above_it(count, segment, measure):
    """For each measure. Break: ``bisect_left``, or one measure taken for another."""
    if measure == "records" and count > 10**4:
        count = 10**4
    other = {"records": 1, "tokens": 7, "examples": 5} | {measure: count}
    assert usage(measure=measure).assign(user(**other)) == segment


def test_names_are_made_of_the_edges_unless_given():
    """Break: an inner name that holds its upper edge, or given names ignored."""
    assert usage().segments == ("under-3", "3-11", "from-12")
    assert usage(edges=(1,)).segments == ("under-1", "from-1")
    assert usage(edges=(2, 3, 4)).segments == ("under-2", "2-2", "3-3", "from-4")
    named = usage(names=("few", "some", "many"))
    assert named.segments == ("few", "some", "many")
    assert [named.assign(user(records=n)) for n in (2, 3, 12)] == ["few", "some", "many"]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6, unique=True).map(sorted), st.integers(0, 60))
def test_every_count_has_one_segment_and_more_usage_never_a_lower_one(edges, count):
    """Break: edges taken in the order of a set."""
    rule = usage(edges=tuple(edges))
    place = rule.segments.index(rule.assign(user(records=count)))
    assert place == sum(edge <= count for edge in edges)
    assert rule.segments.index(rule.assign(user(records=count + 1))) >= place


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"edges": ()}, "at least 1 item"),
        ({"edges": (3, 3)}, "must rise"),
        ({"edges": (5, 3)}, "must rise"),
        ({"edges": (0, 3)}, "greater than or equal to 1"),
        ({"names": ("few", "many")}, "2 edges make 3 segments"),
        ({"names": ("few", "few", "many")}, "the same name twice"),
        ({"measure": "words"}, "'records', 'examples', 'tokens', 'sessions' or 'active_days'"),
        ({"edge": 3}, "Extra inputs"),
    ],
)
def test_usage_parameters_that_make_no_sense(parameters, message):
    """Break: any one check taken out."""
    with pytest.raises(ValidationError, match=message):
        usage(**parameters)


def test_usage_is_an_own_records_rule():
    """Its groups are private. Break: usage declared public, which would let the plan count them."""
    assert usage().access is Access.OWN_RECORDS
    assert isinstance(usage(), plugins.OwnRecordsSegmenter)
    assert not isinstance(usage(), plugins.PublicSegmenter)
    assert plugins.segmentation.build("usage", {"edges": (2,)}).parameters.measure == "examples"


# --- attribute ----------------------------------------------------------------------------------------------


def attribute(**parameters):
    return plugins.segmentation.build("attribute", {"column": "plan"} | parameters)


def test_an_unknown_value_goes_to_the_fallback():
    """Break: the value itself returned, a segment that nobody announced."""
    rule = attribute(values=("free", "paid"))
    assert rule.segments == ("free", "paid", "other")
    values = ["free", "paid", "team", None, "", "other", "FREE"]
    assert [rule.assign({"plan": v}) for v in values] == ["free", "paid", *["other"] * 5]
    assert rule.assign({}) == "other"
    assert rule.columns == ("plan",)
    assert rule.access is Access.PUBLIC


def test_a_fallback_may_have_a_name_or_be_one_of_the_values():
    """Break: the fallback announced twice."""
    assert attribute(values=("free",), fallback="rest").segments == ("free", "rest")
    rule = attribute(values=("free", "paid"), fallback="free")
    assert rule.segments == ("free", "paid")
    assert rule.assign({"plan": "gone"}) == "free"


def test_values_left_out_are_those_that_occur():
    """Break: given values replaced by those that occur, or the rule changed in place."""
    rule = attribute()
    assert rule.segments is None
    bound = rule.bind({"plan": ("a", "b"), "region": ("eu",)})
    assert bound.segments == ("a", "b", "other")
    assert rule.segments is None
    given = attribute(values=("free",))
    assert given.bind({"plan": ("a", "b")}) is given
    for domain in ({}, {"plan": ()}):
        with pytest.raises(PluginError, match=r'the column "plan" has no value in the data') as caught:
            rule.bind(domain)
        assert caught.value.key == ("column",)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"values": ()}, "at least 1 item"),
        ({"values": ("a", "a")}, "the same value twice"),
        ({"fallback": ""}, "at least 1 character"),
        ({"vales": ("a",)}, "Extra inputs"),
    ],
)
def test_attribute_parameters_that_make_no_sense(parameters, message):
    """Break: any one check taken out."""
    with pytest.raises(ValidationError, match=message):
        attribute(**parameters)


# --- none ---------------------------------------------------------------------------------------------------


def test_no_segmentation_is_one_segment():
    rule = plugins.segmentation.build("none", {})
    assert (rule.segments, rule.columns, rule.access) == (("everyone",), (), Access.PUBLIC)
    assert rule.assign({"plan": "free"}) == "everyone"
    with pytest.raises(ValidationError, match="Extra inputs"):
        plugins.segmentation.build("none", {"column": "plan"})
