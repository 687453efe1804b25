"""Looks at the first rows of somebody's own data and guesses which column is what, for ``uudp init``.

The rows come from the very sources that will read them later. Nothing that a value says leaves this file: only the
names of columns, and how the files are written.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import plugins
from harness.data.guessing_times import time_column
from harness.data.sources.base import Columns, open_source, user_of
from harness.data.sources.files import COMPRESSED, FileSource, existing_path, locate, open_binary, reading, shown
from harness.data.sources.huggingface import splits_in
from harness.data.sources.objects import file_at, is_object
from harness.errors import ArgumentError, UserError
from harness.plugins import suggest
from harness.spec.models import DataBlock
from harness.spec.problems import one_line

ROWS = 2000
"""So many rows are looked at."""
CHEAP_BYTES = 64 << 20
"""Files up to this size in all are read to their end, to see that they can be."""

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".pq": "parquet", ".arrow": "huggingface",
}  # fmt: skip
_USERS = ("user", "author", "customer", "account", "member", "sender", "client", "patient", "email", "person", "owner")
_PEOPLE = (*_USERS, "username", "uid", "handle", "login", "reviewer", "speaker")
_PERSON = re.compile(
    rf"(?:(?P<which>.+)_)??(?:id_)?(?:{'|'.join(_PEOPLE)})(?:_?(?:id|uid|uuid|key|name|number|no|nr|hash))?"
)
"""What a column of users is plainly called, before which may stand which of them is meant."""
_TEXTS = ("text", "body", "message", "content", "comment", "post", "note", "description", "review")
_PAIRS = (
    ("prompt", ("completion", "response", "answer")),
    ("question", ("answer", "response")),
    ("instruction", ("response", "output", "completion", "answer")),
    ("query", ("response", "answer")),
    ("input", ("output", "response")),
)
_MOST_VALUES = 12
_LONGEST_ATTRIBUTE = 40
_LONGEST_NAME = 60
_SAMPLED_BYTES = 16 << 20
_SAMPLED_TEXT = 1 << 16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),  # before those of utf-16, which they begin with
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

Row = Mapping[str, Any]
Form = Literal["text", "pair", "messages"]


@dataclass(frozen=True)
class Guess:
    """What somebody's data seem to be.

    Attributes:
        source: The block ``data.source``.
        encoding_guessed: Whether the encoding in it is no more than likely.
        user: The column that says who a record belongs to.
        runner_up: The column that would have been it otherwise, if the user column is a guess.
        form: What is learnt: a text, the second of a pair, or the answers in messages.
        text: The column of the text, of the prompt, or of the messages.
        completion: The column of a pair's completion.
        attributes: Columns that could be public attributes: few values, and one per user.
        time: The column that plainly says when a record was written, if one does.
        repeats: Whether users come more than once in the rows that were looked at.
    """

    source: Mapping[str, str]
    encoding_guessed: bool
    user: str
    runner_up: str | None
    form: Form
    text: str
    completion: str | None
    attributes: tuple[str, ...]
    time: str | None
    repeats: bool


def guess(given: str, *, user: str | None = None, text: str | None = None) -> Guess:
    """Guesses what data are from their first rows.

    Args:
        given: A file, a glob, or a folder.
        user: The user column, if it is known.
        text: The column of the text or of the messages, if it is known.

    Raises:
        ArgumentError: The data can't be read, or the columns can't be told.
    """
    with _as_option():
        source, unsure = _source(given)
        reader = plugins.source.build(source["type"], {k: v for k, v in source.items() if k != "type"})
        assert isinstance(reader, FileSource)
        rows = reader.located(Path.cwd()).first_rows(ROWS)
        columns = _columns(rows)
        if not columns:
            raise ArgumentError(f"no rows with columns can be read from {shown(given)} as {source['type']}")
        if source["type"] == "csv":
            _check_header(rows, columns, given)
    _check_given("--user", user, columns)
    _check_given("--text", text, columns)
    if user is not None and user == text:
        raise ArgumentError(f'--user and --text are the same column "{user}"')
    form, found, completion = _what_is_learnt(rows, [c for c in columns if c != user], text)
    private = (found, completion)
    likely = [user] if user is not None else _user_columns(rows, [c for c in columns if c not in private])
    owner, runner_up = [*likely, None][:2]
    assert owner is not None
    names = [row.get(owner) for row in rows]
    repeats = len(set(map(str, names))) < len(names)
    others = [c for c in columns if c not in (*private, owner)]
    time = time_column(rows, others, owner)
    attributes = tuple(c for c in others if c != time and _is_attribute(rows, c, owner))
    return Guess(source, unsure, owner, runner_up, form, found, completion, attributes, time, repeats)


def check(block: Mapping[str, Any]) -> None:
    """Opens the data that a spec names, as ``uudp plan`` will.

    Args:
        block: The spec's block ``data``.

    Raises:
        ArgumentError: They can't be read.
    """
    with _as_option():
        data = DataBlock.model_validate(block)
        source = open_source(data, Path.cwd())
        assert isinstance(source, FileSource)
        next(source.records(Columns.of(data)), None)  # looks at every column, if only once
        cheap = sum(file.stat().st_size for file in source.files) <= CHEAP_BYTES
        for _ in itertools.islice(source.public(Columns.of(data)), None if cheap else ROWS):
            pass


@contextmanager
def _as_option() -> Iterator[None]:
    """Errors name the option, for there is no spec yet; what an error of a reader says may quote the data."""
    try:
        yield
        return
    except UserError as error:
        message = re.sub(r"^data\.source[.a-z]*: ", "", str(error))
    except OSError as error:
        message = f"the data can't be read ({error.strerror or type(error).__name__})"
    except Exception as error:
        message = f"the data can't be read ({type(error).__name__})"
    raise ArgumentError("--data: " + one_line(message)) from None


# --- the files ----------------------------------------------------------------------------------------------


def _source(given: str) -> tuple[dict[str, str], bool]:
    """The block that names the data, and whether its encoding is only likely."""
    existing = None if is_object(given) else existing_path(given, Path.cwd(), "data.source")
    if existing is not None and existing.is_dir():
        alone = {_ending(path) for path in existing.iterdir() if not path.name.startswith((".", "_"))}
        if len(alone) == 1 and alone <= {".csv", ".tsv"}:  # which may need a delimiter and an encoding
            return _source(f"{given.rstrip('/')}/*")
        splits = splits_in(existing)
        split = {"split": next(iter(splits))} if splits and "train" not in splits else {}
        return {"type": "huggingface", "path": given, **split}, False
    if existing is None and not glob.has_magic(given) and not is_object(given) and _ending(Path(given)) not in ENDINGS:
        raise ArgumentError(
            f"there is no file or folder {shown(given)}; a data set on the hub is downloaded first: "
            f"hf download --repo-type dataset {shown(given)} --local-dir FOLDER, then --data FOLDER"
        )
    files = [file_at(found) for found in locate((given,), Path.cwd(), "data.source")]
    for file in files:
        if _ending(file) not in ENDINGS:
            raise ArgumentError(f"the name of {shown(file.name)} ends in none of {', '.join(ENDINGS)}")
    kinds = sorted({ENDINGS[_ending(file)] for file in files})
    if len(kinds) > 1:
        raise ArgumentError(f"{shown(given)} are files of several kinds ({', '.join(kinds)}); name those of one")
    block = {"type": kinds[0], "path": given}
    if kinds[0] == "parquet" or kinds[0] == "huggingface":
        return block, False
    encoding, unsure = _common_encoding(files, given)
    if kinds[0] == "jsonl":
        if encoding not in ("utf-8", "cp1252"):
            raise ArgumentError(
                f"{shown(given)} is {encoding}, and JSON Lines must be UTF-8; convert it, as with iconv"
            )
        return block, False
    if (delimiter := _delimiter(files[0], encoding)) != ",":
        block["delimiter"] = delimiter
    if encoding != "utf-8":
        block["encoding"] = encoding
    return block, unsure


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _common_encoding(files: Sequence[Path], given: str) -> tuple[str, bool]:
    found = {_encoding(file, _SAMPLED_BYTES // len(files)) for file in files}
    if len(found) > 1:
        names = ", ".join(sorted(name for name, _ in found))
        raise ArgumentError(f"{shown(given)} are files in several encodings ({names}); convert them to one")
    return found.pop()


def _encoding(path: Path, limit: int) -> tuple[str, bool]:
    """A file's encoding by its first bytes, and whether that is only likely."""
    with reading(path, "data.source"), open_binary(path) as file:
        head = file.read(limit)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, False
    start = head[:4096]
    for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # Latin letters have a zero beside each
        if 5 * start[odd::2].count(0) > len(start[odd::2]):
            return name, True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, len(head) < limit)
    except UnicodeDecodeError:
        return "cp1252", True
    return "utf-8", False


