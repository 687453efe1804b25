"""Arrow files that are written row by row, and read by random access."""

from __future__ import annotations

import bisect
import io
import itertools
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.files import create_private

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

    def cut(self) -> None:
        """Ends a batch: what follows begins another."""
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


def mapped(path: Path, numbers: Iterable[int] | None = None, *, scattered: bool = False) -> list[pa.RecordBatch]:
    """Some batches of an Arrow file, or all, memory-mapped.

    Args:
        path: The file.
        numbers: Of the batches; None: all.
        scattered: Whether a few rows are read here and there: the kernel, which would read 128 KB around each, is told.
    """
    if scattered:
        with path.open("rb") as stream:
            place = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        place.madvise(mmap.MADV_RANDOM)
        source = pa.BufferReader(pa.py_buffer(place))
    else:
        source = pa.memory_map(str(path), "r")
    with pa.ipc.open_file(source) as file:
        return [file.get_batch(i) for i in (range(file.num_record_batches) if numbers is None else numbers)]


def positions(path: Path, column: str) -> Iterator[npt.NDArray[np.int64]]:
    """Where each list of a list column begins in an Arrow file, in bytes; -1: it is empty. Batch by batch."""
    with path.open("rb") as stream:
        whole = pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    with pa.ipc.open_file(pa.BufferReader(whole)) as file:
        for number in range(file.num_record_batches):
            lists = file.get_batch(number).column(column)
            values, offsets = lists.values, lists.offsets.to_numpy().astype(np.int64)
            start = values.buffers()[1].address - whole.address if len(values) else 0
            yield np.where(np.diff(offsets) > 0, start + offsets[:-1] * (values.type.bit_width // 8), -1)


class LazyBatches(Sequence[pa.RecordBatch]):
    """Batches of files that are not mapped; the last ones read are kept.

    Attributes:
        sizes: Rows of each.
    """

    _MOST = 2

    def __init__(self, files: Sequence[Callable[[], io.RawIOBase]], sizes: Sequence[Sequence[int]]) -> None:
        """Args: `files`: each opens one; `sizes`: for each, the rows of its batches."""
        self.sizes = [rows for of_file in sizes for rows in of_file]
        self._files = files
        self._places = [(i, k) for i, of_file in enumerate(sizes) for k in range(len(of_file))]
        self._readers: dict[int, pa.ipc.RecordBatchFileReader] = {}
        self._kept: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: Any, /) -> Any:
        with self._lock:
            if number not in self._kept:
                file, place = self._places[number]
                if file not in self._readers:
                    self._readers[file] = pa.ipc.open_file(pa.PythonFile(self._files[file](), mode="r"))
                self._kept[number] = self._readers[file].get_batch(place)
                while len(self._kept) > self._MOST:
                    self._kept.popitem(last=False)
            return self._kept[number]


class Table:
    """The batches of Arrow files: rows by their number, without reading the rest."""

    def __init__(self, batches: Iterable[pa.RecordBatch] | LazyBatches) -> None:
        """Takes batches that are mapped, or that are read when they are asked for."""
        self._batches = batches if isinstance(batches, LazyBatches) else list(batches)
        sizes = batches.sizes if isinstance(batches, LazyBatches) else [batch.num_rows for batch in self._batches]
        self._starts: list[int] = list(itertools.accumulate(sizes, initial=0))
        self._views: dict[tuple[int, int], tuple[npt.NDArray[np.int32], npt.NDArray[Any]]] = {}

    @classmethod
    def of(cls, *paths: Path, scattered: bool = False) -> Table:
        """The rows of these files, one after the other; `scattered` as of `mapped`."""
        return cls(batch for path in paths for batch in mapped(path, scattered=scattered))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._starts[-1]

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
        number = bisect.bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def _view(self, number: int, column: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        batch = self._batches[number]
        key = (number, batch.schema.get_field_index(column))
        if key not in self._views:
            lists = batch.column(key[1])
            self._views[key] = (lists.offsets.to_numpy(), lists.values.to_numpy())
        return self._views[key]
