"""Segmentations by when a user wrote: sessions, active days, hours of the day, and days since the last record."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import plugins
from harness.conformance import check_segmenter
from harness.data.times import FIRST, LAST
from harness.plugins import Access, OwnRecordsSegmenter, PluginError, UserRecords

NIGHT_AND_DAY = {"night": [22, 6], "day": [6, 22]}
DAY = 86_400


def built(kind, **parameters):
    return plugins.segmentation.build(kind, parameters)


def user(*times):
    """Own records, written at these times."""
    return UserRecords(("x",) * len(times), (1,) * len(times), 1, times=tuple(times))


def at(text):
    """Seconds since 1970 of a moment in UTC."""
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


# --- usage --------------------------------------------------------------------------------------------------


def count(measure, times, **parameters):
    """What `usage` counts: found by asking for every edge."""
    rules = [built("usage", measure=measure, edges=[n], names=["no", "yes"], **parameters) for n in range(1, 12)]
    return sum(rule.assign(user(*times)) == "yes" for rule in rules)


@pytest.mark.parametrize(
    ("minutes", "gap", "sessions"),
    [
        ([], None, 0),
        ([None, None], None, 0),
        ([5], None, 1),
        ([0, 30], None, 1),
        ([0, 30.01], None, 2),
        ([0, 30, 60, 90], None, 1),
        ([90, 0, 60, 30], None, 1),
        ([90, None, 0], None, 2),
        ([0, 0, 0], None, 1),
        ([0, 10, 20.5], 10, 2),
        ([0, 10, 20], 10, 1),
        ([0, 1440], 1440, 1),
        ([-40, 0, 40], None, 3),
    ],
)
def test_a_session_is_a_run_without_a_long_pause(minutes, gap, sessions):
    """Of exactly the gap is no long one. Red when records are not put in order first, or one of no time counts."""
    given = {} if gap is None else {"gap": gap}
    assert count("sessions", [None if m is None else 60.0 * m for m in minutes], **given) == sessions


@pytest.mark.parametrize(
    ("times", "days"),
    [
        ([], 0),
        ([None], 0),
        ([0.0, DAY - 0.5], 1),
        ([0.0, DAY], 2),
        ([-0.5, 0.0], 2),
        ([5.0 * DAY, 3.0 * DAY, 5.0 * DAY + 9, None], 2),
        ([-DAY, -1.0], 1),
    ],
)
def test_an_active_day_is_one_of_utc(times, days):
    """Before 1970 as well. Red when a day is rounded towards 1970, or counted twice."""
    assert count("active_days", times) == days


def test_a_user_of_no_time_is_in_the_lowest_segment():
    """Red when an empty list raises: that it does would tell of a user without times."""
    for measure in ("sessions", "active_days"):
        rule = built("usage", measure=measure, edges=[1, 5], names=["none", "some", "many"])
        assert [rule.assign(u) for u in (user(), user(None, None), UserRecords(("x",), (1,), 1))] == ["none"] * 3
        assert rule.uses_times
    assert not any(built("usage", measure=m, edges=[1]).uses_times for m in ("records", "examples", "tokens"))


# --- time of day --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "segment"),
    [
        ([22], "night"),
        ([21.999], "day"),
        ([5.999], "night"),
        ([6], "day"),
        ([23, 3, 12], "night"),
        ([23, 12, 13], "day"),
        ([23, 12], "night"),
        ([12, 23], "night"),
        ([None, 12], "day"),
        ([-1], "night"),
        ([24 * 365 + 12], "day"),
        ([], "unknown"),
        ([None], "unknown"),
    ],
)
def test_most_records_decide(hours, segment):
    """Of two parts alike, the first in the spec. Red when a part's end belongs to it, or midnight divides a night."""
    times = [None if hour is None else 3600.0 * hour for hour in hours]
    assert built("time_of_day", parts=NIGHT_AND_DAY).assign(user(*times)) == segment


def test_the_clock_is_ahead_by_the_offset():
    """In Tokyo (+9), 21:00 UTC is six in the morning. Red when it is taken off, or whole hours alone count."""
    rule = built("time_of_day", parts=NIGHT_AND_DAY, utc_offset=9)
    assert [rule.assign(user(at(f"2026-01-30T{hour}"))) for hour in ("20:59", "21:00", "12:59", "13:00")] == [
        "night",
        "day",
        "day",
        "night",
    ]
    india = built("time_of_day", parts=NIGHT_AND_DAY, utc_offset=5.5)
    assert [india.assign(user(at(f"2026-01-30T{hour}"))) for hour in ("00:29", "00:30")] == ["night", "day"]
    west = built("time_of_day", parts=NIGHT_AND_DAY, utc_offset=-5)
    assert west.assign(user(at("1969-12-31T10:59"))) == "night"


