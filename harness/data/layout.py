"""The files of a corpus, as they are written: three Arrow tables grouped by user, and columns of numbers beside them.

``users.arrow`` has a row per user (sorted by name), ``examples.arrow`` a row per training example and
``records.arrow`` a row per record; a user's examples and records are neighbours. Of large data these files come in
shards: each has the users of a range of names, and the shards follow each other as the ranges do. The columns of
numbers lie beside them, one file each for all shards, so that they can be mapped as whole arrays: a worker reads what
it draws, and holds no list of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.data.tables import Table
from harness.files import create_private

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
LENGTHS, HELD = "lengths", "held"
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
        write_column(folder, column, dtype, sum(sizes[name]), parts)
    lengths = (part for table in tables[EXAMPLES] for part in table.lengths("tokens"))
    write_column(folder, LENGTHS, np.int32, sum(sizes[EXAMPLES]), lengths)
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
    write_column(folder, HELD, np.int64, len(found), [found])
    return start, sum(sizes[EXAMPLES])


def write_column(
    folder: Path, name: str, dtype: type[np.generic], rows: int, parts: Iterable[npt.NDArray[Any]]
) -> None:
    """A file as `numpy.save` writes them."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows,)}
    with create_private(folder / f"{name}.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(dtype).tobytes())


def mapped_column(folder: Path, name: str) -> npt.NDArray[Any]:
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
