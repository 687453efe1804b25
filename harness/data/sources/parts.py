"""A source in parts that can be read apart, by several processes at once. Their order is the source's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.sources.base import BadRecord, Columns, Record, RecordSource
from harness.data.sources.files import FileSource, Span
from harness.data.sources.seen import Seen

_LEAST_BYTES = 1 << 26
MOST_PARTS = 512
"""A shard's writer has the files of all parts open."""


@dataclass(frozen=True)
class Part:
    """Some files of a source, or a stretch of one, or the source as a whole.

    Attributes:
        source: Whose part it is.
        files: Its files, each with what the places of its records begin with; none: the source as a whole.
        span: Of its only file; None: all of it.
    """

    source: RecordSource
    files: tuple[tuple[Path, str], ...] = ()
    span: Span | None = None

    def records(self, columns: Columns, seen: Seen) -> Iterator[Record | BadRecord]:
        """Its records. Private.

        Args:
            columns: What is read.
            seen: Of files, is told of the columns that there are: they are to be checked over all parts.
        """
        if not isinstance(self.source, FileSource) or not self.files:
            return self.source.records(columns)
        of_file = self.source.records_in
        return itertools.chain.from_iterable(
            of_file(path, prefix, self.span, columns, seen) for path, prefix in self.files
        )

    @property
    def goes_on(self) -> bool:
        """Whether it begins within a file."""
        return self.span is not None and self.span[0] > 0


def parts_of(source: RecordSource, at_least: int | None) -> list[Part]:
    """Splits a source.

    Args:
        source: May be of any kind; only files in the harness's own formats are split.
        at_least: So many parts, if the files allow it; None: parts that are worth a process.
    """
    if not isinstance(source, FileSource) or not _splits(source):
        return [Part(source)]
    files = source.prefixes()
    sizes = {path: path.stat().st_size for path, _ in files if path.exists()}
    total = sum(sizes.values())
    most = max(1, total // MOST_PARTS * 2, total // at_least if at_least else _LEAST_BYTES)
    parts: list[Part] = []
    waiting: list[tuple[Path, str]] = []
    for path, prefix in files:
        spans = source.spans(path, most) if sizes.get(path, 0) > most else []
        waiting += [] if spans else [(path, prefix)]
        if waiting and (spans or sum(sizes.get(one, 0) for one, _ in waiting) >= most):
            parts.append(Part(source, tuple(waiting)))
            waiting = []
        parts += [Part(source, ((path, prefix),), span) for span in spans]
    return [*parts, Part(source, tuple(waiting))] if waiting else parts


def _splits(source: FileSource) -> bool:
    """Whether its rows are read by our own code alone.

    A plugin may have changed any of it, as which rows a file has, or may remember rows of one file while it reads the
    next: read in parts, it could make other examples than read as a whole, under the same fingerprint.
    """
    return type(source).__module__.startswith("harness.data.sources.")


def lines_before(parts: Sequence[Part], lines: Sequence[int]) -> list[int]:
    """For each part, the lines of its file that earlier parts hold.

    Args:
        parts: Of one source, in order.
        lines: The lines that each part holds; 0 where they need not be counted.
    """
    found, before = list[int](), 0
    for part, own in zip(parts, lines, strict=True):
        before = before if part.goes_on else 0
        found.append(before)
        before += own
    return found


def placed(where: str, before: int) -> str:
    """The place in the file of a record whose place in its part ends with a number."""
    if not before:
        return where
    what, _, number = where.rpartition(" ")
    return f"{what} {int(number) + before}"
