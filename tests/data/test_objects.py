"""Records that lie in an object store: the corpus is that of the same files here, and what goes wrong is one line."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.data import guessing
from harness.data.sources.base import open_source
from harness.data.sources.objects import ObjectFile, locate_objects
from harness.errors import ArgumentError, MachineError
from tests.data.test_preparing import content, sharded
from tests.s3 import store

PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": pa.compress}


def put(s3, path, key, ending=""):
    raw = path.read_bytes()
    whole = pa.compress(raw, "zstd", asbytes=True) if ending == ".zst" else PACKED[ending](raw)
    s3.objects[f"/bucket/{key}{ending}"] = whole


@pytest.mark.parametrize("ending", PACKED)
def test_lines(ending, lines, small_runs, write_jsonl, make_data, build, tmp_path, s3):
    """Read by one process, and in parts by several. Break: decompress by the name of the bucket."""
    path = write_jsonl(lines)
    put(s3, path, "team one/posts.jsonl", ending)
    here, there = make_data(path), make_data(s3.url(f"bucket/team one/posts.jsonl{ending}"))
    one = build(here)
    assert content(build(there, cache_dir=tmp_path / "single")) == content(one)
    many = build(there, cache_dir=tmp_path / "many", sharding=sharded(7))
    assert content(many) == content(one)
    assert "hunter2" not in str(content(many))


@pytest.mark.parametrize("kind", ["parquet", "csv", "huggingface"])
def test_tables(kind, posts, make_data, build, tmp_path, s3):
    table = pa.Table.from_pylist(posts)
    path = tmp_path / f"posts.{'csv' if kind == 'csv' else 'parquet'}"
    if kind == "csv":
        from pyarrow import csv

        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path, row_group_size=7)
    put(s3, path, path.name)
    here = make_data(path, source={"type": kind, "path": str(path)})
    there = make_data(path, source={"type": kind, "path": s3.url(f"bucket/{path.name}")})
    many = build(there, cache_dir=tmp_path / "many", sharding=sharded(5))
    assert content(many) == content(build(here))


def at(file):
    return {"file": file, "visibility": "public"}


def test_several_objects_beside_files(posts, write_jsonl, make_data, build, tmp_path, s3):
    """In the order of their names; the file of held-out users may lie there as well."""
    half = len(posts) // 2
    first, second = write_jsonl(posts[:half], "a.jsonl"), write_jsonl(posts[half:], "b.jsonl")
    held = write_jsonl([{"user": "other", "text": "held out"}], "held.jsonl")
    for key, path in (("x/a.jsonl", first), ("x/b.jsonl", second), ("x/deep/c.jsonl", held), ("held.jsonl", held)):
        put(s3, path, key)
    here = make_data("", source={"type": "jsonl", "path": [str(first), str(second)]}, holdout=at(str(held)))
    paths = [s3.url("bucket/x/*.jsonl"), str(second)]
    there = make_data("", source={"type": "jsonl", "path": paths[0]}, holdout=at(s3.url("bucket/held.jsonl")))
    assert content(build(there, cache_dir=tmp_path / "other")) == content(build(here))
    mixed = open_source(make_data("", source={"type": "jsonl", "path": paths}), tmp_path)
    assert next(prefix for _, prefix in mixed.prefixes()).endswith("bucket/x/a.jsonl ")
    same = make_data("", source={"type": "jsonl", "path": paths[0]}, holdout=at(s3.url("bucket/x/b.jsonl")))
    with pytest.raises(ArgumentError, match=r"is among the files of data\.source"):
        open_source(same, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("x/*.jsonl", ["x/1.jsonl", "x/[2].jsonl"]),
        ("x/[0-9].jsonl", ["x/1.jsonl"]),
        ("x/[!0-9]*", ["x/[2].jsonl", "x/z.csv"]),
        ("**/*.jsonl", ["x/1.jsonl", "x/[2].jsonl", "x/y/3.jsonl"]),
        ("x/**", ["x/1.jsonl", "x/[2].jsonl", "x/y/3.jsonl", "x/z.csv"]),
        ("*/y/*", ["x/y/3.jsonl"]),
        ("x/[[]*", ["x/[2].jsonl"]),
        ("x/[]1]*", ["x/1.jsonl"]),
        ("x/1.jsonl", ["x/1.jsonl"]),
    ],
)
def test_globs(pattern, found, s3):
    for name in ("x/1.jsonl", "x/[2].jsonl", "x/y/3.jsonl", "x/z.csv"):
        s3.objects[f"/bucket/{name}"] = b"{}"
    located = [ObjectFile(url, "k") for url in locate_objects(s3.url(f"bucket/{pattern}"), "k")]
    assert [str(one) for one in located] == [f"s3://bucket/{name}" for name in found]
    assert all(one.exists() and one.stat().st_size == 2 for one in located)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("bucket/none.jsonl", "there is no object s3://bucket/none.jsonl"),
        ("bucket/none/*", r"no object matches s3://bucket/none/\*"),
        ("bucket/x", r"s3://bucket/x is a folder, not a file \(for all of its files: s3://bucket/x/\*\)"),
        ("bucket/x/[z-a]*", r"no object matches s3://bucket/x/\[z-a\]\*"),
        ("bucket/x/", r"s3://bucket/x is a folder, not a file"),
        ("bucket", "names no object of the bucket"),
        ("AKIA:hunter2@bucket/x", "holds a key"),
    ],
)
def test_what_is_not_there(given, problem, make_data, tmp_path, s3):
    s3.objects["/bucket/x/1.jsonl"] = b"{}"
    with pytest.raises(ArgumentError, match=f"^data.source.path: .*{problem}") as raised:
        open_source(make_data(s3.url(given)), tmp_path)
    assert "hunter2" not in str(raised.value)


def test_a_refusal_is_one_line(posts, write_jsonl, make_data, build, tmp_path, s3):
    """Also one in the middle. Break: let what pyarrow says pass."""
    put(s3, write_jsonl(posts), "posts.jsonl")
    data = make_data(s3.url("bucket/posts.jsonl"))
    source = open_source(data, tmp_path)
    s3.refused = True
    for what in (lambda: open_source(data, tmp_path), lambda: next(source.files[0].open().readlines())):
        with pytest.raises(
            MachineError, match=r"^data.source.path: s3://bucket/posts.jsonl can't be read: access denied$"
        ):
            what()


def test_init_looks_at_objects(posts, write_jsonl, s3):
    put(s3, write_jsonl(posts), "posts.jsonl", ".gz")
    found = guessing.guess(s3.url("bucket/posts.jsonl.gz"))
    assert (found.source["type"], found.user, found.text) == ("jsonl", "user", "text")


def test_texts_are_asked_for_in_large_pieces(make_data, build, tmp_path, s3):
    """Break: let a text wrapper ask for its 8 KiB."""
    path = tmp_path / "posts.csv"
    path.write_text("user,text\n" + "".join(f"u{n % 50},{'word ' * 9}{n}\n" for n in range(5000)))
    put(s3, path, "posts.csv")
    build(make_data(path, source={"type": "csv", "path": s3.url("bucket/posts.csv")}))
    assert 0 < sum("bytes=" in line for line in s3.asked) <= 6


def test_other_stores_have_other_objects(posts, write_jsonl, make_data, tmp_path, s3):
    """And one object is one, however it is written. Break: tell them apart by bucket and key, or by the whole URL."""
    put(s3, write_jsonl(posts), "posts.jsonl")
    given = s3.url("bucket/posts.jsonl")
    twice = [given, given.replace("us-east-1", "us-west-2"), given.replace("s3://", "S3://")]
    assert len(open_source(make_data("", source={"type": "jsonl", "path": twice}), tmp_path).files) == 1
    with store() as other:
        put(other, write_jsonl(posts), "posts.jsonl")
        both = make_data(given, holdout=at(other.url("bucket/posts.jsonl")))
        assert open_source(both, tmp_path).evaluation.files[0].exists()


def test_other_urls_are_refused_unquoted(make_data, tmp_path):
    with pytest.raises(ArgumentError, match="only those of objects") as raised:
        open_source(make_data("gs://me:hunter2@bucket/x"), tmp_path)
    assert "hunter2" not in str(raised.value)
