"""Rows on their way from the source's order to the users': written in runs sorted by user, gathered by ranges of names.

Everything here is private.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harness.data import layout
from harness.data.packing import EVERY, Loss, Tokens
from harness.data.sources.base import BadRecord, Columns, Record
from harness.data.tables import Table, TableWriter, mapped
from harness.data.users import Users

PART_BITS = 40
"""A row's place in the source: its part's number, and below it so many bits for its number in the part."""

_RUN, _ROW = 1 << 26, 256
"""About so many bytes are a run, and so many has a row at least while it is in memory."""
_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)

ROWS, INDEX = "rows.arrow", "index.arrow"
_ROWS_SCHEMA = pa.schema(
    [
        ("user", pa.string()),  # empty: it has none
        ("place", pa.int64()),
        ("attributes", pa.string()),
        ("where", pa.string()),
        ("reason", pa.string()),  # of what can't be used
        *layout.INCOMING_SCHEMA,
    ]
)
INDEX_SCHEMA = pa.schema([("first", pa.string()), ("last", pa.string()), ("bytes", pa.int64())])


class RunWriter:
    """Writes a part's rows: sorted by user, as many at a time as are in memory; and who is in which batch."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        """Into an empty folder."""
        self._folder, self._names = folder, columns.attributes
        self._rows = TableWriter(folder / ROWS, _ROWS_SCHEMA)
        self._run: list[tuple[int, tuple[Any, ...]]] = []
        self._weight = 0

    def add(self, record: Record, place: int, tokens: Tokens, loss: Loss) -> None:
        """Takes a record that can be used."""
        weight = _ROW + len(record.text) + tokens.nbytes + loss.nbytes
        self._add(
            record, record.user, place, (_plain(record.where), None, record.text, record.time, tokens, loss), weight
        )

    def add_bad(self, record: Record | BadRecord, bad: BadRecord, place: int) -> None:
        """Takes a record that can't be used, and what is wrong with it."""
        told = (_plain(bad.where), _plain(bad.reason), None, None, _NO_TOKENS, EVERY)
        self._add(record, record.user or "", place, told, _ROW)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_run()
        self._rows.__exit__(kind)
        if kind is None:
            with TableWriter(self._folder / INDEX, INDEX_SCHEMA) as index:
                for batch in mapped(self._folder / ROWS):
                    users = batch.column("user")
                    index.append((users[0].as_py(), users[-1].as_py(), batch.nbytes))

    def _add(self, record: Record | BadRecord, user: str, place: int, rest: tuple[Any, ...], weight: int) -> None:
        attributes = json.dumps([record.attributes.get(name) for name in self._names])
        self._run.append((weight, (user, place, attributes, *rest)))
        self._weight += weight
        if self._weight >= _RUN:
            self._write_run()

    def _write_run(self) -> None:
        self._run.sort(key=lambda one: str(one[1][0]))  # stable: a user's records stay in order
        for weight, row in self._run:
            self._rows.append(row, weight=weight - _ROW)
        self._rows.cut()
        self._run, self._weight = [], 0


def _plain(text: str) -> str:
    """A text that can be written: a plugin's may hold half characters."""
    return text.encode(errors="replace").decode()


