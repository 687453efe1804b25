"""The segmentations `length`, `rule` and `product`: edges, a language that can't be misused, and tiers that add up."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import plugins
from harness.conformance import check_segmenter
from harness.planning import make_plan
from harness.plugins import Access, MixedSegmenter, OwnRecordsSegmenter, PluginError, PublicSegmenter, UserRecords
from harness.spec import SpecErrors, load_spec
from policies.segmentation.expressions import MOST_CHARACTERS, ExpressionError, condition
from tests.data.rules import Learner
from tests.plans import write_spec

SECRET = "My PIN is 4711."


def built(kind, **parameters):
    return plugins.segmentation.build(kind, parameters)


def user(*texts, examples=1):
    """Own records of these texts, each with a token for every four characters."""
    return UserRecords(texts, tuple(len(text) // 4 for text in texts), examples)


def refused(kind, **parameters):
    """What a plugin refuses, and where."""
    with pytest.raises(PluginError) as caught:
        built(kind, **parameters)
    return caught.value


texts = st.lists(st.text(max_size=30), max_size=6)

# --- length -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "lengths", "segment"),
    [
        ("median", [9], "under-10"),
        ("median", [10], "10-19"),
        ("median", [19, 20], "10-19"),
        ("median", [1, 20, 20], "from-20"),
        ("median", [1, 1, 500], "under-10"),
        ("mean", [9, 10], "under-10"),
        ("mean", [1, 1, 28], "10-19"),
        ("mean", [20, 20], "from-20"),
        ("max", [1, 1, 20], "from-20"),
        ("max", [1, 9], "under-10"),
    ],
)
@pytest.mark.parametrize("measure", ["characters", "words"])
def test_a_length_equal_to_an_edge_lies_above_it(statistic, lengths, segment, measure):
    """Red when one statistic is taken for another, or an edge lies below itself."""
    made = [" ".join(["ab"] * n) if measure == "words" else "x" * n for n in lengths]
    assert built("length", edges=[10, 20], statistic=statistic, measure=measure).assign(user(*made)) == segment


@pytest.mark.parametrize("statistic", ["median", "mean", "max"])
def test_nobody_is_too_short(statistic):
    """Red when the median or mean of nothing is asked for: a failure would tell that somebody has no records."""
    rule = built("length", edges=[1, 5], statistic=statistic)
    assert [rule.assign(user(*t)) for t in ((), ("",), ("", ""), ("a",), ("12345",))] == [
        *["under-1"] * 3,
        "1-4",
        "from-5",
    ]


def test_characters_are_code_points_and_words_lie_between_any_spaces():
    """Red when bytes are counted, or only plain spaces divide words."""
    assert built("length", edges=[2, 4]).assign(user("💡é")) == "2-3"
    words = built("length", edges=[2, 3], measure="words")
    assert words.assign(user("eins\u3000zwei")) == "2-2"
    assert words.assign(user(" \n a\tb  c ")) == "from-3"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "Field required"),
        ({"edges": []}, "at least 1 item"),
        ({"edges": [3, 3]}, "must rise"),
        ({"edges": [0]}, "greater than or equal to 1"),
        ({"edges": [3], "names": ["a"]}, "1 edges make 2 segments"),
        ({"edges": [3], "names": ["a", "a"]}, "the same name twice"),
        ({"edges": [3], "measure": "tokens"}, "'characters' or 'words'"),
        ({"edges": [3], "statistic": "min"}, "'median', 'mean' or 'max'"),
    ],
)
def test_length_parameters_that_make_no_sense(parameters, message):
    """Red when any one check is taken out."""
    with pytest.raises(ValidationError, match=message):
        built("length", **parameters)


def test_length_is_private_and_named():
    """Red when it is declared public, or given names are ignored."""
    rule = built("length", edges=[3], names=["brief", "long"])
    assert rule.access is Access.OWN_RECORDS
    assert rule.segments == ("brief", "long")
    assert rule.assign(user("abc")) == "long"


# --- the language of conditions -----------------------------------------------------------------------------

KINDS = {"records": "number", "words": "number", "plan": "text"}


@pytest.mark.parametrize(
    ("text", "names", "holds"),
    [
        ("records >= 20", {"records": 20.0}, True),
        ("records > 20", {"records": 20.0}, False),
        ("records == 20 or words != 1", {"records": 1.0, "words": 1.0}, False),
        ("1 < records <= 2", {"records": 2.0}, True),
        ("1 < records <= 2", {"records": 1.0}, False),
        ("not records < 3 and words < 1", {"records": 3.0, "words": 0.0}, True),
        ("records in (1, 2)", {"records": 2.0}, True),
        ("records not in [1, 2]", {"records": 3.0}, True),
        ("records - 2 * 3 + 1 == -words / 2", {"records": 4.0, "words": 2.0}, True),
        ("(records - 2) * 3 == +3", {"records": 3.0}, True),
        ('plan == "größer 💡"', {"plan": "größer 💡"}, True),
        ('plan in ("team",)', {"plan": "teams"}, False),
        ('plan >= "2024-05"', {"plan": "2024-10"}, True),
        ("plan == '# no comment'", {"plan": "# no comment"}, True),
        ("records > 1\n  and words > 1", {"records": 2.0, "words": 2.0}, True),
        ("words / records > 1", {"records": 0.0, "words": 3.0}, False),
        ("not words / records > 1", {"records": 0.0, "words": 3.0}, False),
        ("records == 0 or words / records > 1", {"records": 0.0, "words": 3.0}, True),
        ("*".join(["1e15"] * 18) + " * records > 1", {"records": 1e15}, True),
        ("*".join(["1e15"] * 10) + " * words - 1e15 * words < 1", {"words": 1e300}, False),
    ],
)
def test_what_a_condition_says(text, names, holds):
    """Red when an operator does another's work, or dividing by zero is an error or negated into holding."""
    assert condition(text, KINDS)(names) is holds


