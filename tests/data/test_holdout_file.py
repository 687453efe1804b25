"""A separate evaluation file: its users are public, and nobody who is trained on is among them."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.data.groups import public_counts
from harness.data.sources.base import Columns, open_source
from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.plugins import segmentation
from harness.privacy.guarantee import Guarantee
from tests.plans import posts as made_posts
from tests.plans import write_spec

TRAIN = [{"user": "ann", "text": "one", "plan": "free"}, {"user": "bob", "text": " ", "plan": "paid"}]
HELD = [
    {"user": "cat", "text": "two", "plan": "paid"},
    {"user": "ann", "text": "SECRET", "plan": "paid"},
    {"user": "bob", "text": "SECRET", "plan": "paid"},
]


@pytest.fixture
def data(write_jsonl, make_data):
    held = write_jsonl(HELD, "held.jsonl")
    return make_data(write_jsonl(TRAIN), attributes=["plan"], holdout={"file": str(held), "visibility": "public"})


def test_only_users_who_are_not_trained_on_are_held_out(data, build, tmp_path):
    """Break: take every record of the evaluation file, and ann's text is published; bob counts as trained on too."""
    made = build(data)
    assert [made.user_id(u) for u in made.users(holdout=True)] == ["cat"]
    assert [made.user_id(u) for u in made.users(holdout=False)] == ["ann", "bob"]
    assert made.own_records(0).texts == ("one",)
    assert made.attributes(0) == {"plan": "free"}  # what the other file says of ann changes nothing
    reason = "its user is trained on, so this record would cost them their protection"
    listed = json.loads((tmp_path / "private" / "data.json").read_text())["bad_records"]["listed"]
    assert listed[1:] == [
        {"where": f"evaluation file, line {n}", "reason": reason, "user": u} for n, u in ((2, "ann"), (3, "bob"))
    ]
    assert "SECRET" not in "".join(path.read_text(errors="replace") for path in made.folder.iterdir())


def test_plan_and_corpus_count_the_same(data, tmp_path):
    rule = segmentation.build("attribute", {"column": "plan"})
    counts = public_counts(open_source(data, tmp_path), Columns.of(data), data, rule)
    assert (counts.users_train, counts.users_holdout) == (2, 1)
    assert {name: n for name, n in counts.segments.items() if n} == {"free": 1, "paid": 1}


def test_another_evaluation_file_is_another_corpus(data, build, write_jsonl):
    first = build(data).fingerprint
    write_jsonl(HELD[:1], "held.jsonl")
    assert build(data).fingerprint != first


@pytest.mark.parametrize(
    ("source", "file", "message"),
    [
        (None, "nowhere.jsonl", r"^data\.holdout\.file: there is no file nowhere\.jsonl$"),
        (None, "posts.jsonl", "is among the files of data.source"),
        ({"type": "shakespeare"}, "posts.jsonl", "reads no files; give data.holdout.users"),
    ],
)
def test_a_file_that_can_not_be_it_is_refused(source, file, message, write_jsonl, make_data, tmp_path):
    changes = {"source": source} if source else {}
    made = make_data(write_jsonl(TRAIN), holdout={"file": file, "visibility": "public"}, **changes)
    with pytest.raises(ArgumentError, match=message):
        open_source(made, tmp_path)


def test_the_guarantee_names_the_evaluation_file(tmp_path):
    (tmp_path / "held.jsonl").write_text(json.dumps({"user": "x", "text": "y", "plan": "free"}) + "\n")
    holdout = {"file": "held.jsonl", "visibility": "public", "users": None}
    changes = {"holdout": holdout, "population": "public"}
    plan = make_plan(write_spec(tmp_path, made_posts(), data=changes))
    assert isinstance(plan.guarantee, Guarantee)
    assert plan.guarantee.document("running", 0)["holdout"] == {"fraction": None, "file": True, "visibility": "public"}
    assert plan.guarantee.not_covered()[0].startswith("The users of the evaluation file")
    assert (plan.population.users, plan.population.holdout_users) == (40, 1)
    assert any("gave up protection" in note for note in plan.notes())


def write_as(path, rows):
    """The rows in the format that the file's name says; returns the source's type."""
    type_ = path.name.split(".")[1]
    if type_ == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif type_ == "csv":
        text = "user;text;plan\n" + "".join(f"{r['user']};{r['text']};{r['plan']}\n" for r in rows)
        path.write_bytes(text.encode("cp1252"))
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return type_


@pytest.mark.parametrize("name", ["jsonl", "jsonl.gz", "csv", "parquet", "huggingface"])
def test_every_format_takes_one_and_its_errors_carry_its_key(name, make_data, tmp_path):
    """Break: leave `data.source.path` in the errors of the other file."""
    endings = name.replace("huggingface", "jsonl")
    train, held = tmp_path / f"train.{endings}", tmp_path / f"held.{endings}"
    type_ = write_as(train, [{**TRAIN[0], "text": "caf\xe9"}])
    write_as(held, [{**HELD[0], "text": "caf\xe9"}])
    more = {"delimiter": ";", "encoding": "cp1252"} if type_ == "csv" else {}
    block = {"type": "huggingface" if name == "huggingface" else type_, "path": train.name, **more}
    data = make_data("x", source=block, holdout={"file": held.name, "visibility": "public"})

    def read():
        records = open_source(data, tmp_path).evaluation.records(Columns.of(data))
        return [(record.user, getattr(record, "text", None)) for record in records]

    assert read() == [("cat", "caf\xe9")]
    for content in (b"", b"\x81\x00\n" * 9):
        held.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"^data\.holdout\.file: .*held") as caught:
            read()
        assert "data.source.path" not in str(caught.value)
    held.unlink()
    with pytest.raises(ArgumentError, match=r"^data\.holdout\.file: there is no file held"):
        read()
