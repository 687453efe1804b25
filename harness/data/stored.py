"""A corpus's tables in a folder or an object store, apart from its columns of numbers, which stay in the cache.

They are written there once. Whoever trains reads what was drawn, by random access, so that no machine holds the whole:
the columns say where an example lies, and a digest of every block that it is what was prepared. Where they lie, they
are as private as the data; so is a log of who read what, which tells who was drawn.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.data.blocks import DIGEST, BlockFile, Blocks, Read, digests_of
from harness.data.layout import EXAMPLES, RECORDS, USERS, mapped_column, write_column
from harness.data.tables import LazyBatches, Table, positions
from harness.errors import MachineError
from harness.files import write_private
from harness.places import Place

KEY = "compute.prepare.store"
INDEX, DIGESTS = "stored.json", "digests"
_AT: dict[str, tuple[str, np.dtype[Any]]] = {
    "tokens": ("tokens_at", np.dtype(np.int32)),
    "loss": ("loss_at", np.dtype(np.uint8)),
}
"""Of each list column of examples, where its lists lie, and what they hold."""
_KINDS = (USERS, EXAMPLES, RECORDS)
_SENDERS = 4


@dataclass(frozen=True)
class Stored:
    """What is read of the tables.

    Attributes:
        users: A row per user.
        records: A row per record.
        examples: A row per example.
    """

    users: Table
    records: Table
    examples: Table | StoredExamples

    @classmethod
    def open(cls, folder: Path, lengths: npt.NDArray[np.int32]) -> Stored | None:
        """The tables of the corpus in `folder`; None: they lie there.

        Args:
            folder: The corpus, with its columns.
            lengths: Tokens of each example.

        Raises:
            OSError, ValueError, KeyError, TypeError: The index is missing or damaged.
        """
        if not (folder / INDEX).exists():
            return None
        index = json.loads((folder / INDEX).read_bytes())
        place = _place(index["url"], index["corpus"])
        what = f"{KEY}: a file of the prepared data in {place.shown}"
        hint = f"; if they are lost, delete {folder} and run again"
        files = [(_hinting(place.reader(each["name"]), hint), each["size"]) for each in index["files"]]
        blocks = Blocks(files, mapped_column(folder, DIGESTS).reshape(-1, DIGEST), what, hint)

        def of_kind(kind: str) -> list[tuple[int, list[int]]]:
            """The numbers of such files, each with the rows of its batches."""
            every = enumerate(index["files"])
            return [(number, each["rows"]) for number, each in every if PurePosixPath(each["name"]).name == kind]

        def table(kind: str) -> Table:
            found = of_kind(kind)
            opened = [functools.partial(BlockFile, blocks, number) for number, _ in found]
            return Table(LazyBatches(opened, [rows for _, rows in found]))

        at = {column: mapped_column(folder, name) for column, (name, _) in _AT.items()}
        if any(len(each) != len(lengths) for each in at.values()):
            raise ValueError("the index is not of these examples")
        examples = [(number, sum(rows)) for number, rows in of_kind(EXAMPLES)]
        return cls(table(USERS), table(RECORDS), StoredExamples(blocks, examples, at, lengths))


class StoredExamples:
    """Rows of examples, of which one list each is read."""

    def __init__(
        self, blocks: Blocks, files: Sequence[tuple[int, int]], at: dict[str, npt.NDArray[np.int64]],
        lengths: npt.NDArray[np.int32],
    ) -> None:  # fmt: skip
        """Takes where they lie.

        Args:
            blocks: Reads.
            files: In order: the number of a file, and of its rows.
            at: Per column, where in its file each row's list begins; -1: it is empty.
            lengths: Elements of a row's lists that are not empty.
        """
        self._blocks, self._at, self._lengths = blocks, at, lengths
        self._numbers = [number for number, _ in files]
        self._ends = np.cumsum([rows for _, rows in files])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def numbers_in(self, row: int, column: str) -> npt.NDArray[Any]:
        """A list of a list column, read-only."""
        dtype = _AT[column][1]
        span = self._span(row, column)
        return np.frombuffer(b"" if span is None else self._blocks.read(*span), dtype=dtype)

    def fetch(self, rows: Sequence[int]) -> None:
        """Begins to read these rows; does not wait."""
        spans = (self._span(row, column) for row in rows for column in _AT)
        self._blocks.fetch(span for span in spans if span is not None)

    def _span(self, row: int, column: str) -> tuple[int, int, int] | None:
        if not 0 <= row < self.rows:
            raise IndexError("there is no such row")
        start = int(self._at[column][row])
        if start < 0:
            return None
        file = self._numbers[int(np.searchsorted(self._ends, row, side="right"))]
        return file, start, int(self._lengths[row]) * _AT[column][1].itemsize


def _hinting(read: Read, hint: str) -> Read:
    def hinting(start: int, length: int) -> bytes:
        try:
            return read(start, length)
        except MachineError as error:
            raise MachineError(f"{error}{hint}") from None

    return hinting


def _place(url: str, corpus: str) -> Place:
    return Place(url, KEY, "corpora", corpus, private=True)


def begin(url: str, corpus: str) -> None:
    """Writes an empty file there: what can't be written is known before anything is prepared.

    Raises:
        ArgumentError: The URL can't be used.
        MachineError: It can't be written there.
    """
    _place(url, corpus).write("begun", b"")


def send(folder: Path, shards: Sequence[str], url: str, corpus: str) -> None:
    """Moves a corpus's tables, whose columns are written already.

    Args:
        folder: The corpus; what is sent is removed from it at the end.
        shards: Folders of its tables, within `folder`.
        url: Where to.
        corpus: Its name there; nothing else is ever written under it.

    Raises:
        MachineError: It can't be written there.
    """
    place = _place(url, corpus)
    files = [(f"{shard or 'all'}/{name}", folder / shard / name) for shard in shards for name in _KINDS]
    with ThreadPoolExecutor(_SENDERS) as pool:
        list(pool.map(lambda file: place.copy(file[1], file[0]), files))
    index = [_described(name, path) for name, path in files]
    examples = [folder / shard / EXAMPLES for shard in shards]
    total = sum(sum(each["rows"]) for each in index if PurePosixPath(each["name"]).name == EXAMPLES)
    for column, (name, _) in _AT.items():
        parts = (part for path in examples for part in positions(path, column))
        write_column(folder, name, np.int64, total, parts)
    digests = [digests_of(path) for _, path in files]
    write_column(folder, DIGESTS, np.uint8, sum(map(len, digests)), digests)
    write_private(folder / INDEX, json.dumps({"url": url, "corpus": corpus, "files": index}).encode())
    for _, path in files:
        path.unlink()


def _described(name: str, path: Path) -> dict[str, Any]:
    """A file's size, and the rows of each of its batches."""
    with pa.memory_map(str(path), "r") as source, pa.ipc.open_file(source) as file:
        rows = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
    return {"name": name, "size": path.stat().st_size, "rows": rows}