HOSTILE = [
    ("__import__('os').system('id')", "a call is no part of the language"),
    ("().__class__.__bases__", "an attribute is no part of the language"),
    ("records.real > 1", "an attribute is no part of the language"),
    ("9**9**9 > records", "a power is no part of the language"),
    ("records[0] > 1", "an index is no part of the language"),
    ("f'{records}' == plan", "a formatted text is no part of the language"),
    ("(records := 3) > 1", "an assignment is no part of the language"),
    ("(lambda: 1) == records", "a lambda is no part of the language"),
    ("[x for x in (1, 2)] == records", "ListComp is no part of the language"),
    ("records if records > 1 else words", "if … else is no part of the language"),
    ("records // 2 > 1", "FloorDiv is no part of the language"),
    ("records % 2 == 1", "Mod is no part of the language"),
    ("records << 99999 > 1", "LShift is no part of the language"),
    ("records > 1 & words > 1", "& (write and) is no part of the language"),
    ("plan is 'a'", "is (write ==) is no part of the language"),
    ("records > 1, words > 1", "a list other than after in is no part of the language"),
    ("", "a list other than after in is no part of the language"),
    ("records > 1\nimport os", "can't be read (invalid syntax)"),
    ("records > 1; words > 1", "can't be read"),
    ("records >", "can't be read"),
    ("records = 1", "can't be read"),
    ("\0", "can't be read"),
    ("\ud800 > 1", "can't be read"),
    ("(" * 240 + "1" + ")" * 240, "can't be read (too many nested parentheses)"),
    ("-" * 480 + "records > 1", "is nested more than 20 deep"),
    ("not " * 120 + "records > 1", "is nested more than 20 deep"),
    ("records > " + "1" * 10_000, "has 10010 characters; at most 500 are read"),
    ("records > " + "9" * 400, "holds a number above 1e+15"),
    ("records > 1e999", "holds a number above 1e+15"),
    ("records > 1j", "only numbers and texts in quotes are values, found complex"),
    ("plan == b'a'", "only numbers and texts in quotes are values, found bytes"),
    ("plan == None", "only numbers and texts in quotes are values, found NoneType"),
    ("True", "only numbers and texts in quotes are values, found bool"),
    ("recods > 1", 'there is no "recods"; did you mean "records"?'),
    ("zzz > 1", 'there is no "zzz" (there are: records, words, plan; a text is put in quotes)'),
    ("plan == team", 'there is no "team"'),
    ("__builtins__ == plan", 'there is no "__builtins__"'),
    ("records", "is a number, no condition: compare it with something"),
    ("plan", "is a text, no condition: compare it with something"),
    ("1 < 2", "says the same of everybody: it uses no name"),
    ("records > 'a'", "compares a number with a text"),
    ("plan < 3", "compares a text with a number"),
    ("plan + 'a' == 'b'", "+ - * / needs numbers, found a text"),
    ("-plan == 'b'", "a sign needs numbers, found a text"),
    ("not records", "not needs conditions, found a number"),
    ("records > 1 and 3", "and needs conditions, found a number"),
    ("records > 1 or plan", "or needs conditions, found a text"),
    ("(records > 1) + 1 > 1", "+ - * / needs numbers, found a condition"),
    ("(records > 1) == (words > 1)", "compares what is a comparison itself: join them by and"),
    ("~records > 1", "~ (write not) is no part of the language"),
    ("plan == '\\d' and 3", "and needs conditions, found a number"),
    ("records in 3", "after in, there must be a list"),
    ("plan in 'free paid'", "after in, there must be a list"),
    ("records in ()", "after in, there must be a list"),
    ("records in (1, 'a')", "a list holds numbers alone or texts alone"),
    ("records in (1, words)", "a list holds numbers alone or texts alone"),
    ("plan in (1, 2)", "compares a text with a number"),
    ("1 < records in (1, 2)", "in is not chained with other comparisons"),
    ("records / 0 > 1", "divides by zero"),
    ("records / (1 - 1) > 1", "divides by zero"),
    ("records > 1 # and words > 1", "can't be read"),
    ("records > 1) # (", "holds a comment (#)"),
    ("records > 1 # why\n and words > 1", "holds a comment (#)"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_condition_is_refused_in_a_line(text, message):
    """Red when any one node of Python's syntax is let in, or a check of length, depth, type or size is taken out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parser's own would go to the console
        with pytest.raises(ExpressionError) as caught:
            condition(text, KINDS)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(alphabet="records wod()[]{}.,:+-*/<>=!'\"#\\\n0123456789einoatf_@&|~^%", max_size=60))
def test_any_text_is_a_condition_or_refused(text):
    """And a condition never fails on anybody. Red when an error of Python's parser comes through."""
    try:
        holds = condition(text, KINDS)
    except ExpressionError:
        return
    for number in (0.0, 1.0, 1e15):
        assert holds({"records": number, "words": 0.0, "plan": ""}) in (True, False)


def test_large_whole_numbers_do_not_fail_either():
    """Red when they are kept whole: their product is then too large for the number of a user."""
    ten = " * ".join(["10" + "0" * 12] * 9)
    text = f"({ten}) * ({ten}) * ({ten}) * records > 1"
    assert condition(text, KINDS)({"records": 1.0}) is True


expressions = st.recursive(
    st.sampled_from(["records", "words", "0", "1.5", "1e15"]),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map("({0[0]} {0[1]} {0[2]})".format),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(expressions, st.integers(0, 10**12), st.integers(0, 10**12))
def test_no_arithmetic_fails_on_a_user(text, records, words):
    """Whether it failed would tell something of them. Red when division by zero, or an overflow, is not caught."""
    try:
        holds = condition(f"{text} > records - 1", KINDS)
    except ExpressionError:
        return
    assert holds({"records": float(records), "words": float(words)}) in (True, False)


# --- rule ---------------------------------------------------------------------------------------------------

HEAVY = {"name": "heavy", "when": "records >= 3 and characters > 10"}


def rule(*rules, **parameters):
    return built("rule", rules=list(rules), **parameters)


def test_the_first_condition_that_holds_wins():
    """Red when the last one wins, or users without any go elsewhere than `otherwise`."""
    made = rule(HEAVY, {"name": "some", "when": "records >= 3"}, otherwise="light")
    assert made.segments == ("heavy", "some", "light")
    assert made.access is Access.OWN_RECORDS
    found = [made.assign(user(*t)) for t in ((), ("x" * 99,), ("aaaa",) * 3, ("aaa", "aaa", "aaaa"), ("",) * 3)]
    assert found == ["light", "light", "heavy", "some", "some"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("records", 3), ("examples", 7), ("tokens", 1), ("characters", 10), ("words", 4), ("longest", 7)],
)
def test_every_statistic_is_what_its_name_says(name, value):
    """Red when one is taken for another, or bytes for characters."""
    made = rule({"name": "hit", "when": f"{name} == {value}"})
    assert made.assign(user("a b\u00a0c💡é", "", "xyz", examples=7)) == "hit"
    assert rule({"name": "hit", "when": f"{name} == 0"}).assign(user(examples=0)) == "hit"


def test_one_segment_may_have_several_conditions():
    """Red when a segment is announced twice."""
    made = rule(
        {"name": "a", "when": "records > 9"}, {"name": "b", "when": "words > 9"}, {"name": "a", "when": "tokens > 9"},
        otherwise="b",
    )  # fmt: skip
    assert made.segments == ("a", "b")


def test_with_columns_a_rule_is_public_and_sees_them_alone():
    """Red when it is handed records, or a missing value is an error or equals something."""
    made = rule({"name": "paid", "when": 'plan in ("team", "pro") or region == ""'}, columns=["plan", "region"])
    assert made.access is Access.PUBLIC
    assert isinstance(made, PublicSegmenter)
    assert not isinstance(made, OwnRecordsSegmenter)
    assert made.columns == ("plan", "region")
    values = [{"plan": "team", "region": "eu"}, {"plan": "free", "region": "eu"}, {"plan": None, "region": None}, {}]
    assert [made.assign(v) for v in values] == ["paid", "other", "paid", "paid"]
    assert not isinstance(rule(HEAVY), PublicSegmenter)
    error = refused("rule", rules=[HEAVY], columns=["plan"])
    assert error.message.startswith('there is no "records" (there are: plan')


@pytest.mark.parametrize(
    ("parameters", "key", "message"),
    [
        ({"rules": [HEAVY, {"name": "x", "when": "recods > 1"}]}, ("rules", 1, "when"), 'did you mean "records"'),
        ({"rules": [HEAVY], "columns": ["records", "characters", "sign up"]}, ("columns", 2), "can't name the column"),
        ({"rules": [HEAVY], "columns": ["class"]}, ("columns", 0), "can't name the column"),
        ({"rules": [HEAVY], "columns": ["ﬁ"]}, ("columns", 0), "can't name the column"),
        ({"rules": [HEAVY], "columns": ["a", "a"]}, ("columns", 1), '"a" is named twice'),
    ],
)
def test_rules_that_make_no_sense(parameters, key, message):
    """Red when a check is taken out, or tells another place."""
    error = refused("rule", **parameters)
    assert error.key == key
    assert message in error.message


def test_a_rule_says_of_a_user_what_it_says_of_a_copy():
    """It is copied for every user. Red when it holds what can't be copied."""
    made = rule(HEAVY)
    assert copy.deepcopy(made).assign(user("aaaa", "aaaa", "aaaa")) == "heavy"


# --- product ------------------------------------------------------------------------------------------------

PLAN = {"type": "attribute", "column": "plan", "values": ["free", "paid"]}
USAGE = {"type": "usage", "measure": "records", "edges": [2], "names": ["few", "many"]}
LENGTH = {"type": "length", "edges": [5], "names": ["brief", "long"]}
REGION = {"type": "rule", "columns": ["region"], "rules": [{"name": "eu", "when": "region == 'eu'"}]}


@pytest.mark.parametrize(
    ("first", "second", "tier", "columns"),
    [
        (PLAN, REGION, PublicSegmenter, ("plan", "region")),
        (PLAN, PLAN | {"column": "region", "values": None, "fallback": "x"}, PublicSegmenter, ("plan", "region")),
        (USAGE, LENGTH, OwnRecordsSegmenter, None),
        (PLAN, USAGE, MixedSegmenter, ("plan",)),
        (USAGE, PLAN, MixedSegmenter, ("plan",)),
        ({"type": "none"}, USAGE, OwnRecordsSegmenter, None),
        ({"type": "product", "first": PLAN, "second": USAGE}, LENGTH, MixedSegmenter, ("plan",)),
    ],
)
def test_a_product_has_the_higher_tier_of_its_parts(first, second, tier, columns):
    """Red when one that reads records is declared public, which would let the plan count its segments."""
    made = built("product", first=first, second=second)
    assert isinstance(made, tier)
    assert made.access is (Access.PUBLIC if tier is PublicSegmenter else Access.OWN_RECORDS)
    assert isinstance(made, PublicSegmenter) is (tier is PublicSegmenter)
    assert isinstance(made, MixedSegmenter) is (tier is MixedSegmenter)
    assert getattr(made, "columns", None) == columns


def test_its_segments_are_all_combinations():
    """Red when parts change places, or the second runs slower than the first."""
    made = built("product", first=USAGE, second=LENGTH)
    assert made.segments == ("few+brief", "few+long", "many+brief", "many+long")
    assert [made.assign(user(*t)) for t in (("a",), ("abcde",), ("a", "a"), ("abcde",) * 2)] == list(made.segments)
    other = built("product", first=LENGTH, second=USAGE)
    assert other.assign(user("abcde")) == "long+few"


class Seen:
    """What parts were shown, noted by a part that is patched."""

    def __init__(self, monkeypatch, *classes):
        self.shown = []
        for cls in classes:
            whole = cls.assign
            monkeypatch.setattr(cls, "assign", lambda part, seen, whole=whole: self._note(part, seen, whole))

    def _note(self, part, seen, whole):
        self.shown.append(seen)
        return whole(part, seen)


def test_each_part_sees_what_its_tier_may_see_and_no_more(monkeypatch):
    """Red when a public part is handed records or another part's column, or an own-records part a column."""
    made = built("product", first={"type": "product", "first": PLAN, "second": REGION}, second=USAGE)
    assert set(made.columns) == {"plan", "region"}
    seen = Seen(
        monkeypatch, *(plugins.segmentation.get(k) for k in ("attribute", "usage")), type(made.parts[0].parts[1])
    )
    one = replace(user(SECRET), attributes={"plan": "paid", "region": "eu", "salary": "1"})
    assert made.assign(one) == "paid+eu+few"
    plan, region, own = seen.shown
    assert (plan, region) == ({"plan": "paid"}, {"region": "eu"})
    assert own == replace(user(SECRET), attributes={})


def test_a_public_product_is_bound_to_the_values_that_occur():
    """Red when a part stays unbound, or the product is changed in place."""
    made = built(
        "product", first={"type": "attribute", "column": "plan"}, second=REGION, merge={"rest": ["other+other"]}
    )
    assert made.segments is None
    bound = made.bind({"plan": ("a", "b"), "region": ("eu", "us")})
    assert bound.segments == ("a+eu", "a+other", "b+eu", "b+other", "other+eu", "rest")
    assert bound.assign({"plan": "b", "region": "us"}) == "b+other"
    assert bound.assign({}) == "rest"
    assert made.segments is None
    with pytest.raises(PluginError, match="has no value in the data") as caught:
        made.bind({"plan": (), "region": ()})
    assert caught.value.key == ("first", "column")


def test_combinations_are_merged_by_a_public_map():
    """Red when a merged segment is announced twice, or a user of it goes elsewhere."""
    made = built("product", first=USAGE, second=LENGTH, merge={"few": ["few+brief", "few+long"]})
    assert made.segments == ("few", "many+brief", "many+long")
    assert [made.assign(user(*t)) for t in (("a",), ("abcde",), ("a", "a"))] == ["few", "few", "many+brief"]


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"first": {"type": "usagee"}}, ("first", "type"), 'there is no segmentation "usagee"; did you mean "usage"?'),
        ({"second": {"type": "kmeans"}}, ("second", "type"), "learns from noisy answers"),
        ({"first": {"type": "tests.data.rules:Rule"}}, ("first", "type"), "does not come with uudp"),
        ({"first": {"type": "usage"}}, ("first",), 'the parameter "edges" is missing'),
        ({"first": USAGE | {"edgs": 3}}, ("first", "edgs"), 'unknown parameter; did you mean "edges"?'),
        ({"first": USAGE | {"edges": [4, 2]}}, ("first", "edges"), "must rise"),
        ({"first": USAGE | {"edges": ["3"]}}, ("first", "edges", 0), "input should be a valid integer"),
        ({"first": USAGE | {"measure": "words"}}, ("first", "measure"), "'tokens', 'sessions' or 'active_days'"),
        ({"second": {"type": "rule", "rules": [{"name": "a", "when": "x>1"}]}}, ("second", "rules", 0, "when"), '"x"'),
        ({"first": {"type": "attribute", "column": "plan"}}, ("first",), "its segments must be given"),
        ({"merge": {"a": ["few+breif"]}}, ("merge", "a"), 'did you mean "few+brief"?'),
        ({"merge": {"a": ["few+brief"], "b": ["few+brief"]}}, ("merge", "b"), "is merged twice"),
        ({"merge": {"few+long": ["few+brief"]}}, ("merge", "few+long"), "is a combination itself"),
        ({"first": USAGE | {"names": ["a", "a+b"]}, "second": LENGTH | {"names": ["b+c", "c"]}}, (), "are called"),
        ({"first": USAGE | {"edges": list(range(1, 60)), "names": None}, "second": LENGTH | {
            "edges": list(range(1, 60)), "names": None}}, (), "60 × 60 segments are more than 1000"),
    ],
)  # fmt: skip
def test_products_that_make_no_sense(changes, key, message):
    """Red when a check is taken out, or a part's refusal tells a place of the part in that of the product."""
    error = refused("product", **({"first": USAGE, "second": LENGTH} | changes))
    assert message in error.message
    assert error.key == key


