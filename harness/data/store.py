"""The corpus on disk: three Arrow files grouped by user, memory-mapped and read by random access.

``users.arrow`` has a row per user (sorted by name), ``examples.arrow`` a row per training example and
``records.arrow`` a row per record; a user's examples and records are neighbours. Their columns of numbers lie beside
them, one file each, so that they can be mapped as whole arrays: a worker reads what it draws, and holds no list of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.data.packing import Tokens
from harness.errors import MachineError
from harness.files import create_private
from harness.plugins import UserRecords

Ints = npt.NDArray[np.int64]

VERSION = 5
"""Of the files' layout and of everything that decides their content: part of every fingerprint."""

META, PROBLEMS = "corpus.json", "problems.json"
USERS, EXAMPLES, RECORDS = "users.arrow", "examples.arrow", "records.arrow"

USERS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("attributes", pa.string()),  # a JSON object
        ("holdout", pa.bool_()),
        ("order", pa.uint64()),
        ("n_records", pa.int64()),
        ("n_examples", pa.int64()),
        ("n_tokens", pa.int64()),
        ("first_record", pa.int64()),
        ("first_example", pa.int64()),
    ]
)
EXAMPLES_SCHEMA = pa.schema(
    [("tokens", pa.list_(pa.int32())), ("loss", pa.list_(pa.uint8())), ("targets", pa.int32())]  # loss: see `Example`
)
RECORDS_SCHEMA = pa.schema([("text", pa.string()), ("token_count", pa.int64()), ("time", pa.float64())])
INCOMING_SCHEMA = pa.schema(
    [("text", pa.string()), ("time", pa.float64()), ("tokens", pa.list_(pa.int32())), ("loss", pa.list_(pa.uint8()))]
)

_COLUMNS = {
    "holdout": (USERS, np.bool_),
    "n_records": (USERS, np.int64),
    "n_examples": (USERS, np.int64),
    "n_tokens": (USERS, np.int64),
    "first_record": (USERS, np.int64),
    "first_example": (USERS, np.int64),
    "targets": (EXAMPLES, np.int32),
}
_LENGTHS, _HELD = "lengths", "held"
_ROWS, _WEIGHT = 4096, 1 << 22


