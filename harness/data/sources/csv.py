"""Comma-separated values, the first row naming the columns. Values stay the text that they are."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, field_validator

from harness.data.sources.base import BadRecord, Columns, Record
from harness.data.sources.files import FileParameters, FileSource, Values, open_binary, shown, wrong_encoding
from harness.data.sources.seen import Seen
from harness.errors import ArgumentError

_LONGEST = 1 << 24
"""Characters of one value: with a quote that is never closed, the rest of the file would be one."""

_UNREADABLE = "\udfff"
"""Stands for bytes that the encoding has not: half a character, which no text can hold."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _UNREADABLE, error.end


codecs.register_error("uudp-mark", _mark)


class CsvParameters(FileParameters):
    """Parameters of `csv`."""

    delimiter: str = Field(default=",", description='what separates values, as ";" or "\\t"')
    encoding: str = Field(default="utf-8", min_length=1, description="of the files, as utf-8, utf-16 or cp1252")

    @field_validator("delimiter")
    @classmethod
    def _separates(cls, value: str) -> str:
        if len(value) != 1 or value in '"\r\n\0':
            raise ValueError("must be one character, and not a quote or a line's end")
        return value

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            if "x".encode(value).decode(value) == "x":
                return value
        except (LookupError, ValueError):
            pass
        raise ValueError(f'there is no encoding "{value}"')


class Csv(FileSource):
    """Files of comma-separated values with a header row; quoted values may hold line breaks."""

    Parameters = CsvParameters
    parameters: CsvParameters

    def _rows(self, path: Path, keep: frozenset[str], seen: Seen) -> Iterator[tuple[str, Values | BadRecord]]:
        seen.header = True
        csv.field_size_limit(_LONGEST)  # one for the whole process, and 131,072 at first
        with open_binary(path) as binary:
            text = io.TextIOWrapper(binary, encoding=self._codec, errors="uudp-mark", newline="")
            reader = csv.reader(text, delimiter=self.parameters.delimiter, strict=True)
            header = self._header(reader, path, keep, seen.key)
            if not header:
                return
            places = [(i, name) for i, name in enumerate(header) if name in keep]
            while True:
                where = f"line {reader.line_num + 1}"
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error:
                    seen.rows += 1
                    seen.add(header)
                    yield where, BadRecord(where, "not CSV (its quotes, or a value that is far too long)")
                    continue
                if not row:  # a blank line
                    continue
                seen.rows += 1
                seen.add(header)
                if len(row) == len(header):
                    yield where, {name: row[i] or None for i, name in places}
                else:
                    yield where, BadRecord(where, f"the row has {len(row)} values, the header {len(header)}")

    def _record(self, row: Values, columns: Columns, where: str) -> Record | BadRecord:
        record = super()._record(row, columns, where)
        if isinstance(record, BadRecord) and record.reason.endswith("is not valid Unicode"):
            what = record.reason.removesuffix("is not valid Unicode")
            reason = f"{what}is not {self.parameters.encoding} (data.source.encoding)"
            return BadRecord(where, reason, record.user, record.attributes)
        return record

    @property
    def _encoding(self) -> str:
        return self.parameters.encoding

    @property
    def _codec(self) -> str:
        utf8 = codecs.lookup(self.parameters.encoding).name == "utf-8"
        return "utf-8-sig" if utf8 else self.parameters.encoding  # without a byte-order mark

    def _header(self, reader: Iterator[list[str]], path: Path, keep: frozenset[str], key: str) -> list[str]:
        try:
            header = next(reader, [])
        except csv.Error:
            raise ArgumentError(f"{key}: the first line of {shown(path)} is no header of columns") from None
        if any(_UNREADABLE in name or "\0" in name for name in header):
            raise wrong_encoding(key, f"the header of {shown(path)}", self.parameters.encoding)
        names = [name.strip() for name in header]
        for name in keep:
            if names.count(name) > 1:
                raise ArgumentError(f'{key}: {shown(path)} has several columns "{name}"')
        return names