def test_a_part_that_learns_is_refused_for_now(monkeypatch):
    """Red when it is taken for a part that decides by records, which it can't."""
    monkeypatch.setattr(Learner, "__module__", "policies.segmentation.learner")  # as if it came with uudp
    error = refused("product", first=USAGE, second={"type": "tests.data.rules:Learner"})
    assert error.message == '"tests.data.rules:Learner" learns from noisy answers: it can\'t be combined yet'
    assert error.key == ("second", "type")


@pytest.mark.parametrize(
    ("first", "second", "weights"),
    [
        (PLAN, {"type": "none"}, {"free+everyone": 0.75, "paid+everyone": 0.25}),
        (PLAN, USAGE, None),
    ],
)
def test_only_a_public_product_is_counted(first, second, weights, tmp_path):
    """Red when the plan counts users by what their records decide, or can't count by public columns."""
    segmentation = {"type": "product", "first": first, "second": second}
    path = write_spec(tmp_path, segmentation=segmentation, data={"weights": "public", "population": "public"})
    if weights is None:
        with pytest.raises(SpecErrors, match="made from users' own records, which is private"):
            load_spec(path)
        return
    plan = make_plan(load_spec(path))
    assert {group.name: group.weight for group in plan.groups} == weights
    assert plan.segmenter.access is Access.PUBLIC


