"""The corpus on disk: three Arrow files grouped by user, memory-mapped and read by random access.

``users.arrow`` has a row per user (sorted by name), ``examples.arrow`` a row per training example and
``records.arrow`` a row per record; a user's examples and records are neighbours. Of large data these files come in
shards: each has the users of a range of names, and the shards follow each other as the ranges do. The columns of
numbers lie beside them, one file each for all shards, so that they can be mapped as whole arrays: a worker reads what
it draws, and holds no list of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.data.packing import Tokens
from harness.data.tables import Table
from harness.errors import MachineError
from harness.files import create_private
from harness.plugins import UserRecords

Ints = npt.NDArray[np.int64]

VERSION = 6
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
        ("first_record", pa.int64()),  # within the shard
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
_WITHIN = {"first_record": RECORDS, "first_example": EXAMPLES}
"""Columns that count within a shard, and what they count."""


def write_columns(folder: Path, shards: Sequence[Path]) -> tuple[int, int]:
    """Writes the columns of numbers of a corpus whose tables are complete; a part of each is in memory at a time.

    Args:
        folder: The corpus.
        shards: Where its tables lie.

    Returns:
        The number of users, and of examples.
    """
    tables = {name: [Table.of(shard / name) for shard in shards] for name in (USERS, EXAMPLES, RECORDS)}
    sizes = {name: [table.rows for table in found] for name, found in tables.items()}
    for column, (name, dtype) in _COLUMNS.items():
        counted = sizes.get(_WITHIN.get(column, ""), [0] * len(shards))
        before = np.cumsum([0, *counted[:-1]])
        parts = (
            part + start if column in _WITHIN else part
            for table, start in zip(tables[name], before, strict=True)
            for part in table.numbers(column)
        )
        _write_column(folder, column, dtype, sum(sizes[name]), parts)
    lengths = (part for table in tables[EXAMPLES] for part in table.lengths("tokens"))
    _write_column(folder, _LENGTHS, np.int32, sum(sizes[EXAMPLES]), lengths)
    # Held-out users are few, and asked for in the order of their hash.
    places: list[Ints] = []
    orders: list[npt.NDArray[np.uint64]] = []
    start = 0
    for users in tables[USERS]:
        for held, examples_of, order in zip(*map(users.numbers, ("holdout", "n_examples", "order")), strict=True):
            inside = np.flatnonzero(held.astype(np.bool_) & (examples_of > 0))
            places.append(inside + start)
            orders.append(order[inside])
            start += len(held)
    found = np.concatenate(places)[np.argsort(np.concatenate(orders), kind="stable")] if places else np.empty(0)
    _write_column(folder, _HELD, np.int64, len(found), [found])
    return start, sum(sizes[EXAMPLES])


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
            shards = [folder / name for name in meta["shards"]]
            users, records = (Table.of(*(shard / name for shard in shards)) for name in (USERS, RECORDS))
            examples = Table.of(*(shard / EXAMPLES for shard in shards), scattered=True)
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

    def read_ahead(self) -> None:
        """Reads the columns that every draw looks at, once in order: page by page, the first draws would wait long.

        Nothing of them is kept here; the kernel has them, for all processes, as long as it has room.
        """
        for name in ("first_example", "targets", _LENGTHS):
            with (self.folder / f"{name}.npy").open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

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
