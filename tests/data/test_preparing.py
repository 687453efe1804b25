"""Preparation in parts and shards: the corpus of one process, whoever made what of it, and whoever was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import random
import stat

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from harness.data.cohorts import draw_cohort
from harness.data.preparing import Sharding, do
from harness.data.sources.base import Columns, open_source
from harness.data.sources.parts import parts_of, placed
from harness.data.sources.seen import Seen
from harness.errors import ArgumentError
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness

SECRET = "my heart is a SECRET"


def sharded(blocks, done=None, order=lambda numbers: numbers):
    """Runs the stages in this process, in the order given; `done` notes what was run."""

    def run(folder, stage, numbers):
        for number in order(list(numbers)):
            do(folder, stage, number)
            if done is not None:
                done.append((stage, number))

    @contextlib.contextmanager
    def workers():
        yield run

    return Sharding(blocks, workers)


def content(corpus):
    """Everything that can be asked of a corpus, and what its owner is told of the data."""
    users = range(corpus.n_users)
    examples = range(len(corpus.example_lengths))
    columns = ("holdout", "n_records", "n_examples", "n_tokens", "first_example", "example_lengths", "example_targets")
    return {
        **{name: getattr(corpus, name).tolist() for name in columns},
        **{name: str(getattr(corpus, name).dtype) for name in ("holdout", "first_example")},
        "held": corpus.holdout_by_order(10**6).tolist(),
        "names": [corpus.user_id(i) for i in users],
        "attributes": [corpus.attributes(i) for i in users],
        "ranges": [corpus.examples_of(i) for i in users],
        "records": [corpus.own_records(i) for i in users],
        "tokens": [corpus.tokens(i).tolist() for i in examples],
        "targets": [corpus.targets(i).tolist() for i in examples],
        "bad": corpus.bad_records,
        "problems": json.loads((corpus.folder / "problems.json").read_bytes()),
    }


FORMS = {
    "texts": {},
    "times": {"time": "at"},
    "pairs": {"text": {"prompt": "plan", "completion": "text"}, "attributes": []},
}


@pytest.mark.parametrize("blocks", [1, 2, 7, 40])
@pytest.mark.parametrize("form", FORMS)
def test_the_corpus_is_that_of_one_process(form, blocks, lines, small_runs, write_jsonl, make_data, build, tmp_path):
    """Break: sort a run by user and text; or gather the parts from the last to the first."""
    data = make_data(write_jsonl(lines), **{"attributes": ["plan"], **FORMS[form]})
    one = build(data)
    backwards = sharded(blocks, order=lambda numbers: numbers[::-1])
    many = build(data, cache_dir=tmp_path / "other", sharding=backwards)
    assert content(many) == content(one)
    assert one.bad_records == 7
    shards = json.loads((many.folder / "corpus.json").read_bytes())["shards"]
    assert blocks == 1 or len(shards) > 1
    assert len(shards) <= blocks


@pytest.mark.parametrize("form", ["parquet", "csv", "gz", "files", "folder"])
def test_every_form_of_files(form, small_runs, write_jsonl, make_data, build, tmp_path):
    """Break: count the lines of a stretch from its own beginning (`placed` without `before`)."""
    draw = random.Random(1)
    posts = [{"user": f"u{draw.randrange(30)}", "text": f"post {n} " * draw.randrange(4)} for n in range(400)]
    data = make_data(_write(form, posts, tmp_path))
    if form == "folder":
        data = make_data("unused", source={"type": "huggingface", "path": str(tmp_path / "folder")})
    if form == "parquet":
        data = make_data("unused", source={"type": "parquet", "path": str(tmp_path / "posts.parquet")})
    if form == "csv":
        data = make_data("unused", source={"type": "csv", "path": str(tmp_path / "posts.csv")})
    one, many = build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(6))
    assert one.bad_records > 50
    assert content(many) == content(one)
    splits = {"parquet": 7, "csv": 1, "gz": 1, "files": 7, "folder": 7}[form]
    assert len(parts_of(open_source(data, tmp_path), 6)) in range(min(splits, 5), splits + 1)


def _write(form, posts, tmp_path):
    rows = "".join(json.dumps(post) + "\n" for post in posts)
    if form == "parquet":
        table = pa.table({name: [post[name] for post in posts] for name in ("user", "text")})
        parquet.write_table(table, tmp_path / "posts.parquet", row_group_size=30)
    elif form == "csv":
        lines = "".join(f'{post["user"]},"{post["text"]}"\n' for post in posts)
        (tmp_path / "posts.csv").write_text("user,text\n" + lines)
    elif form == "gz":
        (tmp_path / "posts.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
        return tmp_path / "posts.jsonl.gz"
    elif form == "files":
        for start in range(0, 400, 25):
            (tmp_path / f"posts-{start:03d}.jsonl").write_text("".join(rows.splitlines(True)[start : start + 25]))
        return tmp_path / "posts-*.jsonl"
    else:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "train.jsonl").write_text(rows)
    return "unused"


def test_a_chat_and_answers_that_are_shortened(small_runs, write_jsonl, make_data, build, tokenizer, tmp_path):
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    turns = [
        [{"role": "user", "content": f"question {n} {'x' * (n % 50)}"}, {"role": "assistant", "content": f"answer {n}"}]
        for n in range(120)
    ]
    turns[5] = [{"role": "assistant", "content": "nobody asked"}]
    data = make_data(
        write_jsonl([{"user": f"u{n % 7}", "messages": t} for n, t in enumerate(turns)]), messages="messages"
    )
    one, many = build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(3))
    assert content(one)["problems"]["shortened_answers"]["total"] > 10
    assert content(many) == content(one)


def test_an_evaluation_file_whose_users_are_not_trained_on(lines, small_runs, write_jsonl, make_data, build, tmp_path):
    """Break: take whoever was seen before, also in the evaluation file, for trained on."""
    other = [{"user": f"üser {n}" if n % 2 else f"eve {n % 5}", "text": f"t {n}", "plan": "free"} for n in range(90)]
    other[10], other[33]["text"] = "{", ""
    write_jsonl(other, "held.jsonl")
    holdout = {"file": str(tmp_path / "held.jsonl"), "visibility": "public"}
    data = make_data(write_jsonl(lines), attributes=["plan"], holdout=holdout)
    one, many = build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(5))
    assert content(many) == content(one)
    assert one.holdout.sum() > 4
    assert any(
        bad["where"].startswith("evaluation file, line") for bad in content(one)["problems"]["bad_records"]["listed"]
    )


def test_a_column_that_no_part_has_is_named_as_by_one_process(write_jsonl, make_data, build, tmp_path):
    data = make_data(write_jsonl([{"user": "a", "txt": f"text {n}"} for n in range(50)]))
    said = []
    for sharding in (None, sharded(4)):
        with pytest.raises(ArgumentError) as caught:
            build(data, sharding=sharding)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert 'did you mean "txt"' in said[0]
    assert not list((tmp_path / "cache" / "corpora").glob(".*"))  # nothing will come of it


def test_the_engine_is_no_part_of_a_corpus(posts, write_jsonl, make_data, build):
    data, done = make_data(write_jsonl(posts)), []
    many = build(data, sharding=sharded(3, done))
    assert {stage for stage, _ in done} == {"part", "shard"}
    assert build(data).folder == many.folder
    build(data, sharding=sharded(2, done))
    assert len(done) == 6


# --- going on -----------------------------------------------------------------------------------------------


class _KilledError(BaseException):
    pass


def killed_after(left):
    """Runs the stages until it is killed, in the middle of one."""

    def run(folder, stage, numbers):
        for number in numbers:
            if not left:
                (folder / "parts" / ".part-00009-ff").mkdir(mode=0o700)
                raise _KilledError
            do(folder, stage, number)
            left.pop()

    @contextlib.contextmanager
    def workers():
        yield run

    return Sharding(4, workers)


@pytest.mark.parametrize("survived", [0, 2, 4, 5])
def test_what_was_finished_before_a_kill_is_kept(survived, lines, small_runs, write_jsonl, make_data, build, tmp_path):
    """Break: begin with an empty workplace."""
    data, done = make_data(write_jsonl(lines)), []
    with pytest.raises(_KilledError):
        build(data, sharding=killed_after([1] * survived))
    many = build(data, sharding=sharded(4, done))
    assert content(many) == content(build(data, cache_dir=tmp_path / "other"))
    every = 4 + len(json.loads((many.folder / "corpus.json").read_bytes())["shards"])
    assert len(done) == every - survived
    assert [path.name for path in many.folder.parent.glob(".*")] == []


def test_shards_that_began_elsewhere_are_made_again(
    lines, small_runs, write_jsonl, make_data, build, tmp_path, monkeypatch
):
    """Another version may cut otherwise. Break: keep what is intact, wherever it began: users twice, or not at all."""
    data = make_data(write_jsonl(lines))

    def killed(*_):
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr("harness.data.preparing.MOST_SHARDS", 1)
        patch.setattr("harness.data.preparing.finish", killed)
        with pytest.raises(_KilledError):
            build(data, sharding=sharded(4))
    many = build(data, sharding=sharded(4))
    assert content(many) == content(build(data, cache_dir=tmp_path / "other"))


def test_without_locks_nobody_shares_a_workplace(posts, write_jsonl, make_data, build, monkeypatch):
    """Break: prepare in shards whether the lock is held or not."""

    @contextlib.contextmanager
    def unlocked(path, wait=True):
        yield False

    monkeypatch.setattr("harness.data.corpus.locked", unlocked)
    done = []
    assert build(make_data(write_jsonl(posts)), sharding=sharded(3, done)).n_users == 40
    assert not done


def test_what_is_damaged_is_made_again(lines, small_runs, write_jsonl, make_data, build, tmp_path):
    """Break: `intact` looks whether there is a manifest, and no further."""
    data, done = make_data(write_jsonl(lines)), []
    with pytest.raises(_KilledError):
        build(data, sharding=killed_after([1] * 5))
    (workplace,) = (tmp_path / "cache" / "corpora").glob(".preparing-*")
    path = workplace / "parts" / "part-00002" / "rows.arrow"
    rows = bytearray(path.read_bytes())
    rows[len(rows) // 2] ^= 1
    path.write_bytes(rows)
    many = build(data, sharding=sharded(4, done))
    assert ("part", 2) in done
    assert ("part", 1) not in done
    assert content(many) == content(build(data, cache_dir=tmp_path / "other"))


def test_other_blocks_and_files_that_were_written_to_begin_anew(lines, write_jsonl, make_data, build, tmp_path):
    data, done = make_data(write_jsonl(lines)), []
    for blocks in (4, 3):
        with pytest.raises(_KilledError):
            build(data, sharding=dataclasses.replace(killed_after([1] * 2), blocks=blocks))
    os.utime(tmp_path / "posts.jsonl")
    build(data, sharding=sharded(3, done))
    assert [number for stage, number in done if stage == "part"] == [0, 1, 2]


def test_a_workplace_is_kept_for_a_week(posts, write_jsonl, make_data, build, tmp_path):
    corpora = tmp_path / "cache" / "corpora"
    old, young = (corpora / f".preparing-{digit * 64}" for digit in "ab")
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "rows").write_text(SECRET)
    os.utime(old, (0, 0))
    build(make_data(write_jsonl(posts)))
    assert not old.exists()
    assert young.exists()


def test_everything_is_its_owners_alone(lines, small_runs, write_jsonl, make_data, build, tmp_path):
    data = make_data(write_jsonl(lines))
    with pytest.raises(_KilledError):
        build(data, sharding=killed_after([1] * 5))
    (workplace,) = (tmp_path / "cache" / "corpora").glob(".preparing-*")
    for path in [workplace, *workplace.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- large --------------------------------------------------------------------------------------------------


def test_one_user_with_nearly_all_records(make_data, build, tmp_path):
    path = tmp_path / "posts.jsonl"
    with path.open("w") as file:
        for n in range(21_000):
            file.write(json.dumps({"user": f"u{n}" if n % 21 == 0 else "loud", "text": f"{n % 100}"}) + "\n")
    data = make_data(path, max_tokens=64)
    one, many = build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(5))
    names = [many.user_id(i) for i in range(many.n_users)]
    assert many.n_records[names.index("loud")] == 20_000
    assert [names, many.n_records.tolist()] == [[one.user_id(i) for i in range(one.n_users)], one.n_records.tolist()]
    assert many.example_lengths.tolist() == one.example_lengths.tolist()
    assert all(np.array_equal(many.tokens(e), one.tokens(e)) for e in range(len(one.example_lengths)))


def test_a_cohort_drawn_from_shards_is_the_one_drawn_from_one_table(
    lines, small_runs, write_jsonl, make_data, build, tmp_path
):
    data = make_data(write_jsonl(lines))
    group = GroupMechanism("all", 40.0, 0.5, 0.5, 9, 3)
    mechanism, randomness = Mechanism(9, 0.5, (group,), "zero_out"), Randomness(bytes(32))
    drawn = []
    for corpus in (build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(5))):
        units = draw_cohort(mechanism, (corpus.users(holdout=False),), corpus, randomness, 4)
        drawn.append([(unit, [corpus.tokens(e).tolist() for e in unit.examples]) for unit in units])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) > 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([b"", b'{"user": "a", "text": "b"}', b"{", b"  ", b"x" * 70, b'{"text": 1}']), max_size=30
    ),
    st.integers(1, 200),
    st.booleans(),
)
def test_stretches_of_lines_are_the_file(make_data, tmp_path, raw, most, ended):
    """Break: begin a stretch where the bytes fall, and not with the line after."""
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(raw) + b"\n" * ended)
    data = make_data(path)
    source, columns = open_source(data, tmp_path), Columns.of(data)
    whole = list(source.records_in(path, "", None, columns, Seen()))
    spans = source.spans(path, most)
    before, found = 0, []
    for span in spans or [None]:
        seen = Seen()
        for record in source.records_in(path, "", span, columns, seen):
            found.append(dataclasses.replace(record, where=placed(record.where, before)))
        before += seen.lines
    assert found == whole
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
