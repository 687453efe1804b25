"""Looks at the first rows of somebody's own file and guesses which column is what, for ``uudp init``.

Nothing that a value says leaves this file: only the names of columns, and the rough number of users.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError
from harness.plugins import suggest

ROWS = 2000
"""So many rows are looked at."""
CHEAP_BYTES = 64 << 20
"""A file up to this size is read to its end, to count its users."""

ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
_USERS = ("user", "author", "customer", "account", "member", "sender", "client", "patient", "email", "person", "owner")
_TEXTS = ("text", "body", "message", "content", "comment", "post", "note", "description", "review")
_MOST_VALUES = 12
_LONGEST_ATTRIBUTE = 40

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Guess:
    """What the columns of a file seem to be.

    Attributes:
        type: The source that reads the file.
        user: The column that says who a record belongs to.
        text: The column of the text.
        attributes: Columns that could be public attributes: few values, and one per user.
        repeats: Whether users come more than once in the rows that were looked at.
        users: How many there are, if that was cheap to find out. To be rounded before anybody sees it.
    """

    type: str
    user: str
    text: str
    attributes: tuple[str, ...]
    repeats: bool
    users: int | None


def type_of(path: Path) -> str:
    """The type of source that reads a file, by the ending of its name.

    Raises:
        ArgumentError: It has another ending.
    """
    endings = path.suffixes[-2:]
    plain = [e.lower() for e in endings if e.lower() != ".gz"]
    if plain and plain[-1] in ENDINGS:
        return ENDINGS[plain[-1]]
    raise ArgumentError(f"--data: the name of {path} ends in none of {', '.join(ENDINGS)}")


def guess(path: Path, *, user: str | None = None, text: str | None = None) -> Guess:
    """Guesses the columns of a file from its first rows.

    Args:
        path: The file.
        user: The user column, if it is known.
        text: The text column, if it is known.

    Raises:
        ArgumentError: The file can't be read, or the columns can't be told.
    """
    kind = type_of(path)
    try:
        rows = list(itertools.islice(_rows(path, kind), ROWS))
        columns = _columns(rows)
        if not columns:
            raise ArgumentError(f"--data: no rows with columns can be read from {path} as {kind}")
        _check_given("--user", user, columns)
        _check_given("--text", text, columns)
        found = text or _text_column(rows, [c for c in columns if c != user])
        owner = user or _user_column(rows, [c for c in columns if c != found])
        if owner == found:
            raise ArgumentError(f'--user and --text are the same column "{owner}"')
        names = [row.get(owner) for row in rows]
        repeats = len(set(map(str, names))) < len(names)
        return Guess(kind, owner, found, _attributes(rows, columns, owner, found), repeats, _users(path, kind, owner))
    except ArgumentError:
        raise
    except OSError as error:
        raise ArgumentError(f"--data: {path} can't be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # a reader's message may quote the data
        raise ArgumentError(f"--data: {path} can't be read as {kind} ({type(error).__name__})") from None


# --- the rows -----------------------------------------------------------------------------------------------


def _rows(path: Path, kind: str, only: str | None = None) -> Iterator[Row]:
    if kind == "parquet":
        yield from _parquet_rows(path, only)
        return
    with contextlib.ExitStack() as stack:
        binary: Any = stack.enter_context(path.open("rb"))
        if path.suffix.lower() == ".gz":
            binary = stack.enter_context(gzip.GzipFile(fileobj=binary))
        lines = stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8-sig", errors="replace", newline=""))
        yield from _csv_rows(lines, path) if kind == "csv" else _json_rows(lines)


def _parquet_rows(path: Path, only: str | None) -> Iterator[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=None if only is None else [only]):
            yield from batch.to_pylist()


def _json_rows(lines: Iterator[str] | Any) -> Iterator[Row]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _csv_rows(lines: Any, path: Path) -> Iterator[Row]:
    head = lines.readline()
    delimiter = "\t" if ".tsv" in path.suffixes else max(",;\t|", key=head.count)
    csv.field_size_limit(1 << 27)
    header = next(csv.reader([head], delimiter=delimiter), [])
    for values in csv.reader(lines, delimiter=delimiter):
        if values:
            yield dict(zip(header, values, strict=False))


def _columns(rows: Sequence[Row]) -> list[str]:
    """Columns of at least half of the rows: names that few rows have could themselves be private."""
    names = dict.fromkeys(name for row in rows for name in row if isinstance(name, str) and name)
    return [name for name in names if 2 * sum(name in row for row in rows) >= len(rows)]


def _users(path: Path, kind: str, user: str) -> int | None:
    if path.stat().st_size > CHEAP_BYTES:
        return None
    return len({str(row.get(user)) for row in _rows(path, kind, user) if row.get(user) not in (None, "")})


# --- the columns --------------------------------------------------------------------------------------------


def _check_given(option: str, name: str | None, columns: Sequence[str]) -> None:
    if name is not None and name not in columns:
        near = suggest(name, columns)
        hint = f'; did you mean "{near}"?' if near else f" (there are: {', '.join(columns[:20])})"
        raise ArgumentError(f'{option}: there is no column "{name}"{hint}')


def _named(column: str, names: Sequence[str]) -> bool:
    return any(name in column.lower() for name in names)


def _text_column(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The longest one; a telling name counts for half as much again."""

    def length(column: str) -> float:
        texts = [len(v) for row in rows if isinstance(v := row.get(column), str)]
        mean = sum(texts) / len(rows) if 2 * len(texts) >= len(rows) else 0.0
        return mean * (1.5 if _named(column, _TEXTS) else 1.0)

    best = max(columns, key=length, default=None)
    if best is None or not length(best):
        raise ArgumentError(f"--data: no column looks like a text (there are: {', '.join(columns[:20])}); say --text")
    return best


def _user_column(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A column with a telling name, or else the one that repeats, with the most values."""

    def values(column: str) -> list[str]:
        return [str(v) for row in rows if isinstance(v := row.get(column), str | int) and not isinstance(v, bool)]

    def score(column: str) -> tuple[bool, bool, int]:
        found = values(column)
        distinct = len(set(found))
        return _named(column, _USERS), distinct < len(found), distinct

    usable = [c for c in columns if 2 * len(values(c)) >= len(rows)]
    likely = [c for c in usable if score(c)[0] or (score(c)[1] and score(c)[2] > _MOST_VALUES)]
    likely = likely or [c for c in usable if score(c)[1]]
    if not likely:
        there = f" (there are: {', '.join(columns[:20])})" if columns else ""
        raise ArgumentError(f"--data: no column looks like a user, who comes more than once{there}; say --user")
    return max(likely, key=score)


def _attributes(rows: Sequence[Row], columns: Sequence[str], user: str, text: str) -> tuple[str, ...]:
    return tuple(c for c in columns if c not in (user, text) and _is_attribute(rows, c, user))


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
