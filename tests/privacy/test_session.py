"""The private session: what a query costs covers what one user can move, and answers are what they say."""

from __future__ import annotations

import dataclasses
import json
import math
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MachineError
from harness.privacy import contributions, session
from harness.privacy.randomness import Randomness
from harness.privacy.session import AnswerFolder, DeclaredSession
from harness.queries import Answer, Described, Query, bucket_of
from harness.registry import PluginError

KEY = bytes(range(32))
DOMAIN = ("a", "b", "c", "d")
QUERIES = (
    Query("count", "count", 2.0),
    Query("sum", "sum", 2.0, low=-1.0, high=3.0),
    Query("above", "sum", 2.0, low=2.0, high=5.0),
    Query("vector", "sum", 2.0, dimension=3, norm=0.5),
    Query("mean", "mean", 2.0, low=-4.0, high=10.0),
    Query("vector mean", "mean", 2.0, dimension=3, norm=7.0),
    Query("histogram", "histogram", 2.0, domain=DOMAIN, most=3),
    Query("hashed", "histogram", 2.0, buckets=16, most=2),
    Query("quantile", "quantile", 2.0, quantile=0.5, edges=(0.0, 1.0, 2.0, 4.0)),
    Query("top", "top_k", 2.0, domain=DOMAIN, most=2, top=2),
)


class Users:
    """Users whose contributions are given."""

    def __init__(self, values, fingerprint="data"):
        self.given, self.fingerprint, self.asked = values, fingerprint, []

    def values(self, statistic):
        self.asked.append(statistic)
        return iter(self.given)


def about(attributes="{}", path="m:C", version="1"):
    return Described(path, attributes, version)


def opened(tmp_path, queries, values, key=KEY, kept=None, **users):
    users = Users(values, **users)
    made = DeclaredSession(queries, users, Randomness(key), tmp_path / "private" / "session.json", kept)
    return made, users


# --- sensitivity --------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.booleans(),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7e308, np.float64("nan"), np.int64(7), np.float32(0.1)]),
)
HOSTILE = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=4),
    st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    st.lists(st.sampled_from([*DOMAIN, "unknown", "\ud800"]), max_size=9),
    st.text(max_size=3),
    st.none(),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
    st.lists(st.lists(NUMBERS, max_size=2), max_size=3),
    st.sampled_from(
        [np.ones((2, 3)), np.full(3, 1e308), np.array(["a"]), np.array([None]), object(), "a", b"a", {"a"}]
    ),
)


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.name)
@settings(max_examples=120, deadline=None)
@given(others=st.lists(HOSTILE, max_size=3), one=HOSTILE)
def test_one_user_moves_the_exact_answer_by_at_most_the_sensitivity(query, others, one):
    """In whole numbers, so without any tolerance. Removed and emptied users alike add nothing.

    Red when a clip is left out, when a histogram counts one key more than `most`, when NaN is let through, or when
    `sensitivity_of` forgets the square root of `most` or the count of a mean.
    """
    with_one = contributions.total(query, [*others, one])
    without = contributions.total(query, others)
    moved = sum((a - b) ** 2 for a, b in zip(with_one, without, strict=True))
    assert moved <= contributions.GRAINS**2
    assert contributions.grain_of(query) * contributions.GRAINS == contributions.sensitivity_of(query)
    assert contributions.total(query, [one, *others]) == with_one  # the order of users changes nothing


def test_the_sensitivity_is_reached_so_it_is_not_wasted():
    """Red when a bound is taken twice, as in the sensitivity of replacing a user."""
    for query, value in zip(
        QUERIES,
        (True, 99.0, 9.0, [9.0, 0.0, 0.0], 99.0, [0.0, 99.0, 0.0], list(DOMAIN), ["x", "y", "z"], 1.5, list(DOMAIN)),
        strict=True,
    ):
        found = contributions.contribution(query, value)
        assert math.sqrt(sum(int(f) ** 2 for f in found)) / contributions.GRAINS == pytest.approx(1, abs=1e-9)


