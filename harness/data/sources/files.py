"""Sources that are files: one, several, or a glob; compressed or not; found here or beside the spec."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import io
import itertools
import lzma
import os
import re
import stat
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, cast

from pydantic import Field

from harness.data.sources.base import (
    BadRecord,
    Columns,
    Record,
    RecordSource,
    attributes_of,
    make_record,
    user_of,
)
from harness.data.sources.objects import ObjectFile, file_at, is_object, locate_objects
from harness.data.sources.seen import Seen
from harness.errors import ArgumentError
from harness.plugins import PluginParameters

_BLOCK = 1 << 20
_LONGEST_SHOWN = 200
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zst")
"""Endings of files that are decompressed while they are read."""
S = TypeVar("S", bound="FileSource")

Values = Mapping[str, object]
"""The columns of one record that were asked for, by name."""

Span = tuple[int, int]
"""A stretch of a file that can be read by itself: bytes, or row groups; from the first number to before the second."""

_PATH = (
    "a file, a glob (data/*.jsonl) or a list of them; relative to the current directory, else to the spec; or objects, "
    "as s3://BUCKET/posts/*.jsonl.gz (?region=…, ?endpoint_override=HOST:PORT&scheme=http; keys are the environment's)"
)


class FileParameters(PluginParameters):
    """Parameters of every source that reads files."""

    path: (
        Annotated[str, Field(min_length=1)]
        | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    ) = Field(description=_PATH)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path, as it was given."""
        return (self.path,) if isinstance(self.path, str) else self.path


class RowSource(RecordSource):
    """A source of rows with named columns. To add one, implement `_every_row` and `fingerprint`."""

    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        """Every record, in order."""
        for where, row in self._every_row(columns, columns.names):
            if isinstance(row, BadRecord):
                yield row
            else:
                yield self._record(row, columns, where)

    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """User and public attributes of every record that has a user; texts are dropped while a row is read."""
        for _, row in self._every_row(columns, (columns.user, *columns.attributes)):
            if isinstance(row, BadRecord):
                continue
            user, _ = user_of(row.get(columns.user))
            if user is not None:
                yield user, attributes_of(row, columns.attributes)

    def _record(self, row: Values, columns: Columns, where: str) -> Record | BadRecord:
        return make_record(row.get(columns.user), row.get(columns.text), row, columns, where)

    @abstractmethod
    def _every_row(self, columns: Columns, keep: Sequence[str]) -> Iterator[tuple[str, Values | BadRecord]]:
        """All rows with their places, in an order that is the same each time.

        Args:
            columns: What is declared.
            keep: The columns to return; those that a row lacks are left out.

        Raises:
            ArgumentError: A declared column occurs in no row, or nothing can be read at all.
        """


