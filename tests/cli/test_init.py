"""``uudp init``: the guesses, the file that it writes, and what it never tells."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from harness.cli import main
from harness.data.guessing import guess
from harness.errors import ArgumentError
from harness.planning import make_plan

SECRET = "zebraQX"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(users: int = 90, each: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "id": u * each + p,
            "customer_id": f"{SECRET}-{u}",
            "region": "eu" if u % 3 else SECRET,
            "mood": "good" if p % 2 else "bad",  # not constant per user: no attribute
            "body": f"{SECRET} wrote this text number {p}",
        }
        for u in range(users)
        for p in range(each)
    ]


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def delimited(records: list[dict[str, Any]], delimiter: str = ",", *, spaces: str = "") -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow([f"{spaces}{name}{spaces}" for name in records[0]])
    writer.writerows(record.values() for record in records)
    return text.getvalue()


def parquet_bytes(records: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    return bytes(sink.getvalue().to_pybytes())


def odd(text: str) -> list[dict[str, Any]]:
    """The same rows, every text with line breaks, quotes and a letter beyond ASCII."""
    return [{**row, "body": f'{row["body"]}\n"{text}", he said; or\tnot'} for row in rows()]


def chats() -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": SECRET}, {"role": "assistant", "content": SECRET}]
    return [{"customer_id": row["customer_id"], "region": row["region"], "talk": turns} for row in rows()]


def pairs() -> list[dict[str, Any]]:
    return [{"customer_id": r["customer_id"], "Question": r["body"], "answer": SECRET, "id": r["id"]} for r in rows()]


def numbered() -> list[dict[str, Any]]:
    """Users as pandas writes whole numbers with gaps."""
    return [{**row, "customer_id": float(n // 4) if n % 50 else None} for n, row in enumerate(rows())]


TEXT = {"user": "customer_id", "text": "body"}
MESSAGES = {"user": "customer_id", "messages": "talk"}
PAIR = {"user": "customer_id", "text": {"prompt": "Question", "completion": "answer"}}
# file → content; what --data says; what more the source must say; what the spec says of the columns.
FORMS: dict[str, tuple[dict[str, bytes], str, dict[str, str], dict[str, Any]]] = {
    "jsonl": ({"mail.jsonl": jsonl(rows())}, "mail.jsonl", {"type": "jsonl"}, TEXT),
    "jsonl.gz": ({"mail.jsonl.gz": gzip.compress(jsonl(rows()))}, "mail.jsonl.gz", {"type": "jsonl"}, TEXT),
    "json.bz2": ({"mail.json.bz2": bz2.compress(jsonl(rows()))}, "mail.json.bz2", {"type": "jsonl"}, TEXT),
    "csv": ({"mail.csv": delimited(odd("é")).encode()}, "mail.csv", {"type": "csv"}, TEXT),
    "csv, byte-order mark": ({"mail.csv": delimited(odd("é")).encode("utf-8-sig")}, "mail.csv", {"type": "csv"}, TEXT),
    "csv, semicolons, cp1252": (
        {"mail.csv": delimited(odd("é"), ";").encode("cp1252")},
        "mail.csv", {"type": "csv", "delimiter": ";", "encoding": "cp1252"}, TEXT,
    ),
    "tsv.xz, utf-16": (
        {"mail.tsv.xz": lzma.compress(delimited(odd("é"), "\t").encode("utf-16"))},
        "mail.tsv.xz", {"type": "csv", "delimiter": "\t", "encoding": "utf-16"}, TEXT,
    ),
    "csv, pipes, utf-16 without a mark": (
        {"mail.csv": delimited(odd("é"), "|").encode("utf-16-le")},
        "mail.csv", {"type": "csv", "delimiter": "|", "encoding": "utf-16-le"}, TEXT,
    ),
    "csv, spaces in the header": (
        {"mail.csv": delimited(rows(), spaces=" ").encode()}, "mail.csv", {"type": "csv"}, TEXT
    ),
    "csv, users with gaps": ({"mail.csv": delimited(numbered()).encode()}, "mail.csv", {"type": "csv"}, TEXT),
    "parquet, users with gaps": (
        {"mail.parquet": parquet_bytes(numbered())}, "mail.parquet", {"type": "parquet"}, TEXT
    ),
    "parquet, messages": ({"mail.parquet": parquet_bytes(chats())}, "mail.parquet", {"type": "parquet"}, MESSAGES),
    "jsonl, messages": ({"mail.jsonl": jsonl(chats())}, "mail.jsonl", {"type": "jsonl"}, MESSAGES),
    "csv, pairs": ({"mail.csv": delimited(pairs()).encode()}, "mail.csv", {"type": "csv"}, PAIR),
    "a glob": (
        {"mail/a.jsonl": jsonl(rows()[:180]), "mail/b.jsonl": jsonl(rows()[180:])},
        "mail/*.jsonl", {"type": "jsonl"}, TEXT,
    ),
    "a folder": (
        {"mail/train.jsonl": jsonl(rows()), "mail/test.jsonl": b"no row"}, "mail", {"type": "huggingface"}, TEXT
    ),
    "a folder of one split": (
        {"mail/test-0.parquet": parquet_bytes(rows())}, "mail", {"type": "huggingface", "split": "test"}, TEXT
    ),
    "a folder of csv files": (
        {"mail/a.csv": delimited(rows(), ";").encode()},
        "mail", {"type": "csv", "path": "mail/*", "delimiter": ";"}, TEXT,
    ),
}  # fmt: skip


def init(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main.run_app(["init", *arguments])
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gets_a_spec_that_plans(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And neither prints nor writes a value. Break: write the values of the attributes into the comment."""
    files, given, source, columns = FORMS[form]
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    code, said = init(capsys, "--data", given)
    assert code == 0, said
    written = Path("mail.yaml").read_text()
    block = yaml.safe_load(written)["data"]
    assert block["source"] == {"path": given, **source}
    assert {key: block[key] for key in ("user", "text", "messages") if key in block} == columns
    assert block["attributes"] == []  # what is public is for the user to say
    assert ("(?) few values, and one per user: region;" in written) == (columns is not PAIR and "gaps" not in form)
    assert ("the encoding is a guess" in written) == ("cp1252" in form or "without" in form)
    assert "mood" not in written
    assert SECRET not in written + said
    assert all(len(line) <= 120 for line in written.splitlines())
    assert main.run_app(["validate", "mail.yaml"]) == 0
    plan = make_plan("mail.yaml", ["privacy.accountant=rdp", "train.steps=2"])  # another test plans it as written
    assert plan.population.users + (plan.population.holdout_users or 0) == 90