def test_a_contribution_is_clipped_the_same_way_each_time():
    """Red when the first keys are not the ones that count, or one key counts twice."""
    histogram = QUERIES[6]
    counted = contributions.contribution(histogram, ["b", "zzz", "b", "a", "d", "c"]).tolist()
    assert counted[0] > 0
    assert counted == [counted[0], counted[0], 0, counted[0]]
    assert not contributions.contribution(histogram, [["a"], 3, None]).any()
    assert bucket_of("a key", 1000) == 942
    unit = contributions.grain_of(QUERIES[3])
    found = contributions.contribution(QUERIES[3], [3.0, 0.0, 4.0]) * unit
    assert found == pytest.approx([0.6, 0.0, 0.8])
    assert contributions.contribution(QUERIES[4], 3.0).tolist()[0] == 0  # the middle of the bounds


# --- the answers --------------------------------------------------------------------------------------------


def answers_of(query, values, count=4000):
    exact = contributions.total(query, values)
    return [session.noisy_answer(query, exact, Randomness(KEY), f"{query.name} {i}") for i in range(count)]


@pytest.mark.parametrize(
    ("query", "values", "expected"),
    [
        (QUERIES[0], [True] * 30 + [False] * 10, 30.0),
        (QUERIES[1], [0.5, 2.0, 99.0, -99.0], 0.5 + 2 + 3 - 1),
        (QUERIES[3], [[0.1, 0.2, 0.0], [0.0, 0.2, -0.1]], (0.1, 0.4, -0.1)),
        (QUERIES[6], [["a", "b"], ["a"], ["c", "zzz"]], (2.0, 1.0, 1.0, 0.0)),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_answers_have_the_mean_and_the_spread_that_they_state(query, values, expected):
    """The draws are fixed. With fresh ones each bound (5 standard errors) fails once in 1.7 million.

    Red when the noise is scaled by the multiplier alone, added twice, or drawn alike for two coordinates.
    """
    found = answers_of(query, values)
    drawn = np.array([np.atleast_1d(a.value) for a in found])
    std = query.noise_multiplier * contributions.sensitivity_of(query) * contributions.unit_of(query)
    assert {a.std for a in found} == {std}
    assert np.abs(drawn.mean(axis=0) - expected).max() < 5 * std / math.sqrt(len(found))
    assert np.abs(drawn.std(axis=0) / std - 1).max() < 5 / math.sqrt(2 * len(found))
    if drawn.shape[1] > 1:
        assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / math.sqrt(len(found))


def test_a_mean_is_right_and_its_spread_is_estimated():
    """Fixed draws; a fresh one would fail once in a million. Red when the middle of the bounds is forgotten."""
    values = [1.0, 2.0, 3.0, 6.0] * 250
    found = answers_of(QUERIES[4], values, 2000)
    drawn = np.array([a.value for a in found])
    assert abs(drawn.mean() - 3.0) < 5 * drawn.std() / math.sqrt(2000)
    assert np.mean([a.std for a in found]) == pytest.approx(drawn.std(), rel=0.1)
    (vectors,) = answers_of(QUERIES[5], [[1.0, -2.0, 3.0]] * 100_00, 1)
    assert vectors.value == pytest.approx((1, -2, 3), abs=0.02)


def test_a_quantile_lies_between_edges_and_a_top_k_names_the_commonest():
    """Red when the share is taken of all bins but the outermost, or the order of a top-k turned."""
    quiet = Query("q", "quantile", 0.01, quantile=0.25, edges=(0.0, 1.0, 2.0, 4.0))
    (found,) = answers_of(quiet, [0.5] * 100 + [3.0] * 100, 1)
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert answers_of(quiet, [99.0] * 50, 1)[0].value == 4.0
    assert answers_of(quiet, [-99.0] * 50, 1)[0].value == 0.0
    top = Query("t", "top_k", 0.01, domain=DOMAIN, most=2, top=2)
    (found,) = answers_of(top, [["b", "d"]] * 20 + [["d"]] * 10, 1)
    assert found.value == ("d", "b")
    assert found.std == 0.01 * math.sqrt(2)


CHANGES = (
    (0, {"name": "other"}),
    (0, {"noise_multiplier": 2.5}),
    (1, {"kind": "mean"}),
    (1, {"low": -2.0}),
    (1, {"high": 4.0}),
    (3, {"dimension": 4}),
    (3, {"norm": 1.0}),
    (6, {"domain": DOMAIN[::-1]}),
    (6, {"most": 2}),
    (7, {"buckets": 17}),
    (8, {"quantile": 0.6}),
    (8, {"edges": (0.0, 1.0, 2.0, 5.0)}),
    (9, {"top": 1}),
)
"""Of every field of a query, one that has it and another value."""


def test_the_noise_depends_on_the_key_the_query_and_the_data(tmp_path):
    """Red when the digest leaves out the fingerprint, the class, its attributes or version, or any field of a query."""
    query = QUERIES[0]
    base = session.digest_of(query, about(), "data")
    others = [
        session.digest_of(Query("count", "count", 3.0), about(), "data"),
        session.digest_of(query, about('{"a": 1}'), "data"),
        session.digest_of(query, about(path="m:D"), "data"),
        session.digest_of(query, about(version="2"), "data"),
        session.digest_of(query, about(), "data2"),
    ]
    assert len({base, *others}) == 6
    for place, change in CHANGES:
        other = dataclasses.replace(QUERIES[place], **change)
        assert session.digest_of(other, about(), "data") != session.digest_of(QUERIES[place], about(), "data"), change
    assert {*(name for _, change in CHANGES for name in change)} == {f.name for f in dataclasses.fields(Query)}
    answers = {session.noisy_answer(query, [0], Randomness(KEY), digest).value for digest in (base, *others)}
    answers.add(session.noisy_answer(query, [0], Randomness(bytes(32)), base).value)
    assert len(answers) == 7


def test_the_charge_is_all_that_was_declared():
    """Red when a query is left out, or the multipliers are added like levels."""
    queries = (Query("a", "count", 3.0), Query("b", "count", 4.0))
    event = session.charge_of(queries)
    assert [e.noise_multiplier for e in event.events] == [3.0, 4.0]
    assert session.multiplier_of(queries) == pytest.approx(12 / 5)
    from dp_accounting.dp_event import GaussianDpEvent

    from harness.privacy.accounting import rdp_epsilon

    assert rdp_epsilon(event, 1e-5) == pytest.approx(rdp_epsilon(GaussianDpEvent(12 / 5), 1e-5))


# --- what is answered, and kept -----------------------------------------------------------------------------


def test_a_query_is_answered_once_and_for_one_statistic(tmp_path):
    """Red when undeclared names are let through, when the digest is not compared, or `close` does nothing."""
    made, users = opened(tmp_path, QUERIES[:2], [1.0, 2.0])
    first = made.answer("sum", about())
    assert made.answer("sum", about()) == first
    assert len(users.asked) == 1
    with pytest.raises(PluginError, match='"sum" was answered already'):
        made.answer("sum", about('{"n": 2}'))
    for name in ("median", "", None, ["sum"], {"a": 1}):
        with pytest.raises(PluginError, match="was not declared"):
            made.answer(name, about())
    made.close()
    with pytest.raises(PluginError, match="closed"):
        made.answer("count", about())
    assert len(users.asked) == 1


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.name)
def test_a_resumed_run_is_told_the_same_bit_by_bit(query, tmp_path):
    """Red when the record is not read again, or a number is rounded on its way to the disk."""
    value = {"quantile": 1.5, "vector": [1.0, 0.1, 0.3], "vector mean": [1.0, 0.1, 0.3]}.get(query.name, "a")
    made, _ = opened(tmp_path, (query,), [value] * 5)
    first = made.answer(query.name, about())
    record = tmp_path / "private" / "session.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    again, users = opened(tmp_path, (query,), [value] * 9, key=bytes(32))
    assert again.answer(query.name, about()) == first
    assert type(again.answer(query.name, about())) is Answer
    assert users.asked == []
    other, _ = opened(tmp_path, (query,), [value], fingerprint="other data")
    with pytest.raises(PluginError, match="other data"):
        other.answer(query.name, about())


def test_another_run_on_the_same_data_gets_the_same_answer(tmp_path):
    """Red when the cache is not looked at, or looked up without the data's fingerprint."""
    kept = AnswerFolder(tmp_path / "cache" / "answers")
    first = opened(tmp_path / "one", QUERIES[:1], [True], kept=kept)[0].answer("count", about())
    second, users = opened(tmp_path / "two", QUERIES[:1], [True], key=bytes(32), kept=kept)
    assert second.answer("count", about()) == first
    assert users.asked == []
    third, users = opened(tmp_path / "three", QUERIES[:1], [True], key=bytes(32), kept=kept, fingerprint="other")
    assert third.answer("count", about()) != first
    assert len(users.asked) == 1
    for path in (tmp_path / "cache" / "answers").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache" / "answers").stat().st_mode) == 0o700


def test_of_two_runs_at_once_the_first_answer_counts(tmp_path):
    """Red when the second one overwrites what the first has told already."""
    kept = AnswerFolder(tmp_path)
    one, two = (Answer("q", value, 1.0, (value,)) for value in (1.5, 2.5))
    assert kept.settle("d") is None
    assert kept.settle("d", one) == one
    assert kept.settle("d", two) == one


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_a_damaged_record_is_one_line(content, tmp_path):
    """Red when it counts as no record: the query would be answered a second time."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "session.json").write_bytes(content)
    with pytest.raises(MachineError, match=r"session\.json is damaged"):
        opened(tmp_path, QUERIES[:1], [])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ((), "from 1 to 1000 queries"),
        ((QUERIES[0], QUERIES[0]), 'the query "count" is declared twice'),
        (("count",), "must be a tuple of Query"),
    ],
)
def test_what_can_not_be_declared(queries, message, tmp_path):
    """Red when the check is left out."""
    with pytest.raises(PluginError, match=message):
        opened(tmp_path, queries, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "count", "name": ""}, "needs a name"),
        ({"kind": "median"}, 'there is no kind "median"'),
        ({"kind": "count", "noise_multiplier": 0.0}, "noise_multiplier must be a number above 0"),
        ({"kind": "count", "noise_multiplier": math.inf}, "noise_multiplier must be a number above 0"),
        ({"kind": "count", "noise_multiplier": True}, "noise_multiplier must be a number above 0"),
        ({"kind": "count", "low": 1.0}, "a count has no low"),
        ({"kind": "sum"}, "low and high must be numbers, low below high"),
        ({"kind": "sum", "low": 2.0, "high": 2.0}, "low below high"),
        ({"kind": "mean", "low": math.nan, "high": 2.0}, "low below high"),
        ({"kind": "mean", "low": 0.0, "high": 2.0, "norm": 1.0}, "either low and high, or norm"),
        ({"kind": "sum", "low": 0.0, "high": 1.0, "dimension": 2}, "a vector needs a norm"),
        ({"kind": "sum", "norm": 1.0, "dimension": 0}, "dimension must be a whole number"),
        ({"kind": "sum", "norm": -1.0}, "norm must be a number above 0"),
        ({"kind": "histogram"}, "needs a domain"),
        ({"kind": "histogram", "domain": ("a", "a")}, "different texts"),
        ({"kind": "histogram", "domain": ("a",), "buckets": 3}, "give a domain, or"),
        ({"kind": "histogram", "domain": ("a", "b"), "most": 3}, "most must be a whole number from 1 to 2"),
        ({"kind": "top_k", "domain": ("a", "b")}, "top must be a whole number from 1 to 2"),
        ({"kind": "top_k", "domain": ("a", "b"), "buckets": 2, "top": 1}, "a top_k has no buckets"),
        ({"kind": "quantile", "quantile": 1.0, "edges": (0.0, 1.0)}, "between 0 and 1"),
        ({"kind": "quantile", "quantile": 0.5, "edges": (0.0,)}, "needs from 2 to"),
        ({"kind": "quantile", "quantile": 0.5, "edges": (0.0, 0.0)}, "edges must rise"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(changes, message):
    """Red when its check is left out."""
    with pytest.raises(PluginError, match=message):
        Query(**({"name": "q", "noise_multiplier": 1.0} | changes))


def test_queries_and_answers_are_json():
    """Red when a field is left out of the document, and so of the digest."""
    for query in QUERIES:
        assert Query(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(
            json.dumps(query.document())).items()}) == query  # fmt: skip
