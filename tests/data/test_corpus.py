"""The corpus: built once, owner-only, grouped by user, and silent about its content."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import cache, files
from harness.data import corpus
from harness.data.corpus import Corpus, build_corpus, describe_bad_records
from harness.data.holdout import holdout_order, is_holdout
from harness.data.packing import pack, tokenize
from harness.data.sources.base import Columns, Record, RecordSource, open_source
from harness.errors import ArgumentError, MachineError
from harness.plugins import PluginParameters

ROOT = Path(__file__).resolve().parents[2]
SECRET = "my heart is a SECRET"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def by_user(posts):
    texts = {}
    for post in posts:
        texts.setdefault(post["user"], []).append(post["text"])
    return texts


# --- content ------------------------------------------------------------------------------------------------


def test_every_user_has_exactly_their_own_records_and_examples(posts, write_jsonl, make_data, build, tokenizer):
    made = build(make_data(write_jsonl(posts), attributes=["plan"]))
    texts = by_user(posts)
    assert [made.user_id(i) for i in range(made.n_users)] == sorted(texts)
    total = 0
    for i, (user, own) in enumerate(sorted(texts.items())):
        tokens = tokenize(tokenizer, own)
        expected = list(pack(tokens, eos=tokenizer.eos_token_id, max_tokens=16))
        start, stop = made.examples_of(i)
        found = [made.tokens(example) for example in range(start, stop)]
        assert start == total
        assert [f.tolist() for f in found] == [e.tolist() for e in expected]
        assert [len(f) for f in found] == made.example_lengths[start:stop].tolist()
        records = made.own_records(i)
        assert (records.texts, records.examples) == (tuple(own), len(expected))
        assert records.token_counts == tuple(len(t) for t in tokens)
        assert (made.n_records[i], made.n_examples[i]) == (len(own), len(expected))
        assert made.n_tokens[i] == sum(len(e) for e in expected)
        assert made.attributes(i) == {"plan": "free" if int(user[-2:]) % 3 else "paid"}
        total = stop
    assert total == len(made.example_lengths)


def test_arrays_are_read_only_and_of_the_promised_types(posts, write_jsonl, make_data, build):
    made = build(make_data(write_jsonl(posts)))
    for array in (made.example_lengths, made.first_example, made.n_tokens, made.holdout, made.tokens(0)):
        assert not array.flags.writeable
    assert made.tokens(0).dtype == np.int32
    assert made.users(holdout=True).dtype == np.int64
    with pytest.raises(IndexError):
        made.tokens(-1)
    with pytest.raises(IndexError):
        made.tokens(len(made.example_lengths))


def test_hold_out_users_follow_from_their_names_alone(posts, write_jsonl, make_data, build):
    made = build(make_data(write_jsonl(posts)))
    names = [made.user_id(i) for i in range(made.n_users)]
    held = [names[i] for i in made.users(holdout=True)]
    assert held == [name for name in names if is_holdout(name, "made", 0.25)]
    assert 0 < len(held) < len(names)
    assert sorted([*made.users(holdout=True), *made.users(holdout=False)]) == list(range(made.n_users))
    ordered = [names[i] for i in made.holdout_by_order(limit=100)]
    assert ordered == sorted(held, key=lambda name: holdout_order(name, "made"))
    assert [names[i] for i in made.holdout_by_order(limit=3)] == ordered[:3]


def test_a_user_without_a_usable_record_still_counts_but_is_not_evaluated(write_jsonl, make_data, build):
    lines = [{"user": f"u{i}", "text": "" if i % 2 else "some words"} for i in range(40)]
    made = build(make_data(write_jsonl(lines)))
    assert made.n_users == 40
    assert made.bad_records == 20
    empty = np.flatnonzero(made.n_examples == 0)
    assert {made.user_id(i) for i in empty} == {f"u{i}" for i in range(1, 40, 2)}
    assert set(made.users(holdout=True)) & set(empty)
    assert not set(made.holdout_by_order(limit=100)) & set(empty)


def test_one_users_text_changes_nothing_of_anybody_else(posts, write_jsonl, make_data, build):
    changed = [post | {"text": "other words"} if post["user"] == "user-07" else post for post in posts]
    before = build(make_data(write_jsonl(posts, "a.jsonl")))
    after = build(make_data(write_jsonl(changed, "b.jsonl")))

    def examples(made, i):
        return [made.tokens(example).tolist() for example in range(*made.examples_of(i))]

    differing = [before.user_id(i) for i in range(before.n_users) if examples(before, i) != examples(after, i)]
    assert differing == ["user-07"]


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcde"), TEXT), min_size=1, max_size=25))
def test_tokens_are_neither_lost_nor_do_they_cross_users(make_data, tokenizer, pairs):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posts.jsonl"
        path.write_text("\n".join(json.dumps({"user": u, "text": t}) for u, t in pairs))
        data = make_data(path)
        made = build_corpus(
            open_source(data, path),
            Columns.of(data),
            tokenizer=tokenizer,
            tokenizer_digest="bytes",
            data=data,
            cache_dir=Path(folder) / "cache",
            private_dir=None,
        )
        for i in range(made.n_users):
            own = "<eos>".join(text for user, text in pairs if user == made.user_id(i)) + "<eos>"
            found = [token for example in range(*made.examples_of(i)) for token in made.tokens(example).tolist()]
            whole = tokenizer(own, verbose=False)["input_ids"]
            assert found in (whole, whole[:-1] if len(whole) % 16 == 1 else whole)


def test_batches_of_any_size_make_the_same_corpus(posts, write_jsonl, make_data, build, tmp_path, monkeypatch):
    data = make_data(write_jsonl(posts))
    large = build(data)
    monkeypatch.setattr("harness.data.building._BATCH_TEXTS", 3)
    monkeypatch.setattr("harness.data.tables._ROWS", 2)
    small = build(data, cache_dir=tmp_path / "other")
    assert len(small.example_lengths) == len(large.example_lengths)
    for example in range(len(large.example_lengths)):
        assert small.tokens(example).tolist() == large.tokens(example).tolist()
    assert [small.own_records(i) for i in range(40)] == [large.own_records(i) for i in range(40)]


def test_attributes_that_differ_between_records_count_as_unknown(write_jsonl, make_data, build, tmp_path):
    lines = [
        {"user": "ann", "text": "x", "plan": "free", "region": "eu"},
        {"user": "ann", "text": "y", "plan": "paid", "region": "eu"},
        {"user": "bob", "text": "z", "plan": "free", "region": "us"},
        {"user": "bob", "text": "", "plan": "free"},
    ]
    made = build(make_data(write_jsonl(lines), attributes=["plan", "region"]))
    assert made.attributes(0) == {"plan": None, "region": "eu"}
    assert made.attributes(1) == {"plan": "free", "region": None}
    report = json.loads((tmp_path / "private" / "data.json").read_text())
    assert report["differing_attributes"] == {
        "total": 2,
        "listed": [{"user": "ann", "columns": ["plan"]}, {"user": "bob", "columns": ["region"]}],
    }


# --- bad records --------------------------------------------------------------------------------------------

LINES = [{"user": "ann", "text": "fine words"}, '{"text": "' + SECRET, {"user": "ann", "text": None}]


def test_bad_records_are_listed_in_private_and_the_console_hears_no_number(write_jsonl, make_data, build, tmp_path):
    made = build(make_data(write_jsonl(LINES)))
    report = tmp_path / "private" / "data.json"
    assert json.loads(report.read_text())["bad_records"] == {
        "total": 2,
        "listed": [
            {"where": "line 2", "reason": "not JSON (column 10)", "user": None},
            {"where": "line 3", "reason": "the text is missing", "user": "ann"},
        ],
    }
    assert "SECRET" not in report.read_text()
    assert mode(report) == 0o600
    assert describe_bad_records(made, "private") == "some records were skipped, see private/data.json"
    assert describe_bad_records(made, "public") == (
        "2 records were skipped (line 2: not JSON (column 10); line 3: the text is missing), see private/data.json"
    )


def test_a_corpus_from_the_cache_reports_again(write_jsonl, make_data, build, tmp_path):
    data = make_data(write_jsonl(LINES))
    build(data)
    build(data, private_dir=tmp_path / "second")
    assert json.loads((tmp_path / "second" / "data.json").read_text())["bad_records"]["total"] == 2


def test_nothing_is_said_of_good_data(posts, write_jsonl, make_data, build):
    made = build(make_data(write_jsonl(posts)))
    assert describe_bad_records(made, "private") is None
    assert describe_bad_records(made, "public") is None


def test_on_bad_record_stop_stops_and_names_the_private_file_alone(write_jsonl, make_data, build, tmp_path):
    path = write_jsonl(LINES)
    for _ in range(2):  # built, and from the cache
        with pytest.raises(ArgumentError) as caught:
            build(make_data(path, on_bad_record="stop"))
        assert str(caught.value) == ("some records can't be used: see private/data.json (data.on_bad_record is stop)")
    assert (tmp_path / "private" / "data.json").exists()
    with pytest.raises(ArgumentError, match=r"line 2: not JSON \(column 10\); line 3: the text is missing"):
        build(make_data(path, on_bad_record="stop", visibility="public"))


def test_data_without_a_usable_record_are_an_error(write_jsonl, make_data, build):
    with pytest.raises(ArgumentError, match="no record of the data set made can be used"):
        build(make_data(write_jsonl([{"user": "ann", "text": ""}])))


class NotATokenizer:
    eos_token_id = 0

    def __call__(self, text, **options):
        raise ValueError(f"can't read {text}")


def test_a_failing_tokenizer_carries_no_text_out(write_jsonl, make_data, build, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        build(make_data(write_jsonl([{"user": "ann", "text": SECRET}])), tokenizer=NotATokenizer())
    assert "NotATokenizer raised an error; see private/plugin-errors.log" in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert SECRET not in str(caught.value)
    log = tmp_path / "private" / "plugin-errors.log"
    assert SECRET in log.read_text()
    assert mode(log) == 0o600


def test_a_tokenizer_without_an_end_is_refused(write_jsonl, make_data, build):
    tokenizer = NotATokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(ArgumentError, match="no end-of-text token"):
        build(make_data(write_jsonl(LINES)), tokenizer=tokenizer)


class Mine(RecordSource):
    """Somebody's source: yields what it is given, and raises what it is given."""

    def __init__(self, items, hook=lambda: None):
        super().__init__(PluginParameters())
        self.items = items
        self.hook = hook

    def records(self, columns):
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    def public(self, columns):
        return iter(())

    def fingerprint(self, update):
        self.hook()
        update(repr(self.items).encode())


