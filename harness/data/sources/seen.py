"""What a source has been seen to hold, so that a column that occurs in no record can be named."""

from __future__ import annotations

from collections.abc import Iterable

from harness.data.sources.base import Columns, missing_column
from harness.errors import ArgumentError


class Seen:
    """Which columns occurred, and how often; and whether there was anything at all.

    Attributes:
        key: What of the spec names the files.
        header: Whether the columns' names are a first line, which may be no header but somebody's record.
        lines: Number of the last line, where lines are counted.
    """

    def __init__(self, key: str = "data.source.path") -> None:
        self.key = key
        self.header = False
        self.lines = 0
        self.rows = 0
        self.objects = 0
        self.counts: dict[str, int] = {}
        self.what = "a record"

    def add(self, names: Iterable[str], rows: int = 1) -> None:
        """Notes that so many rows have these columns."""
        self.objects += rows
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + rows

    def merge(self, following: Seen) -> None:
        """Notes what was seen of the part of the source that follows."""
        if not self.rows:
            self.what = following.what
        self.rows += following.rows
        self.objects += following.objects
        self.header |= following.header
        for name, count in following.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count

    def check(self, columns: Columns, source: str) -> None:
        """Refuses a source without records, or without a declared column in any of them."""
        self.check_rows(source)
        # Names that few records have could themselves be private: only the usual ones are offered.
        usual = [name for name, count in self.counts.items() if 2 * count >= self.objects]
        declared = columns.declared()
        if self.header and not any(name in self.counts for _, name in declared):
            raise ArgumentError(
                f"{self.key}: the first line of {source} names none of the columns "
                f"{', '.join(name for _, name in declared)}; it must be a header (or data.source.delimiter is wrong)"
            )
        for key, name in declared:
            if name not in self.counts:
                raise missing_column(key if self.key == "data.source.path" else self.key, name, usual, source)

    def check_rows(self, source: str) -> None:
        """Refuses a source without records."""
        if not self.rows:
            raise ArgumentError(f"{self.key}: {source} has no records")
        if not self.objects:
            raise ArgumentError(f"{self.key}: no line of {source} is {self.what}")
