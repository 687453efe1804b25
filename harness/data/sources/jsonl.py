"""JSON Lines: one JSON object per line, in UTF-8."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from harness.data.sources.base import BadRecord
from harness.data.sources.files import COMPRESSED, FileSource, Span, Values, open_binary, reading
from harness.data.sources.seen import Seen

_LONGEST = 1 << 25
"""Bytes of one line: a file without line ends would be one, as large as it is."""

_ALL = (0, 1 << 62)
"""A whole file, however long it is when it is decompressed."""


@dataclass(frozen=True)
class _Object:
    """A JSON object: its members, in order."""

    members: list[tuple[str, Any]]


class Jsonl(FileSource):
    """Files of JSON objects, one per line."""

    def _rows(self, path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
        return self._rows_within(path, keep, seen, _ALL)

    def _rows_within(
        self, path: Path, keep: frozenset[str], seen: Seen, span: Span
    ) -> Iterator[tuple[str, Values | BadRecord]]:
        """The lines of a stretch, counted from its beginning: how many come before it, nobody has read yet."""
        decoder = json.JSONDecoder(object_pairs_hook=_Object)
        seen.what = "a JSON object in UTF-8"
        start, stop = span
        with open_binary(path) as file:
            if start:
                file.seek(start)
            for number, raw in enumerate(_lines(file, stop - start), start=1):
                seen.lines = number
                line = raw.removeprefix(b"\xef\xbb\xbf") if start == 0 and number == 1 else raw
                if not line.strip():
                    continue
                where = f"line {number}"
                found = _parse(decoder, line, where, keep)
                if not seen.rows and line.lstrip().startswith(b"["):
                    seen.what += "; where it is one JSON array, put each of its objects on a line of its own"
                seen.rows += 1
                if isinstance(found, BadRecord):
                    yield where, found
                else:
                    names, values = found
                    seen.add(names)
                    yield where, values

    def spans(self, path: Path, most: int) -> list[Span]:
        """Stretches of whole lines, of a file that is not compressed."""
        if path.suffix.lower() in COMPRESSED:
            return []
        with reading(path, self.key), path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            edges = [0]
            while size - edges[-1] > most:
                file.seek(edges[-1] + most)
                _skip_line(file)
                if file.tell() >= size:
                    break
                edges.append(file.tell())
        return list(itertools.pairwise([*edges, size])) if len(edges) > 1 else []


def _lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines of so many bytes; of one that is far too long only the beginning, which is no JSON."""
    read = 0
    while read < most and (line := file.readline(_LONGEST)):
        yield line
        read += len(line)
        while len(line) == _LONGEST and not line.endswith(b"\n"):
            line = file.readline(_LONGEST)
            read += len(line)


def _skip_line(file: BinaryIO) -> None:
    """Goes on to the beginning of the next line."""
    while (part := file.readline(_LONGEST)) and not part.endswith(b"\n"):
        pass


def _plain(value: object) -> object:
    """Lists and objects as Python has them."""
    if isinstance(value, _Object):
        return {name: _plain(inner) for name, inner in value.members}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _parse(
    decoder: json.JSONDecoder, raw: bytes, where: str, keep: frozenset[str]
) -> tuple[set[str], Values] | BadRecord:
    """The names of all members of a line's object, and the values of those in `keep`."""
    if len(raw) >= _LONGEST - 3:  # a byte-order mark may be gone
        return BadRecord(where, "a line that is far too long")
    try:
        value = decoder.decode(raw.decode("utf-8").rstrip("\r\n"))
        if isinstance(value, _Object):
            kept = {name: _plain(inner) for name, inner in value.members if name in keep}
            return {name for name, _ in value.members}, kept
    except UnicodeDecodeError:
        return BadRecord(where, "not UTF-8")
    except json.JSONDecodeError as error:
        return BadRecord(where, f"not JSON (column {error.colno})")
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        return BadRecord(where, "not JSON that can be read")
    return BadRecord(where, "not a JSON object")