def _delimiter(path: Path, encoding: str) -> str:
    """What cuts the first rows into the same number of values, and more than one."""
    if ".tsv" in path.suffixes:
        return "\t"
    with reading(path, "data.source"), open_binary(path) as file:
        text = file.read(_SAMPLED_TEXT).decode(encoding, "replace").removeprefix("\ufeff")

    def score(delimiter: str) -> tuple[float, int]:
        rows = []
        try:
            for row in itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 100):
                rows.append(len(row))
        except csv.Error:
            pass
        width = rows[0] if rows else 0
        return (rows.count(width) / len(rows) if width > 1 else 0.0), width

    return max(",;\t|", key=score)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Columns of at least half of the rows: names that few rows have could themselves be private."""
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str) and name)
    return [name for name in names if 2 * sum(name in row for row in rows) >= len(rows)]


def _check_header(rows: Sequence[Row], columns: Sequence[str], given: str) -> None:
    """Refuses a first line that is a record: its names would be written into the spec, and shown."""
    others = [row for row in rows if any(row.get(c) != c for c in columns)]  # files may be joined with their headers
    for name in columns:
        number = name.replace(".", "", 1).isdigit()
        if number or len(name) > _LONGEST_NAME or "\n" in name or any(row.get(name) == name for row in others):
            raise ArgumentError(
                f"the first line of {shown(given)} seems to be a record; put a header above it: user,text"
            )


# --- the columns --------------------------------------------------------------------------------------------


def _check_given(option: str, name: str | None, columns: Sequence[str]) -> None:
    if name is not None and name not in columns:
        near = suggest(name, columns)
        hint = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(columns[:20])})"
        raise ArgumentError(one_line(f'{option}: there is no column "{name}"{hint}'))


def _named(column: str, names: Sequence[str]) -> bool:
    return any(name in column.lower() for name in names)


def _what_is_learnt(rows: Sequence[Row], columns: Sequence[str], text: str | None) -> tuple[Form, str, str | None]:
    """The form of the records and its one or two columns; of several forms the one that says most."""
    for column in (text,) if text is not None else columns:
        if _mostly(rows, column, _is_conversation):
            return "messages", column, None
    if text is not None:
        if not _mostly(rows, text, lambda value: isinstance(value, str)):
            raise ArgumentError(one_line(f'--text: the column "{text}" holds neither texts nor messages'))
        return "text", text, None
    names = {c.lower(): c for c in columns if _mostly(rows, c, lambda value: isinstance(value, str))}
    for prompt, completions in _PAIRS:
        for completion in completions:
            if prompt in names and completion in names:
                return "pair", names[prompt], names[completion]
    return "text", _text_column(rows, columns), None


def _mostly(rows: Sequence[Row], column: str, holds: Callable[[Any], bool]) -> bool:
    return 2 * sum(holds(row.get(column)) for row in rows) >= len(rows)


def _is_conversation(value: Any) -> bool:
    """Whether it is a list of {role, content}."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn for turn in value
    )  # fmt: skip