def build_mine(source, data, tokenizer, tmp_path):
    return build_corpus(
        source,
        Columns.of(data),
        tokenizer=tokenizer,
        tokenizer_digest="bytes",
        data=data,
        cache_dir=tmp_path / "cache",
        private_dir=tmp_path / "private",
    )


def test_what_a_plugin_source_yields_is_checked(make_data, tokenizer, tmp_path):
    items = [
        Record("ann", "fine", {}, "row 1"),
        Record("", "fine", {}, "row 2"),
        Record("bob", None, {}, "row 3"),
        Record("cat", "fine\ud800", {}, "row 4"),
    ]
    made = build_mine(Mine(items), make_data("x"), tokenizer, tmp_path)
    assert (made.n_users, made.bad_records) == (3, 3)


def test_a_failing_source_carries_nothing_out(make_data, tokenizer, tmp_path):
    items = [Record("ann", "fine", {}, "row 1"), KeyError(SECRET)]
    with pytest.raises(ArgumentError, match=r"Mine raised an error; see private/plugin-errors\.log$") as caught:
        build_mine(Mine(items), make_data("x"), tokenizer, tmp_path)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert list((tmp_path / "cache" / "corpora").glob("*building*")) == []


# --- the cache ----------------------------------------------------------------------------------------------


