"""Parquet files, read batch by batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.data.sources.base import BadRecord
from harness.data.sources.files import COMPRESSED, FileSource, Span, Values, reading, shown
from harness.data.sources.seen import Seen
from harness.data.times import SECONDS_PER_DAY, Moment
from harness.errors import ArgumentError

_ROWS = 512
_BUFFER = 1 << 20
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class Parquet(FileSource):
    """Parquet files; only the columns that are needed are read."""

    def _rows(self, path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
        return parquet_rows(path, keep, seen)

    def _rows_within(
        self, path: Path, keep: frozenset[str], seen: Seen, span: Span
    ) -> Iterator[tuple[str, Values | BadRecord]]:
        return parquet_rows(path, keep, seen, span)

    def spans(self, path: Path, most: int) -> list[Span]:
        """Stretches of row groups."""
        return parquet_spans(path, most, self.key)


def parquet_spans(path: Path, most: int, key: str) -> list[Span]:
    """Stretches of a Parquet file of about `most` bytes, as whole row groups; none of a file that can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.suppress(pa.ArrowException), reading(path, key), path.open("rb") as stream:
        groups = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER).metadata.num_row_groups
        each = max(1, round(groups * most / max(1, path.stat().st_size)))
        edges = [*range(0, groups, each), groups]
        return list(itertools.pairwise(edges)) if len(edges) > 2 else []
    return []


def parquet_rows(
    path: Path, keep: frozenset[str], seen: Seen, span: Span | None = None
) -> Iterator[tuple[str, Values | BadRecord]]:
    """The rows of one Parquet file, counted from 1. Memory is bounded by a batch, whatever the row groups' size.

    Args:
        path: The file.
        keep: The columns to return.
        seen: Is told of the columns that there are.
        span: Of row groups; None: all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_compressed(path, "Parquet", seen)
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER) as file:
            names = file.schema_arrow.names
            first, after = span or (0, file.metadata.num_row_groups)
            sizes = [file.metadata.row_group(i).num_rows for i in range(after)]
            number, rows = sum(sizes[:first]), sum(sizes[first:])
            seen.rows += rows
            seen.add(dict.fromkeys(names), rows)
            wanted = [name for name in names if name in keep]
            if not wanted:
                yield from ((f"row {n}", {}) for n in range(number + 1, number + rows + 1))
                return
            groups = range(first, after)
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=wanted, use_threads=False):
                for row in _rows_of(batch):
                    number += 1
                    yield f"row {number}", row
            return
    except pa.ArrowException:
        pass  # what it says may quote the file
    raise ArgumentError(f"{seen.key}: {shown(path)} is not a Parquet file, or is damaged")


def arrow_rows(path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
    """The rows of one Arrow file (a stream, as `datasets` saves it, or a file), counted from 1."""
    import pyarrow as pa

    _refuse_compressed(path, "Arrow", seen)
    number = 0
    try:
        with pa.memory_map(str(path), "r") as stream:
            for batch in _arrow_batches(stream):
                names = batch.schema.names
                seen.rows += batch.num_rows
                seen.add(dict.fromkeys(names), batch.num_rows)
                kept = batch.select([name for name in names if name in keep])
                for start in range(0, batch.num_rows, _ROWS):
                    part = _rows_of(kept.slice(start, _ROWS)) or [{}] * min(_ROWS, batch.num_rows - start)
                    for row in part:
                        number += 1
                        yield f"row {number}", row
            return
    except pa.ArrowException:
        pass  # what it says may quote the file
    raise ArgumentError(f"{seen.key}: {shown(path)} is not an Arrow file, or is damaged")


def _rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. Python's own dates would refuse a year 10000, or nanoseconds, with all of the batch."""
    if not any(map(_is_time, batch.schema.types)):
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    columns = [_moments(column) if _is_time(column.type) else column.to_pylist() for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _moments(column: Any) -> list[Moment | None]:
    import pyarrow as pa

    if pa.types.is_date32(column.type):
        days = column.cast(pa.int32()).to_pylist()
        return [None if day is None else Moment(float(day * SECONDS_PER_DAY)) for day in days]
    unit = _PER_SECOND["ms" if pa.types.is_date64(column.type) else column.type.unit]
    return [None if number is None else Moment(number / unit) for number in column.cast(pa.int64()).to_pylist()]


def _is_time(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _refuse_compressed(path: Path, format_: str, seen: Seen) -> None:
    """These formats are read from their end on, and compress their columns themselves."""
    if path.suffix.lower() in COMPRESSED:
        message = f"{shown(path)} is a {format_} file compressed once more, which can't be read; decompress it"
        raise ArgumentError(f"{seen.key}: {message}")


def _arrow_batches(stream: Any) -> Iterator[Any]:
    import pyarrow as pa

    if stream.read(6) == b"ARROW1":
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        stream.seek(0)
        yield from pa.ipc.open_stream(stream)
