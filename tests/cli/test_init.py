"""``uudp init``: the guesses, the file that it writes, and what it never tells."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from harness.cli import main
from harness.data.guessing import guess
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


def as_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))


def as_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows()).encode()))


def as_csv(path: Path, delimiter: str = ";") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows()[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows())


def as_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows()), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mail.jsonl": as_jsonl, "mail.jsonl.gz": as_gzip, "mail.csv": as_csv, "mail.parquet": as_parquet,
}  # fmt: skip


def init(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main.run_app(["init", *arguments])
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("name", WRITERS)
def test_it_guesses_from_every_kind_of_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And neither prints nor writes a value. Break: write the values of the attributes into the comment."""
    WRITERS[name](Path(name))
    code, said = init(capsys, "--data", name)
    assert code == 0, said
    written = Path("mail.yaml").read_text()
    document = yaml.safe_load(written)
    assert document["data"]["source"] == {"type": name.split(".")[1], "path": name}
    assert (document["data"]["user"], document["data"]["text"]) == ("customer_id", "body")
    assert document["data"]["attributes"] == []  # what is public is for the user to say
    assert "(?) few values, and one per user: region;" in written
    assert "mood" not in written
    assert SECRET not in written + said
    assert document["sampling"]["expected"] == 16  # a power of two, at most a quarter of 90
    assert (document["train"]["optimizer"]["lr"], document["clipping"]["norm"]) == (5e-3, 0.5)
    assert all(len(line) <= 120 for line in written.splitlines())


def test_the_spec_validates_and_plans_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    as_jsonl(Path("mail.jsonl"))
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
        (["--data", "nothing.csv"], "--data: no file nothing.csv"),
        (["--data", "."], "is a folder, not a file"),
        (["--data", "mail.jsonl", "--user", "custumer_id"], 'no column "custumer_id"; did you mean "customer_id"?'),
        (["--data", "mail.jsonl", "--user", "body", "--text", "body"], "are the same column"),
        (["--data", "broken.parquet"], "broken.parquet can't be read as parquet"),
        (["--data", "empty.csv"], "no rows with columns"),
        (["--data", "alone.jsonl"], "no column looks like a user"),
        (["../x"], 'NAME: "../x" must be letters'),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    as_jsonl(Path("mail.jsonl"))
    Path("mail.txt").write_text("x")
    Path("empty.csv").write_text("")
    Path("broken.parquet").write_text(SECRET)
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
    found = guess(Path("x.jsonl"))
    assert (found.user, found.text, found.attributes, found.users) == ("who", "what", ("kind",), 30)