def test_a_share_is_enough_from_its_value_on():
    """Red when the share itself is too little, or is taken of all records and not of those whose time is known."""
    rule = built("time_of_day", parts={"night": [22, 6]}, share=0.3, otherwise="day", unknown="day")
    assert rule.segments == ("night", "day")
    night, noon = 0.0, 12 * 3600.0
    assert rule.assign(user(*[night] * 3, *[noon] * 7)) == "night"
    assert rule.assign(user(*[night] * 29, *[noon] * 71)) == "day"
    assert rule.assign(user(night, None, None, None, None)) == "night"
    assert rule.assign(user(None)) == "day"
    exact = built("time_of_day", parts={"night": [22, 6]}, share=0.07)
    assert exact.assign(user(*[night] * 7, *[noon] * 93)) == "night"
    first = built("time_of_day", parts={"evening": [18, 22], "night": [22, 6]}, share=0.25)
    assert first.assign(user(18 * 3600.0, night, night, noon)) == "evening"


def test_segments_are_what_can_occur():
    """Red when a segment is announced that nobody can be in, or one that occurs is not."""
    assert built("time_of_day", parts=NIGHT_AND_DAY).segments == ("night", "day", "unknown")
    assert built("time_of_day", parts={"all": [0, 24]}).segments == ("all", "unknown")
    assert built("time_of_day", parts=NIGHT_AND_DAY, share=0.8).segments == ("night", "day", "other", "unknown")
    gaps = built("time_of_day", parts={"work": [9, 17], "late": [22, 24]}, otherwise="rest", unknown="rest")
    assert gaps.segments == ("work", "late", "rest")
    assert gaps.assign(user(3600.0 * 9, 0.0, 3600.0)) == "rest"
    assert gaps.assign(user(3600.0 * 9, 0.0)) == "work"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parts"),
        ({"parts": {}}, "at least 1 item"),
        ({"parts": {"": [1, 2]}}, "at least 1 character"),
        ({"parts": {"a": [1]}}, "Field required"),
        ({"parts": {"a": [1, 25]}}, "less than or equal to 24"),
        ({"parts": {"a": [-1, 2]}}, "greater than or equal to 0"),
        ({"parts": {"a": [5, 5]}}, '"a" must begin at an hour from 0 to 23 and end at another, from 1 to 24'),
        ({"parts": {"a": [24, 3]}}, '"a" must begin'),
        ({"parts": {"a": [22, 0]}}, '"a" must begin'),
        ({"parts": {"a": [22, 6], "b": [5, 7]}}, 'the hour 5 is in "a" and in "b"'),
        ({"parts": NIGHT_AND_DAY, "utc_offset": 14.5}, "less than or equal to 14"),
        ({"parts": NIGHT_AND_DAY, "utc_offset": 1.1}, "quarters of an hour"),
        ({"parts": NIGHT_AND_DAY, "share": 0}, "greater than 0"),
        ({"parts": NIGHT_AND_DAY, "share": 1.5}, "less than or equal to 1"),
        ({"parts": NIGHT_AND_DAY, "zone": "CET"}, "Extra inputs"),
    ],
)
def test_parts_that_make_no_sense(parameters, message):
    """Red when any one check is taken out."""
    with pytest.raises(ValidationError, match=message):
        built("time_of_day", **parameters)


# --- recency ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "segment"),
    [
        ("2026-01-31T23:59:59", "under-1"),
        ("2026-01-31T00:00:00", "under-1"),
        ("2026-01-30T23:59:59", "1-29"),
        ("2026-01-02T00:00:00", "1-29"),
        ("2026-01-01T23:59:59", "from-30"),
        ("0001-01-01T00:00:00", "from-30"),
        ("2030-01-01T00:00:00", "under-1"),
    ],
)
def test_days_are_counted_to_the_public_day(last, segment):
    """By days of UTC; later is 0 days ago. Red when the last record is the first, or the day ends at noon."""
    rule = built("recency", as_of="2026-01-31", edges=[1, 30])
    assert rule.assign(user(at("0001-01-01T00:00:00"), at(last), None)) == segment
    assert rule.assign(user(at(last), at("0001-01-01T00:00:00"))) == segment