def test_a_corpus_is_built_once(posts, write_jsonl, make_data, build, tmp_path, monkeypatch):
    data = make_data(write_jsonl(posts))
    first = build(data)
    inode = (first.folder / "examples.arrow").stat().st_ino
    monkeypatch.setattr("harness.data.corpus.Builder", None)  # building again would fail
    again = build(data)
    assert (again.fingerprint, (again.folder / "examples.arrow").stat().st_ino) == (first.fingerprint, inode)
    moved = tmp_path / "moved.jsonl"
    (tmp_path / "posts.jsonl").rename(moved)
    assert build(make_data(moved)).fingerprint == first.fingerprint  # the content counts, not its place


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 17},
        {"name": "another"},
        {"holdout": {"users": 0.3, "visibility": "public"}},
        {"attributes": ["plan"]},
    ],
)
def test_another_preparation_is_another_corpus(change, posts, write_jsonl, make_data, build):
    path = write_jsonl(posts)
    assert build(make_data(path)).fingerprint != build(make_data(path, **change)).fingerprint


def test_other_data_or_another_tokenizer_are_another_corpus(posts, write_jsonl, make_data, build):
    data = make_data(write_jsonl(posts))
    first = build(data)
    assert build(data, tokenizer_digest="other").fingerprint != first.fingerprint
    write_jsonl(posts[:-1])
    assert build(data).fingerprint != first.fingerprint