# --- all of them --------------------------------------------------------------------------------------------

ALL = [
    ("length", {"edges": [40, 90], "statistic": "mean", "measure": "words"}),
    ("length", {"edges": [40], "statistic": "median"}),
    ("length", {"edges": [40], "statistic": "max"}),
    ("rule", {"rules": [HEAVY, {"name": "terse", "when": "words / records < 5"}]}),
    ("rule", {"rules": [{"name": "paid", "when": "plan in ('a', 'b')"}], "columns": ["plan"]}),
    ("product", {"first": USAGE, "second": LENGTH}),
    ("product", {"first": PLAN, "second": USAGE}),
    ("product", {"first": {"type": "attribute", "column": "plan"}, "second": REGION}),
    ("product", {"first": {"type": "product", "first": PLAN, "second": REGION}, "second": USAGE}),
]


@pytest.mark.parametrize(("kind", "parameters"), ALL)
def test_it_conforms(kind, parameters):
    """Red when a rule keeps state, reads a file, names an unannounced segment or looks at another column."""
    check_segmenter(plugins.segmentation.get(kind), parameters)


OWN = [(kind, parameters) for kind, parameters in ALL if not isinstance(built(kind, **parameters), PublicSegmenter)]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(texts, st.lists(texts, max_size=4), st.sampled_from(OWN))
def test_other_users_do_not_matter(own, others, which):
    """Red when a rule keeps anything of one user for the next, such as the longest text so far."""
    one = replace(user(*own), attributes={"plan": "paid", "region": "eu"})
    fresh = built(which[0], **which[1]).assign(one)
    kept = built(which[0], **which[1])
    for other in others:
        kept.assign(replace(user(*other), attributes={"plan": "free", "region": None}))
    assert kept.assign(one) == fresh
    assert kept.assign(replace(one, texts=tuple(own), attributes=dict(one.attributes))) == fresh