class Gathered:
    """The rows of a range of users, out of the runs of all parts: mapped, with a few numbers for each in memory.

    Attributes:
        table: All rows, in the source's order for each user.
        places: [rows] where each was in the source.
    """

    def __init__(self, parts: Sequence[Path], training: int, columns: Columns, first: str, after: str | None) -> None:
        """Finds them.

        Args:
            parts: The folders of all parts, in the source's order.
            training: How many of them are of the source; the others are of its evaluation file.
            columns: What is read.
            first: The first name.
            after: The first name that is not of the range; None: there is none.
        """
        self._names = columns.attributes
        self._users = Users(columns.attributes)
        batches: list[pa.RecordBatch] = []
        owners: list[npt.NDArray[np.int64]] = []
        self._trained = 0
        for number, part in enumerate(parts):
            if number == training:
                self._trained = len(self._users)
            for batch in _within(part, first, after):
                batches.append(batch)
                owners.append(self._owners(batch, evaluation=number >= training))
        if training >= len(parts):
            self._trained = len(self._users)
        self.table = Table(batches)
        self._owners_of = np.concatenate([np.empty(0, np.int64), *owners])
        self.places = np.concatenate([np.empty(0, np.int64), *self.table.numbers("place")])
        refused = [batch.column("reason").is_valid().to_numpy(zero_copy_only=False) for batch in batches]
        self._bad = np.concatenate([np.empty(0, np.bool_), *refused])

    def users(self) -> Iterator[tuple[str, bool, dict[str, str | None], npt.NDArray[np.int64]]]:
        """By name: a user, whether they are of the evaluation file alone, their attributes, and their usable rows."""
        usable = np.flatnonzero(~self._bad & (self._owners_of >= 0))
        rows = usable[np.argsort(self._owners_of[usable], kind="stable")]
        bounds = np.searchsorted(self._owners_of[rows], np.arange(len(self._users) + 1))
        for user, number in self._users.sorted():
            own = rows[bounds[number] : bounds[number + 1]]
            yield user, number >= self._trained, self._users.attributes(number), own

    def bad(self, most: int) -> tuple[int, list[tuple[int, str, str | None, str | None]]]:
        """How many can't be used; and of the first of them: place, where, why (None: trained on) and whose."""
        rows = np.flatnonzero(self._bad | (self._owners_of == _TRAINED_ON))
        listed = rows[np.argsort(self.places[rows], kind="stable")][:most]
        return len(rows), [self._bad_row(int(row)) for row in listed]

    def _bad_row(self, row: int) -> tuple[int, str, str | None, str | None]:
        reason = None if self._owners_of[row] == _TRAINED_ON else str(self.table.value(row, "reason"))
        where, user = self.table.value(row, "where"), self.table.value(row, "user")
        return int(self.places[row]), where, reason, user or None

    def differing(self) -> list[tuple[int, str, list[str]]]:
        """The users whose attributes differ: the place of their first row, their name, and the columns."""
        owned = self._owners_of >= 0
        first = np.full(len(self._users), np.iinfo(np.int64).max)
        np.minimum.at(first, self._owners_of[owned], self.places[owned])
        numbers = dict(self._users.sorted())
        return sorted((int(first[numbers[user]]), user, names) for user, names in self._users.differing().items())

    def _owners(self, batch: pa.RecordBatch, *, evaluation: bool) -> npt.NDArray[np.int64]:
        """Each row's user. Python looks at each user of the batch, not at each row."""
        users, attributes = (batch.column(name).dictionary_encode() for name in ("user", "attributes"))
        of_user, of_attributes = (column.indices.to_numpy().astype(np.int64) for column in (users, attributes))
        names, values = users.dictionary.to_pylist(), attributes.dictionary.to_pylist()
        numbers = np.full(len(names), _NOBODY)
        for pair in np.unique(of_user * len(values) + of_attributes).tolist():
            name, value = names[pair // len(values)], values[pair % len(values)]
            known = self._users.find(name)
            if evaluation and known is not None and known < self._trained:
                numbers[pair // len(values)] = _TRAINED_ON
            elif name:
                given = dict(zip(self._names, json.loads(value), strict=True))
                numbers[pair // len(values)] = self._users.add(name, given)
        found: npt.NDArray[np.int64] = numbers[of_user]
        return found


_NOBODY, _TRAINED_ON = -1, -2


def _within(part: Path, first: str, after: str | None) -> Iterator[pa.RecordBatch]:
    """The rows of a part whose users are in the range."""
    index = pa.Table.from_batches(mapped(part / INDEX), schema=INDEX_SCHEMA)
    wanted = pc.greater_equal(index.column("last"), first)
    if after is not None:
        wanted = pc.and_(wanted, pc.less(index.column("first"), after))
    numbers = np.flatnonzero(wanted.to_numpy())
    if not len(numbers):
        return
    for batch in mapped(part / ROWS, numbers.tolist()):
        users = batch.column("user")
        start = _count_below(users, first)
        stop = len(users) if after is None else _count_below(users, after)
        if stop > start:
            yield batch.slice(start, stop - start)


def _count_below(users: pa.Array, name: str) -> int:
    return int(pc.sum(pc.less(users, name)).as_py() or 0)