class TableWriter:
    """Writes rows to a new Arrow file (0600) in batches of bounded size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._pending: list[Sequence[Any]] = []
        self._weight = 0
        self._sink = create_private(path)
        self._file = pa.ipc.new_file(self._sink, schema)

    def append(self, row: Sequence[Any], weight: int = 0) -> None:
        """Adds a row: a value per column of the schema.

        Args:
            row: The values; a list column takes a numpy array.
            weight: About how many bytes or elements it has, if it may have many.
        """
        self._pending.append(row)
        self._weight += weight
        self.rows += 1
        if len(self._pending) >= _ROWS or self._weight >= _WEIGHT:
            self._flush()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._file.close()
        finally:
            self._sink.close()

    def _flush(self) -> None:
        if self._pending:
            columns = zip(*self._pending, strict=True)
            arrays = [_array(values, column.type) for values, column in zip(columns, self._schema, strict=True)]
            self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._pending, self._weight = [], 0


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, type=kind)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(v) for v in values], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values), type=kind.value_type))


class Table:
    """An Arrow file, memory-mapped: rows by their number, without reading the rest."""

    def __init__(self, path: Path) -> None:
        self._batches: list[pa.RecordBatch] = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all().to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._views: dict[tuple[int, int], tuple[npt.NDArray[np.int32], npt.NDArray[Any]]] = {}

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    def numbers(self, column: str) -> Iterator[npt.NDArray[Any]]:
        """A column of numbers or truth values, part by part."""
        return (batch.column(column).to_numpy(zero_copy_only=False) for batch in self._batches)

    def lengths(self, column: str) -> Iterator[npt.NDArray[np.int32]]:
        """The number of elements of every list of a column, part by part."""
        return (np.diff(self._view(number, column)[0]) for number in range(len(self._batches)))

    def numbers_in(self, row: int, column: str) -> npt.NDArray[Any]:
        """A list of a list column, read-only and without a copy."""
        number, inside = self._locate(row)
        offsets, values = self._view(number, column)
        return values[offsets[inside] : offsets[inside + 1]]

    def value(self, row: int, column: str) -> Any:
        """One value."""
        number, inside = self._locate(row)
        return self._batches[number].column(column)[inside].as_py()

    def values(self, start: int, stop: int, column: str) -> list[Any]:
        """The values of neighbouring rows."""
        found: list[Any] = []
        while start < stop:
            number, inside = self._locate(start)
            part = self._batches[number].column(column).slice(inside, stop - start)
            found += part.to_pylist()
            start += len(part)
        return found

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < self.rows:
            raise IndexError("there is no such row")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def _view(self, number: int, column: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        batch = self._batches[number]
        key = (number, batch.schema.get_field_index(column))
        if key not in self._views:
            lists = batch.column(key[1])
            self._views[key] = (lists.offsets.to_numpy(), lists.values.to_numpy())
        return self._views[key]


def write_columns(folder: Path) -> None:
    """Writes the columns of numbers of a corpus whose tables are complete; a part of each is in memory at a time."""
    tables = {name: Table(folder / name) for name in (USERS, EXAMPLES)}
    for column, (table, dtype) in _COLUMNS.items():
        _write_column(folder, column, dtype, tables[table].rows, tables[table].numbers(column))
    examples, users = tables[EXAMPLES], tables[USERS]
    _write_column(folder, _LENGTHS, np.int32, examples.rows, examples.lengths("tokens"))
    # Held-out users are few, and asked for in the order of their hash.
    places: list[Ints] = []
    orders: list[npt.NDArray[np.uint64]] = []
    start = 0
    columns = ("holdout", "n_examples", "order")
    for held, examples_of, order in zip(*map(users.numbers, columns), strict=True):
        inside = np.flatnonzero(held.astype(np.bool_) & (examples_of > 0))
        places.append(inside + start)
        orders.append(order[inside])
        start += len(held)
    found = np.concatenate(places)[np.argsort(np.concatenate(orders), kind="stable")] if places else np.empty(0)
    _write_column(folder, _HELD, np.int64, len(found), [found])


def _write_column(
    folder: Path, name: str, dtype: type[np.generic], rows: int, parts: Iterable[npt.NDArray[Any]]
) -> None:
    """A file as `numpy.save` writes them."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows,)}
    with create_private(folder / f"{name}.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(dtype).tobytes())


def _column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A column, mapped and read-only."""
    path = folder / f"{name}.npy"
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:
        found = np.load(path, allow_pickle=False)  # nothing can't be mapped
        if len(found):
            raise
        found.setflags(write=False)
        return np.asarray(found)


@dataclass(frozen=True, eq=False)
class Corpus:
    """All users' examples, on disk. Everything in it is private but what a caller declared public.

    Users are numbered in the order of their names. All arrays are read-only, and mapped: what is not looked at is not
    read.

    Attributes:
        folder: Where it lies.
        fingerprint: Keyed digest (hex) of the data and of all that decided their preparation.
        name: Of the data set.
        max_tokens: Most tokens of an example.
        attribute_names: The declared public columns.
        has_times: Whether the spec names a column of times.
        bad_records: Number of records that can't be used.
        holdout: [users] whether a user is held out.
        n_records: [users] number of usable records.
        n_examples: [users] number of examples; may be 0.
        n_tokens: [users] tokens of these examples.
        first_example: [users] number of the first example.
        example_lengths: [examples] tokens of an example.
        example_targets: [examples] how many of them are predicted; at least one.
    """

    folder: Path
    fingerprint: str
    name: str
    max_tokens: int
    attribute_names: tuple[str, ...]
    has_times: bool
    bad_records: int
    holdout: npt.NDArray[np.bool_] = field(repr=False)
    n_records: Ints = field(repr=False)
    n_examples: Ints = field(repr=False)
    n_tokens: Ints = field(repr=False)
    first_example: Ints = field(repr=False)
    example_lengths: npt.NDArray[np.int32] = field(repr=False)
    example_targets: npt.NDArray[np.int32] = field(repr=False)
    _first_record: Ints = field(repr=False)
    _held: Ints = field(repr=False)
    _users: Table = field(repr=False)
    _examples: Table = field(repr=False)
    _records: Table = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Opens a corpus that `build_corpus` made.

        Raises:
            MachineError: It is not there, or is damaged.
        """
        corpus: Corpus | None = None
        try:
            meta = json.loads((folder / META).read_bytes())
            users, examples, records = (Table(folder / name) for name in (USERS, EXAMPLES, RECORDS))
            corpus = cls(
                folder=folder,
                fingerprint=meta["fingerprint"],
                name=meta["name"],
                max_tokens=meta["max_tokens"],
                attribute_names=tuple(meta["attributes"]),
                has_times=meta["times"],
                bad_records=meta["bad_records"],
                holdout=_column(folder, "holdout"),
                n_records=_column(folder, "n_records"),
                n_examples=_column(folder, "n_examples"),
                n_tokens=_column(folder, "n_tokens"),
                first_example=_column(folder, "first_example"),
                example_lengths=_column(folder, _LENGTHS),
                example_targets=_column(folder, "targets"),
                _first_record=_column(folder, "first_record"),
                _held=_column(folder, _HELD),
                _users=users,
                _examples=examples,
                _records=records,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, pa.ArrowException):
            pass  # reported below: what was raised may quote the file
        if corpus is None or not corpus._complete(meta):
            raise MachineError(
                f"the prepared data in {folder} are missing or damaged; delete that folder and run again"
            )
        return corpus

    def _complete(self, meta: Mapping[str, Any]) -> bool:
        """Whether everything is there for all users and all examples."""
        of_users = (
            self.holdout,
            self.n_records,
            self.n_examples,
            self.n_tokens,
            self.first_example,
            self._first_record,
        )
        of_examples = (self.example_lengths, self.example_targets)
        users = {self._users.rows, *map(len, of_users)}
        examples = {self._examples.rows, *map(len, of_examples)}
        return (users, examples) == ({meta["n_users"]}, {meta["n_examples"]})

    def __reduce__(self) -> tuple[Callable[[Path], Corpus], tuple[Path]]:
        """Another process maps the same files."""
        return Corpus.load, (self.folder,)

    @property
    def n_users(self) -> int:
        """Number of users, those without a usable record included."""
        return len(self.holdout)

    def users(self, holdout: bool) -> Ints:
        """The numbers of all held-out users, or of all others."""
        return np.flatnonzero(self.holdout == holdout).astype(np.int64)

    def holdout_by_order(self, limit: int) -> Ints:
        """At most `limit` held-out users with at least one example, in the order of their salted hash."""
        return np.array(self._held[:limit])

    def examples_of(self, user_index: int) -> tuple[int, int]:
        """The first of a user's examples, and the one after their last."""
        # Two neighbours of one column: of many users, a page of the file less for each that is drawn.
        following = user_index + 1
        last = self.first_example[following] if following < self.n_users else len(self.example_lengths)
        return int(self.first_example[user_index]), int(last)

    def tokens(self, example_index: int) -> Tokens:
        """The tokens of an example, straight from the mapped file."""
        return self._examples.numbers_in(example_index, "tokens")

    def targets(self, example_index: int) -> npt.NDArray[np.bool_]:
        """Which tokens of an example are predicted: never the first, and of an answer's example the answer's alone."""
        loss = self._examples.numbers_in(example_index, "loss")
        return loss.astype(np.bool_) if len(loss) else np.arange(self.example_lengths[example_index]) > 0

    def user_id(self, user_index: int) -> str:
        """A user's name. Private."""
        return str(self._users.value(user_index, "user_id"))

    def attributes(self, user_index: int) -> dict[str, str | None]:
        """A user's declared public columns; None where a value is missing or differs between records."""
        found: dict[str, str | None] = json.loads(self._users.value(user_index, "attributes"))
        return found

    def own_records(self, user_index: int) -> UserRecords:
        """A user's own records, for an own-records rule."""
        start = int(self._first_record[user_index])
        stop = start + int(self.n_records[user_index])
        return UserRecords(
            texts=tuple(self._records.values(start, stop, "text")),
            token_counts=tuple(self._records.values(start, stop, "token_count")),
            examples=int(self.n_examples[user_index]),
            times=tuple(self._records.values(start, stop, "time")) if self.has_times else (),
        )
