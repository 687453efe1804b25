"""The corpus on disk, memory-mapped and read by random access. `harness.data.layout` says how its files look.

Its tables may lie elsewhere: `harness.data.stored`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.data.layout import EXAMPLES, HELD, LENGTHS, META, RECORDS, USERS, Ints, mapped_column
from harness.data.packing import Tokens
from harness.data.stored import Stored, StoredExamples
from harness.data.tables import Table
from harness.errors import MachineError
from harness.plugins import UserRecords


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
    _examples: Table | StoredExamples = field(repr=False)
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
            lengths = mapped_column(folder, LENGTHS)
            tables = Stored.open(folder, lengths) or _tables([folder / name for name in meta["shards"]])
            corpus = cls(
                folder=folder,
                fingerprint=meta["fingerprint"],
                name=meta["name"],
                max_tokens=meta["max_tokens"],
                attribute_names=tuple(meta["attributes"]),
                has_times=meta["times"],
                bad_records=meta["bad_records"],
                holdout=mapped_column(folder, "holdout"),
                n_records=mapped_column(folder, "n_records"),
                n_examples=mapped_column(folder, "n_examples"),
                n_tokens=mapped_column(folder, "n_tokens"),
                first_example=mapped_column(folder, "first_example"),
                example_lengths=lengths,
                example_targets=mapped_column(folder, "targets"),
                _first_record=mapped_column(folder, "first_record"),
                _held=mapped_column(folder, HELD),
                _users=tables.users,
                _examples=tables.examples,
                _records=tables.records,
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
        for name in ("first_example", "targets", LENGTHS):
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

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read examples that will be asked for soon, where they come from elsewhere; does not wait."""
        if isinstance(self._examples, StoredExamples):
            self._examples.fetch(examples)

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


def _tables(shards: Sequence[Path]) -> Stored:
    users, records = (Table.of(*(shard / name for shard in shards)) for name in (USERS, RECORDS))
    return Stored(users, records, Table.of(*(shard / EXAMPLES for shard in shards), scattered=True))