def test_what_a_starter_says_does_not_depend_on_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The starter is not covered by the guarantee. Break: derive δ or the cohort from the number of users."""
    specs = []
    for users in (400, 3):
        Path("mail.jsonl").write_bytes(jsonl(rows(users)))
        assert init(capsys, f"s{users}", "--data", "mail.jsonl", "--user", "customer_id", "--text", "body")[0] == 0
        text = Path(f"s{users}.yaml").read_text().replace(f"s{users}", "s")
        specs.append([line for line in text.splitlines() if "region" not in line and "attributes" not in line])
    assert [line for line in specs[0] if "expected:" in line or "delta:" in line] == [
        line for line in specs[1] if "expected:" in line or "delta:" in line
    ]
    with pytest.raises(
        ArgumentError, match=r"sampling\.expected: 64 users per step, but there are \d to train on; give"
    ):
        make_plan("s3.yaml")


def test_the_spec_validates_and_plans_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mail.jsonl").write_bytes(jsonl(rows()))
    assert init(capsys, "first", "--data", "mail.jsonl")[0] == 0
    plan = make_plan("first.yaml")
    assert plan.spec.name == "first"
    assert plan.guarantee.total == pytest.approx(8, abs=1e-2)
    # The commented lines are right, too: a public column, an ε per value.
    text = Path("first.yaml").read_text().replace("attributes: []", "attributes: [region]")
    text = text.replace("noise: {type: uniform}", "#").replace("# segmentation:", "segmentation:")
    text = (
        text.replace("# noise: {type: scale", "noise: {type: scale")
        .replace("ONE VALUE", "eu")
        .replace("ANOTHER", SECRET)
    )
    Path("grouped.yaml").write_text(text)
    assert {g.name for g in make_plan("grouped.yaml").mechanism.groups} == {"eu", SECRET}


def test_without_data_it_is_a_valid_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    assert init(capsys)[0] == 0
    assert main.run_app(["validate", "my-run.yaml"]) == 0


def test_it_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("mine")
    code, said = init(capsys, "a")
    assert (code, Path("a.yaml").read_text()) == (2, "mine")
    assert said == "uudp: a.yaml exists already, and is left as it is; give another NAME\n"


def test_awkward_names_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """Break: write column names as they are."""
    names = {"user": "the: user §", "text": "no"}
    lines = [
        {names["user"]: u % 7, names["text"]: "some longer text here", "yes": "x" if u % 7 else "y"} for u in range(60)
    ]
    Path("odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert init(capsys, "--data", "odd.jsonl", "--user", names["user"])[0] == 0
    document = yaml.safe_load(Path("odd.yaml").read_text())
    assert (document["data"]["user"], document["data"]["text"]) == (names["user"], names["text"])
    assert main.run_app(["validate", "odd.yaml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mail.txt"], "ends in none of .jsonl"),
        (["--data", "nothing.csv"], "--data: there is no file nothing.csv"),
        (
            ["--data", "some/set"],
            "--data: there is no file or folder some/set; a data set on the hub is downloaded first",
        ),
        (["--data", "*.nothing"], "--data: no file matches *.nothing"),
        (["--data", "[eam]*"], "--data: the name of mail.txt ends in none of"),
        (["--data", "*l*.*s*"], "are files of several kinds (csv, jsonl); name those of one"),
        (["--data", "ragged.csv"], "has no row that can be used (line 2: the row has 3 values, the header 2)"),
        (["--data", "sharegpt.jsonl"], "no column looks like a text (there are: user, talk); say --text"),
        (["--data", "hollow"], "hollow holds no data files"),
        (["--data", "bare.csv"], "--data: the first line of bare.csv seems to be a record; put a header above it"),
        (["--data", "twice.csv"], 'twice.csv has several columns "text"'),
        (["--data", "one.csv"], "no column looks like a user, who comes more than once; say --user"),
        (["--data", "array.json"], "is a JSON object in UTF-8; where it is one JSON array, put each of its objects on"),
        (["--data", "wide.jsonl"], "--data: wide.jsonl is utf-16, and JSON Lines must be UTF-8; convert it"),
        (["--data", "mail.jsonl", "--text", "id"], '--text: the column "id" holds neither texts nor messages'),
        (["--data", "cut.csv.gz"], "cut.csv.gz can't be read (it is damaged, or not compressed as its name says)"),
        (["--data", "again.parquet.gz"], "is a Parquet file compressed once more"),
        (["--data", "mail.jsonl", "--user", "custumer_id"], 'no column "custumer_id"; did you mean "customer_id"?'),
        (["--data", "mail.jsonl", "--user", "body", "--text", "body"], "are the same column"),
        (["--data", "broken.parquet"], "broken.parquet is not a Parquet file, or is damaged"),
        (["--data", "empty.csv"], "empty.csv has no records"),
        (["--data", "alone.jsonl"], "no column looks like a user"),
        (["../x"], 'NAME: "../x" must be letters'),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mail.jsonl").write_bytes(jsonl(rows()))
    Path("mail.txt").write_text("x")
    Path("empty.csv").write_text("")
    Path("broken.parquet").write_text(SECRET)
    Path("hollow").mkdir()
    Path("also.csv").write_text("user,text\n")
    Path("bare.csv").write_text("".join(f"{SECRET},what {SECRET} wrote {n}\n" for n in range(3)))
    Path("twice.csv").write_text(f"user,text,text\na,{SECRET},b\na,{SECRET},c\n")
    Path("ragged.csv").write_text(f"user,text\na,{SECRET}, {SECRET}\n")
    Path("sharegpt.jsonl").write_bytes(jsonl([{"user": "ann", "talk": [{"from": "gpt", "value": SECRET}]}] * 3))
    Path("one.csv").write_text(f"text\n{SECRET}\n")
    Path("array.json").write_text(json.dumps(rows()))
    Path("wide.jsonl").write_text(json.dumps(rows()[0]), encoding="utf-16")
    Path("cut.csv.gz").write_bytes(gzip.compress(delimited(rows()).encode())[:-20])
    Path("again.parquet.gz").write_bytes(gzip.compress(parquet_bytes(rows())))
    Path("alone.jsonl").write_text(json.dumps({"what": SECRET}) + "\n")
    code, said = init(capsys, *arguments)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert SECRET not in said
    assert not list(Path().glob("*.yaml"))


def test_a_user_without_a_telling_name_is_the_one_that_repeats() -> None:
    lines = [
        {"key": n, "who": f"w{n % 30}", "kind": "ab"[n % 2], "what": "a longer text than the others"}
        for n in range(300)
    ]
    Path("x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = guess("x.jsonl")
    assert (found.user, found.text, found.attributes, found.repeats) == ("who", "what", ("kind",), True)


@pytest.mark.parametrize(
    ("columns", "user", "runner_up"),
    [
        ({"user_id": 300, "account_type": 3}, "user_id", "account_type"),
        ({"uid": 300, "country_region": 3}, "uid", None),
        ({"account_type": 3, "AuthorID": 300}, "AuthorID", "account_type"),
        ({"sender": 2, "customer_id": 30}, "customer_id", "sender"),
        ({"user_type": 3, "who": 30}, "who", "user_type"),
        ({"user": 5, "user_agent": 40}, "user", "user_agent"),  # sorted by user, there may be few in the first rows
        ({"parent_author": 60, "id_author": 50}, "id_author", "parent_author"),
    ],
)
def test_who_wrote_it_is_told_by_plain_names_first(
    columns: dict[str, int], user: str, runner_up: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where users come once each. Break: a name that holds a telling word weighs as much as that word."""
    lines = [{**{c: f"{n % k}" for c, k in columns.items()}, "text": "longer than the others"} for n in range(300)]
    Path("x.jsonl").write_bytes(jsonl(lines))
    assert init(capsys, "--data", "x.jsonl")[0] == 0
    written = Path("x.yaml").read_text()
    assert yaml.safe_load(written)["data"]["user"] == user
    assert (f"(or is it {runner_up}?)" in " ".join(written.split())) == (runner_up is not None)
    assert ("or is it" in written) == (runner_up is not None)
    assert not [line for line in written.splitlines()[5:] if "#  " in line]