def _text_column(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The longest one; a telling name counts for half as much again, and a user's name is none."""

    def length(column: str) -> float:
        texts = [len(v) for row in rows if isinstance(v := row.get(column), str)]
        mean = sum(texts) / len(rows) if 2 * len(texts) >= len(rows) else 0.0
        return mean * (1.5 if _named(column, _TEXTS) else 1.0)

    likely = [c for c in columns if _named(c, _TEXTS) or not _named(c, _USERS)]
    best = max(likely, key=length, default=None)
    if best is None or not length(best):
        there = f" (there are: {', '.join(columns[:20])})" if columns else ""
        raise ArgumentError(one_line(f"--data: no column looks like a text{there}; say --text"))
    return best


def _plainness(column: str) -> int:
    """How plainly a name says user: 3 by nothing else, 2 with a word before, 1 somewhere in it, 0 not at all."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()).strip("_")
    found = _PERSON.fullmatch(words)
    if found:
        return 2 if found["which"] else 3
    return int(_named(column, _USERS))


def _user_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Columns that may be the user, the likeliest first: by their names, then by whether and how much they repeat."""

    def values(column: str) -> list[str]:
        return [name for row in rows if (name := user_of(row.get(column))[0]) is not None]

    def score(column: str) -> tuple[int, bool, int, bool, int]:
        found = values(column)
        distinct = len(set(found))
        many, plain = distinct > _MOST_VALUES, _plainness(column)
        # "user_type" has few values, whatever its name; "user" may, where the rows are sorted by user.
        named = 2 if plain >= 2 else int(plain == 1 and many)
        return named, many, plain, distinct < len(found), distinct

    scores = {c: score(c) for c in columns if 2 * len(values(c)) >= len(rows)}
    likely = [c for c, (_, many, plain, repeats, _) in scores.items() if plain or (repeats and many)]
    likely = likely or [c for c, (_, _, _, repeats, _) in scores.items() if repeats]
    if not likely:
        there = f" (there are: {', '.join(columns[:20])})" if columns else ""
        raise ArgumentError(
            one_line(f"--data: no column looks like a user, who comes more than once{there}; say --user")
        )
    return sorted(likely, key=lambda c: scores[c], reverse=True)


def _is_attribute(rows: Sequence[Row], column: str, user: str) -> bool:
    """Two to a few short values, and never two for one user."""
    of_user: dict[str, str] = {}
    for row in rows:
        value = row.get(column)
        if value is None:
            continue
        if not isinstance(value, str | int | bool) or len(str(value)) > _LONGEST_ATTRIBUTE:
            return False
        if of_user.setdefault(str(row.get(user)), str(value)) != str(value):
            return False
    distinct = len(set(of_user.values()))
    return 2 <= distinct <= _MOST_VALUES and 2 * distinct <= len(of_user)