class FileSource(RowSource):
    """A source of files. To add a format, implement `_rows`.

    Attributes:
        key: What of the spec names the files, for errors.
    """

    Parameters = FileParameters
    parameters: FileParameters
    key: str = "data.source.path"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order in which they are read."""
        return tuple(file_at(path, self.key) for path in self.parameters.paths)

    def located(self: S, base_dir: Path) -> S:
        """The same files by their absolute paths; those of a glob are sorted."""
        found = locate(self.parameters.paths, base_dir, "data.source.path")
        return self._of(found)

    def beside(self: S, path: str, base_dir: Path) -> S:
        """The same format and parameters, for another file."""
        found = locate((path,), base_dir, "data.holdout.file")
        other = self._of(found)
        other.key = "data.holdout.file"
        own = {os.path.realpath(file) for file in self.files}
        if any(os.path.realpath(file) in own for file in other.files):
            raise ArgumentError("data.holdout.file: is among the files of data.source, whose users are trained on")
        return other

    def first_rows(self, limit: int) -> list[Values]:
        """The first usable rows with all of their columns, for `uudp init`. Private.

        Raises:
            ArgumentError: There are none, or nothing can be read at all.
        """
        seen, rows, bad = Seen(self.key), list[Values](), ""
        for path in self.files:
            with reading(path, self.key, self._encoding):
                for _, row in itertools.islice(self._rows(path, _Every(), seen), limit - len(rows)):
                    if isinstance(row, BadRecord):
                        bad = bad or f"{row.where}: {row.reason}"
                    else:
                        rows.append(row)
        if not rows:
            seen.check_rows(self.source_name)
            raise ArgumentError(f"{self.key}: {self.source_name} has no row that can be used ({bad})")
        return rows

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds the bytes of every file, and the parameters that decide how they are read; not where they lie."""
        others = self.parameters.model_dump(mode="json", exclude={"path"})
        for path in self.files:
            size = 0
            with reading(path, self.key), path.open("rb") as file:
                while block := file.read(_BLOCK):
                    update(block)
                    size += len(block)
            update(f"\0{size} {path.suffix.lower()} {others}\n".encode())

    def _of(self: S, found: tuple[str, ...]) -> S:
        path = found[0] if len(found) == 1 else found
        return type(self)(self.parameters.model_copy(update={"path": path}))

    @property
    def _encoding(self) -> str:
        """Of the files, for errors."""
        return "utf-8"

    @property
    def source_name(self) -> str:
        """What was read, for errors."""
        files = self.files
        return shown(files[0]) if len(files) == 1 else f"the {len(files)} files of {self.key.rpartition('.')[0]}"

    def _every_row(self, columns: Columns, keep: Sequence[str]) -> Iterator[tuple[str, Values | BadRecord]]:
        """The rows of all files with their places, and at the end whether the columns occur at all."""
        seen = Seen(self.key)
        for path, prefix in self.prefixes():
            yield from self._rows_of(path, prefix, None, keep, seen)
        seen.check(columns, self.source_name)

    def _rows_of(
        self, path: Path, prefix: str, span: Span | None, keep: Sequence[str], seen: Seen
    ) -> Iterator[tuple[str, Values | BadRecord]]:
        with reading(path, self.key, self._encoding):
            asked = frozenset(keep)
            rows = self._rows(path, asked, seen) if span is None else self._rows_within(path, asked, seen, span)
            for where, row in rows:
                place = prefix + where
                yield place, BadRecord(place, row.reason) if isinstance(row, BadRecord) else row

    def prefixes(self) -> list[tuple[Path, str]]:
        """The files, each with what the places of its records begin with."""
        files = self.files
        return [(path, f"{name} " if len(files) > 1 else "") for path, name in zip(files, _names(files), strict=True)]

    def records_in(
        self, path: Path, prefix: str, span: Span | None, columns: Columns, seen: Seen
    ) -> Iterator[Record | BadRecord]:
        """The records of one file, or of a stretch of it; whether the columns occur is for the caller to check.

        Args:
            path: One of `files`.
            prefix: Of its records' places.
            span: One of `spans`; None: the file.
            columns: What is read.
            seen: Is told of the columns that there are.
        """
        for where, row in self._rows_of(path, prefix, span, columns.names, seen):
            yield row if isinstance(row, BadRecord) else self._record(row, columns, where)

    def spans(self, path: Path, most: int) -> list[Span]:
        """Stretches of a file, of about `most` bytes each, that can be read apart; none: it is read as a whole."""
        return []

    def _rows_within(
        self, path: Path, keep: frozenset[str], seen: Seen, span: Span
    ) -> Iterator[tuple[str, Values | BadRecord]]:
        """As `_rows`, of one of `spans`."""
        raise NotImplementedError

    @abstractmethod
    def _rows(self, path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
        """The rows of one file.

        Args:
            path: The file.
            keep: The columns to return; those that a row lacks are left out.
            seen: Is told of the columns that there are.
        """


class _Every(frozenset[str]):
    """All names."""

    def __contains__(self, name: object) -> bool:
        return True


@contextlib.contextmanager
def reading(path: Path, key: str, encoding: str = "utf-8") -> Iterator[None]:
    """Turns whatever reading a file raises into one line that quotes nothing of it.

    Args:
        path: The file.
        key: Of the spec, that names it.
        encoding: That it is read in.
    """
    try:
        yield
        return
    except UnicodeError:
        problem = wrong_encoding(key, shown(path), encoding)
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged, or not compressed as its name says"
        problem = ArgumentError(f"{key}: {shown(path)} can't be read ({reason})")
    raise problem from None  # what was raised may quote the text


def wrong_encoding(key: str, what: str, encoding: str) -> ArgumentError:
    """The error for a file that is not in the encoding that the spec declares."""
    if key == "data.source.path":
        return ArgumentError(f"data.source.encoding: {what} is not {encoding}; give the file's encoding")
    return ArgumentError(f"{key}: {what} is not {encoding} (data.source.encoding, which holds for both files)")


def shown(path: Path | str) -> str:
    """A path on one line of bounded length."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]}…{text[-half:]}"


def locate(paths: Sequence[str], base_dir: Path, key: str) -> tuple[str, ...]:
    """The files that `paths` name, absolute, each once.

    Args:
        paths: Files or globs; what exists below the current directory comes first, then what lies beside the spec.
        base_dir: The folder of the spec.
        key: Of the spec, for errors.

    Raises:
        ArgumentError: One of them names no file.
    """
    found: dict[str, str] = {}  # each once, however it is written
    for given in paths:
        if is_object(given):
            found.update({os.fspath(file_at(url)): url for url in locate_objects(given, key)})
            continue
        if _URL.match(given):  # not quoted: it may hold a key
            raise ArgumentError(f"{key}: of URLs only those of objects can be read, as s3://BUCKET/KEY")
        existing = existing_path(given, base_dir, key)
        if existing is not None and existing.is_dir():
            message = f"{shown(given)} is a folder, not a file (for all of its files: {shown(given)}/*)"
            raise ArgumentError(f"{key}: {message}")
        if existing is not None:
            found[str(existing)] = str(existing)
            continue
        if not glob.has_magic(given):
            raise ArgumentError(f"{key}: there is no file {shown(given)}")
        for candidate in _candidates(given, base_dir, key):
            matches = [m for m in sorted(glob.glob(str(candidate), recursive=True)) if Path(m).is_file()]
            if matches:
                found.update({match: match for match in matches})
                break
        else:
            raise ArgumentError(f"{key}: no file matches {shown(given)}")
    return tuple(found.values())


def existing_path(given: str, base_dir: Path, key: str) -> Path | None:
    """The file or folder of that name: below the current directory, else beside the spec; None if there is none.

    Raises:
        ArgumentError: It can't be looked at, is no regular file or folder, or is a link to nothing.
    """
    problem = ""
    for candidate in _candidates(given, base_dir, key):
        try:
            mode = candidate.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if candidate.is_symlink():
                problem = problem or "is a link to what is not there"
            continue
        except OSError as error:
            problem = problem or f"can't be looked at ({error.strerror or type(error).__name__})"
            continue
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return candidate
        problem = problem or "is a pipe, a socket or a device; the data are read more than once, so save them first"
    if problem and not glob.has_magic(given):
        raise ArgumentError(f"{key}: {shown(given)} {problem}")
    return None


def _candidates(given: str, base_dir: Path, key: str) -> list[Path]:
    if "\0" in given:
        raise ArgumentError(f"{key}: {shown(given)} holds a character that no path can have")
    try:
        path = Path(given).expanduser()
    except RuntimeError:  # ~somebody
        raise ArgumentError(f"{key}: {shown(given)} begins with the home folder of nobody here") from None
    return [path] if path.is_absolute() else [Path.cwd() / path, base_dir.resolve() / path]


def open_binary(path: Path) -> BinaryIO:
    """A file's content, decompressed as its name says (.gz, .bz2, .xz, .zst), as a stream."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return path.open("rb")
    raw: Any = path.open("rb") if isinstance(path, ObjectFile) else path
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(raw, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(raw, "rb"))
    if suffix in (".xz", ".lzma"):
        return cast(BinaryIO, lzma.open(raw, "rb"))
    import pyarrow as pa

    file = pa.PythonFile(raw, mode="r") if isinstance(path, ObjectFile) else pa.OSFile(str(path), "rb")
    stream: Any = pa.CompressedInputStream(file, "zstd")
    return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))


def _names(files: Sequence[Path]) -> list[str]:
    """The files' names, as short as they can be told apart."""
    above = os.path.commonpath([file.parent for file in files])
    return [os.path.relpath(file, above) for file in files]
