"""JSON Lines: one JSON object per line, in UTF-8."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.data.sources.base import (
    BadRecord,
    Columns,
    Record,
    RecordSource,
    attributes_of,
    make_record,
    missing_column,
    user_of,
)
from harness.errors import ArgumentError
from harness.plugins import PluginParameters

_BLOCK = 1 << 20


class JsonlParameters(PluginParameters):
    """Parameters of `jsonl`."""

    path: str = Field(min_length=1, description="the file; relative to the current directory, else to the spec")


@dataclass(frozen=True)
class _Object:
    """A JSON object: the values that were asked for, and the names of all its keys."""

    values: Mapping[str, object]
    names: tuple[str, ...]


class Jsonl(RecordSource):
    """A file of JSON objects, one per line."""

    Parameters = JsonlParameters
    parameters: JsonlParameters

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.parameters.path).expanduser()

    def located(self, base_dir: Path) -> Jsonl:
        """The same file by its absolute path."""
        given = self.path
        candidates = [given] if given.is_absolute() else [Path.cwd() / given, base_dir.resolve() / given]
        for path in candidates:
            if path.is_dir():
                raise ArgumentError(f"data.source.path: {self.parameters.path} is a folder, not a file")
            if path.exists():
                return Jsonl(self.parameters.model_copy(update={"path": str(path)}))
        raise ArgumentError(f"data.source.path: there is no file {self.parameters.path}")

    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        """Every line that is not blank, in order."""
        names = (columns.user, columns.text, *columns.attributes)
        for where, line in self._objects(columns, keep=names):
            if isinstance(line, BadRecord):
                yield line
            else:
                values = line.values
                yield make_record(values.get(columns.user), values.get(columns.text), values, columns, where)

    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """User and public attributes of every line that has a user; texts are dropped while a line is parsed."""
        for _, line in self._objects(columns, keep=(columns.user, *columns.attributes)):
            if isinstance(line, BadRecord):
                continue
            user, _ = user_of(line.values.get(columns.user))
            if user is not None:
                yield user, attributes_of(line.values, columns.attributes)

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds the bytes of the file."""
        try:
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK):
                    update(block)
        except OSError as error:
            raise self._unreadable(error) from None

    def _objects(self, columns: Columns, keep: tuple[str, ...]) -> Iterator[tuple[str, _Object | BadRecord]]:
        """Every line that is not blank, and at the end whether the columns occur at all."""
        wanted = frozenset(keep)

        def hook(pairs: list[tuple[str, Any]]) -> _Object:
            return _Object({k: v for k, v in pairs if k in wanted}, tuple(k for k, _ in pairs))

        decoder = json.JSONDecoder(object_pairs_hook=hook)
        seen: Counter[str] = Counter()
        lines = objects = 0
        for number, raw in self._lines():
            where = f"line {number}"
            found = _parse(decoder, raw, where)
            lines += 1
            if isinstance(found, _Object):
                objects += 1
                seen.update(set(found.names))
            yield where, found
        if not lines:
            raise ArgumentError(f"data.source.path: {self.path} has no records")
        if not objects:
            raise ArgumentError(f"data.source.path: no line of {self.path} is a JSON object in UTF-8")
        # Names that few lines have could themselves be private: only the usual ones are offered.
        usual = [name for name, count in seen.items() if 2 * count >= objects]
        declared = [("data.user", columns.user), ("data.text", columns.text)]
        for what, name in [*declared, *(("data.attributes", a) for a in columns.attributes)]:
            if name not in seen:
                raise missing_column(what, name, usual, str(self.path))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                    if line.strip():
                        yield number, line
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> ArgumentError:
        return ArgumentError(f"data.source.path: {self.path} can't be read ({error.strerror or type(error).__name__})")


def _parse(decoder: json.JSONDecoder, raw: bytes, where: str) -> _Object | BadRecord:
    try:
        value = decoder.decode(raw.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError:
        return BadRecord(where, "not UTF-8")
    except json.JSONDecodeError as error:
        return BadRecord(where, f"not JSON (column {error.colno})")
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        return BadRecord(where, "not JSON that can be read")
    return value if isinstance(value, _Object) else BadRecord(where, "not a JSON object")