SPEC_ERRORS = [
    ({"type": "rule", "rules": [{"name": "a", "when": "recods > 1"}]}, "segmentation.rules.0.when", '"when"'),
    ({"type": "rule", "rules": [{"name": "a", "wen": "records > 1"}]}, "segmentation.rules.0.wen", '"wen"'),
    ({"type": "length", "edges": [5, 4]}, "segmentation.edges", "[5,"),
    (
        {"type": "product", "first": USAGE | {"edges": [4, 2]}, "second": LENGTH},
        "segmentation.first.edges",
        '"edges": [4,',
    ),
    ({"type": "product", "first": USAGE, "second": {"type": "lenth"}}, "segmentation.second.type", '"type": "lenth"'),
    (
        {"type": "product", "first": PLAN | {"column": "plam"}, "second": REGION | {"columns": ["region"]}},
        "segmentation.first.column",
        '"plam"',
    ),
]


@pytest.mark.parametrize(("segmentation", "key", "at"), SPEC_ERRORS)
def test_a_spec_is_told_where(segmentation, key, at, tmp_path):
    """With line and column. Red when a key path does not lead to what the spec wrote."""
    path = write_spec(tmp_path, data={"attributes": ["plan", "region"], "weights": {"a": 1.0}})
    text = path.read_text() + yaml.safe_dump({"segmentation": {}}).replace("{}\n", json.dumps(segmentation) + "\n")
    path.write_text(text)
    with pytest.raises(SpecErrors) as caught:
        load_spec(path)
    column = text.splitlines()[-1].index(at) + 1
    place = f"{path}:{len(text.splitlines())}:{column} {key}: "
    assert any(line.startswith(place) for line in str(caught.value).splitlines()), str(caught.value)


def test_conditions_are_bounded():
    """Red when the bound is lifted: Python's parser takes time and memory that a spec decides."""
    assert MOST_CHARACTERS <= 1000
