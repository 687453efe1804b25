"""A source that is read in parts: what somebody changed of it holds there too."""

from __future__ import annotations

import pytest

from harness.data.sources.jsonl import Jsonl
from harness.errors import ArgumentError
from tests.data.test_preparing import content, sharded


class Loud(Jsonl):
    """Reads only what is loud: a plugin's change of which rows there are."""

    def _rows(self, path, keep, seen):
        return (one for one in super()._rows(path, keep, seen) if "!" in str(one[1].get("text")))


def test_what_a_plugin_changed_of_a_format_holds_in_parts_too(write_jsonl, make_data, build, tmp_path):
    """Break: split the file of any subclass, whose stretches the format itself would read."""
    posts = [{"user": f"u{n % 9}", "text": f"post {n}{'!' * (n % 2)}"} for n in range(300)]
    data = make_data(write_jsonl(posts), source={"type": f"{__name__}:Loud", "path": str(tmp_path / "posts.jsonl")})
    one, many = build(data), build(data, cache_dir=tmp_path / "other", sharding=sharded(6))
    assert one.n_records.sum() == 150
    assert content(many) == content(one)


def test_an_evaluation_file_that_is_wrong_is_named_by_its_own_key(make_data, build, tmp_path):
    """Break: tell a part's reader nothing of whose file it reads."""
    (tmp_path / "held.csv").write_text('"user,text\n')
    (tmp_path / "posts.csv").write_text("user,text\na,b\n")
    holdout = {"file": str(tmp_path / "held.csv"), "visibility": "public"}
    data = make_data("x", source={"type": "csv", "path": str(tmp_path / "posts.csv")}, holdout=holdout)
    for sharding in (None, sharded(2)):
        with pytest.raises(ArgumentError, match=r"^data\.holdout\.file: the first line of "):
            build(data, sharding=sharding)