def test_nobodys_newest_record_is_looked_at():
    """Red when the reference moves with the records that were seen before, which are another user's."""
    rule = built("recency", as_of="2026-01-31", edges=[30], names=["there", "gone"], unknown="gone")
    ann = user(at("2026-01-20T12:00:00"))
    assert rule.assign(ann) == "there"
    rule.assign(user(at("2029-12-31T12:00:00")))
    assert rule.assign(ann) == "there"
    assert rule.segments == ("there", "gone")
    assert [rule.assign(u) for u in (user(), user(None))] == ["gone", "gone"]
    assert built("recency", as_of="2026-01-31", edges=[30]).segments == ("under-30", "from-30", "unknown")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"edges": [30]}, "as_of"),
        ({"edges": [30], "as_of": "2026-13-01"}, "as_of"),
        ({"edges": [30], "as_of": "newest"}, "as_of"),
        ({"edges": [30], "as_of": True}, "as_of"),
        ({"as_of": "2026-01-31"}, "edges"),
        ({"edges": [30, 30], "as_of": "2026-01-31"}, "must rise"),
        ({"edges": [30], "as_of": "2026-01-31", "unknown": ""}, "at least 1 character"),
        ({"edges": [30], "as_of": "2026-01-31", "now": 1}, "Extra inputs"),
    ],
)
def test_recency_that_makes_no_sense(parameters, message):
    """Red when any one check is taken out."""
    with pytest.raises(ValidationError, match=message):
        built("recency", **parameters)


# --- all of them --------------------------------------------------------------------------------------------

SESSIONS = {"type": "usage", "measure": "sessions", "edges": [2, 5]}
ALL = [
    ("usage", {"measure": "sessions", "edges": [2, 4], "gap": 20}),
    ("usage", {"measure": "active_days", "edges": [2]}),
    ("time_of_day", {"parts": NIGHT_AND_DAY, "utc_offset": -3.5}),
    ("time_of_day", {"parts": {"night": [22, 6]}, "share": 0.25, "otherwise": "day"}),
    ("recency", {"as_of": "2023-11-10", "edges": [7, 20]}),
    ("product", {"first": SESSIONS, "second": {"type": "recency", "as_of": "2023-11-10", "edges": [7]}}),
]


@pytest.mark.parametrize(("kind", "parameters"), ALL, ids=lambda value: value if isinstance(value, str) else "")
def test_it_conforms(kind, parameters):
    """Red when a rule keeps state, reads the machine's clock or a file, or names an unannounced segment."""
    check_segmenter(plugins.segmentation.get(kind), parameters)
    rule = built(kind, **parameters)
    assert rule.access is Access.OWN_RECORDS
    assert isinstance(rule, OwnRecordsSegmenter)
    assert rule.uses_times


def test_a_product_needs_times_where_a_part_does():
    """Red when a product hides what its parts need."""
    plain = {"type": "usage", "edges": [2]}
    assert not built("product", first=plain, second=plain | {"measure": "tokens"}).uses_times
    assert built("product", first=plain, second=SESSIONS).uses_times


moments = st.one_of(st.none(), st.floats(FIRST, LAST, exclude_max=True), st.integers(0, 10**6).map(float))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    st.lists(moments, max_size=8), st.lists(st.lists(moments, max_size=5), max_size=3), st.sampled_from(ALL), st.data()
)
def test_a_segment_is_a_function_of_the_user_alone(own, others, which, data):
    """And not of the order of their records. Red when a rule keeps anything of one user for the next."""
    kept = built(which[0], **which[1])
    fresh = built(which[0], **which[1]).assign(user(*own))
    assert fresh in kept.segments
    for other in others:
        kept.assign(user(*other))
    assert kept.assign(user(*own)) == fresh
    assert kept.assign(user(*data.draw(st.permutations(own)))) == fresh


def test_the_parameters_of_a_product_are_those_of_its_parts():
    """Red when a date in a part is taken for something else."""
    rule = built("product", first={"type": "recency", "as_of": "2026-01-31", "edges": [30]}, second=SESSIONS)
    assert rule.assign(user(at("2026-01-30T10:00:00"))) == "under-30+under-2"
    with pytest.raises(PluginError) as caught:
        built("product", first={"type": "recency", "as_of": "newest", "edges": [30]}, second=SESSIONS)
    assert caught.value.key == ("first", "as_of")