def timed(column: str, values: list[Any]) -> list[dict[str, Any]]:
    return [row | {column: values[i % len(values)]} for i, row in enumerate(rows(users=30))]


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("created_at", ["2026-01-31T12:00:00Z", "2026-02-01T12:00:00Z", None], True),
        ("when", ["2026-01-31 12:00", "2026-02-01 12:00", "2026-02-03 12:00"], True),
        ("sentDate", ["2026-01-31", "2026-02-01", ""], True),
        ("timestamp", [1_769_860_800, 1_769_860_801, 1_769_860_900], True),
        ("timestamp", [1_769_860_800_000, 1_769_860_801_000, 1_769_860_900_000], False),
        ("score", [1_769_860_800, 1_769_860_801, 1_769_860_900], False),
        ("time", [3, 4, 5], False),
        ("time", ["12:00", "13:00", "14:00"], False),
        ("birth_date", ["1980-01-31"], False),
        ("when", ["2026-01-31", "2026-02-01", "soon"], False),
        ("when", ["2026-01-31", None, None, None], False),
    ],
)
def test_a_column_of_times_is_proposed(
    column: str, values: list[Any], found: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a comment, and no value of it. Red when any number, or a date that is the same in all records of a user,
    is taken for the time of a record; or when the proposal would not be a valid line."""
    Path("posts.jsonl").write_bytes(jsonl(timed(column, values)))
    assert guess("posts.jsonl").time == (column if found else None)
    assert main.run_app(["init", "mine", "--data", "posts.jsonl"]) == 0
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert (f"  # time: {column} " in text) == found
    assert "2026" not in text
    assert "1769" not in text
    if found:
        Path("mine.yaml").write_text(text.replace(f"  # time: {column} ", f"  time: {column} "), encoding="utf-8")
        assert make_plan("mine.yaml", ["sampling.expected=5"]).spec.data.time == column


def test_a_column_of_arrow_timestamps_is_proposed() -> None:
    """Red when what Arrow calls a time is no time here."""
    moments = [pyarrow.scalar(1_769_860_800 + i, pyarrow.timestamp("s")) for i in range(3)]
    Path("posts.parquet").write_bytes(parquet_bytes(timed("at", [m.as_py() for m in moments])))
    found = guess("posts.parquet")
    assert found.time == "at"
    assert "at" not in found.attributes


def test_a_path_that_the_locale_cannot_write_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the spec is UTF-8 and names it, and the locale is ASCII."""

    def encode(*_: object) -> None:
        "\u00fc.csv".encode("ascii")

    monkeypatch.setattr("harness.spec.load_spec", encode)
    for locale, code, line in (
        ("ascii", 4, "uudp: a path has letters that this locale (ascii) can't write; set PYTHONUTF8=1\n"),
        ("utf-8", 1, "uudp: unexpected UnicodeEncodeError; "),
    ):
        monkeypatch.setattr("sys.getfilesystemencoding", lambda locale=locale: locale)
        assert main.run_app(["validate", "x.yaml"]) == code
        said = capsys.readouterr().err
        assert said.startswith(line)
        assert said.count("\n") == 1


def test_plugins_are_listed_in_eighty_columns() -> None:
    from harness.cli.policies import _listed

    one = {"kind": "noise", "summary": "It adds noise.", "access": "the records, and " * 5}
    names = ("thirteen-long", "fourteen-longs", "n" * 60)
    lines = _listed([{**one, "name": name, "origin": "some-long-package 1.0 (module)"} for name in names])
    assert max(map(len, lines)) <= 80
    assert f"  {names[0]} It adds noise." in lines
    assert all(f"  {name}" in lines for name in names[1:])
    assert lines.count(" " * 16 + "It adds noise.") == 2