def test_the_fingerprint_is_keyed(posts, write_jsonl, make_data, build, tmp_path):
    data = make_data(write_jsonl(posts))
    one, other = build(data), build(data, cache_dir=tmp_path / "other")
    assert len((tmp_path / "cache" / "fingerprint.key").read_bytes()) == 32
    assert one.fingerprint != other.fingerprint  # the same data under another secret key


def test_everything_is_the_owners_alone(posts, write_jsonl, make_data, build, tmp_path):
    before = os.umask(0)  # the most careless setting there is
    try:
        build(make_data(write_jsonl(posts)))
    finally:
        os.umask(before)
    inside = [*(tmp_path / "cache").rglob("*"), *(tmp_path / "private").rglob("*")]
    assert {mode(p) for p in inside if p.is_file()} == {0o600}
    folders = [tmp_path / "cache", tmp_path / "private", *(p for p in inside if p.is_dir())]
    assert {mode(p) for p in folders} == {0o700}


def test_a_folder_that_was_there_keeps_its_mode(posts, write_jsonl, make_data, build, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    made = build(make_data(write_jsonl(posts)))
    assert mode(tmp_path / "cache") == 0o755
    assert mode(made.folder.parent) == 0o700


def test_another_process_opens_the_same_corpus(posts, write_jsonl, make_data, build):
    made = build(make_data(write_jsonl(posts)))
    for other in (Corpus.load(made.folder), pickle.loads(pickle.dumps(made))):
        assert other.fingerprint == made.fingerprint
        assert other.tokens(3).tolist() == made.tokens(3).tolist()
    assert "word" not in repr(made)


def test_reading_ahead_holds_nothing_and_changes_nothing(posts, write_jsonl, make_data, build):
    made = build(make_data(write_jsonl(posts)))
    before = made.example_targets.tolist()
    made.read_ahead()
    assert made.example_targets.tolist() == before


def test_a_missing_or_damaged_corpus_is_named(posts, write_jsonl, make_data, build, tmp_path):
    with pytest.raises(MachineError, match="are missing or damaged; delete that folder"):
        Corpus.load(tmp_path / "nowhere")
    data = make_data(write_jsonl(posts))
    made = build(data)
    (made.folder / "users.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(MachineError, match="delete that folder and run again") as caught:
        build(data)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY but no more", "shorter"])
@pytest.mark.parametrize("column", ["first_example", "lengths"])
def test_a_damaged_column_is_named(content, column, posts, write_jsonl, make_data, build):
    """Red for "shorter" when `_complete` compares the tables alone: users would be given others' examples."""
    made = build(make_data(write_jsonl(posts)))
    path = made.folder / f"{column}.npy"
    whole = np.load(path)
    path.unlink()
    if content == "shorter":
        np.save(path, whole[:-1])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MachineError, match="delete that folder and run again"):
        Corpus.load(made.folder)


RACER = """
import sys, time
from pathlib import Path
from harness.data.corpus import build_corpus
from harness.data.sources.base import Columns, open_source
from harness.spec.models import DataBlock

class Bytes:
    eos_token_id = 256
    def __call__(self, text, **options):
        return {"input_ids": [list(t.encode()) for t in text]}

path, cache, start = map(Path, sys.argv[1:])
data = DataBlock.model_validate({
    "name": "made", "source": {"type": "jsonl", "path": str(path)}, "max_tokens": 16,
    "holdout": {"users": 0.25, "visibility": "public"},
})
source = open_source(data, path)
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
corpus = build_corpus(source, Columns.of(data), tokenizer=Bytes(), tokenizer_digest="b", data=data, cache_dir=cache,
                      private_dir=cache / "private")
print(corpus.fingerprint, len(corpus.example_lengths), corpus.tokens(0).tolist(), flush=True)
"""


def test_two_processes_that_build_at_once_end_with_one_corpus(posts, write_jsonl, tmp_path):
    path, start = write_jsonl(posts), tmp_path / "start"
    command = [sys.executable, "-c", RACER, str(path), str(tmp_path / "cache"), str(start)]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    start.touch()
    ends = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert ends[0] == ends[1] != ""
    folders = [p for p in (tmp_path / "cache" / "corpora").iterdir() if p.is_dir()]
    assert [p.name for p in folders] == [ends[0].split()[0]]


def test_without_locks_the_slower_builder_takes_the_faster_ones_corpus(make_data, tokenizer, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def no_lock(path, *, wait=True):
        yield False

    monkeypatch.setattr(corpus, "locked", no_lock)
    monkeypatch.setattr(cache, "locked", no_lock)
    items = [Record("ann", "fine words", {}, "row 1")]
    faster = []
    calls = []

    def overtaken():
        calls.append(1)
        if len(calls) == 2:  # asked again after the slower one has built, before it moves its folder
            faster.append(build_mine(Mine(items), make_data("x"), tokenizer, tmp_path))

    slower = build_mine(Mine(items, overtaken), make_data("x"), tokenizer, tmp_path)
    assert slower.fingerprint == faster[0].fingerprint
    assert [p.name for p in slower.folder.parent.iterdir() if p.is_dir()] == [slower.fingerprint]


def test_data_that_change_while_they_are_read_are_not_kept(make_data, tokenizer, tmp_path):
    items = [Record("ann", "fine words", {}, "row 1")]
    calls = []

    def change():
        calls.append(1)
        if len(calls) == 2:
            items.append(Record("bob", "late words", {}, "row 2"))

    with pytest.raises(ArgumentError, match="changed while they were read"):
        build_mine(Mine(items, change), make_data("x"), tokenizer, tmp_path)
    assert [p for p in (tmp_path / "cache" / "corpora").iterdir() if p.is_dir()] == []


def test_what_a_killed_build_left_behind_is_removed(posts, write_jsonl, make_data, build, tmp_path):
    corpora = tmp_path / "cache" / "corpora"
    corpora.mkdir(parents=True)
    dead, alive = (corpora / f".building-{digit * 64}-1f" for digit in "ab")
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "incoming.arrow").write_text(SECRET)
    with files.locked(corpora / f"{'b' * 64}.lock"):  # somebody is building that one
        build(make_data(write_jsonl(posts)))
    assert not dead.exists()
    assert alive.exists()


def test_a_full_disk_is_one_line(posts, write_jsonl, make_data, build, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "users.arrow")

    monkeypatch.setattr("harness.data.tables.TableWriter._flush", full)
    with pytest.raises(MachineError, match=r"^the cache .* can't be used: No space left on device$") as caught:
        build(make_data(write_jsonl(posts)))
    assert caught.value.__suppress_context__
    assert not list((tmp_path / "cache" / "corpora").glob(".building*"))


def test_a_cache_that_is_no_folder_is_one_line(posts, write_jsonl, make_data, build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="can't be used"):
        build(make_data(write_jsonl(posts)), cache_dir=tmp_path / "file" / "cache")
