"""Reads a source once, tokenises it, groups it by user and writes the corpus's files."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import guard, store
from harness.data.holdout import holdout_order, is_holdout
from harness.data.packing import Tokenizer, pack, tokenize
from harness.data.sources.base import BadRecord, Columns, Record, RecordSource, make_record, user_of
from harness.data.store import Table, TableWriter
from harness.data.users import Users
from harness.files import create_private

_LISTED = 10_000
_BATCH_TEXTS, _BATCH_CHARACTERS = 1024, 1 << 21


@dataclass(frozen=True)
class Preparation:
    """All that decides the corpus but the source's content."""

    version: int
    source: str
    tokenizer: str
    eos: int
    name: str
    holdout: float
    max_tokens: int
    columns: tuple[str, str, tuple[str, ...]]


@dataclass
class Problems:
    """What is wrong with the data. Private."""

    bad_records: int = 0
    listed: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, bad: BadRecord) -> None:
        """Notes a record that can't be used."""
        self.bad_records += 1
        if len(self.listed) < _LISTED:
            self.listed.append({"where": bad.where, "reason": bad.reason, "user": bad.user})

    def document(self, differing: dict[str, list[str]]) -> dict[str, Any]:
        """What the private report says; `differing` holds the users whose attributes differ between records."""
        conflicts = [{"user": user, "columns": columns} for user, columns in differing.items()]
        return {
            "bad_records": {"total": self.bad_records, "listed": self.listed},
            "differing_attributes": {"total": len(conflicts), "listed": conflicts[:_LISTED]},
        }


class Builder:
    """Builds one corpus. Texts and tokens go through files: memory grows with the number of records alone."""

    def __init__(
        self,
        source: RecordSource,
        columns: Columns,
        tokenizer: Tokenizer,
        preparation: Preparation,
        private_dir: Path | None,
    ) -> None:
        self._source = source
        self._columns = columns
        self._tokenizer = tokenizer
        self._preparation = preparation
        self._private_dir = private_dir
        self._users = Users(columns.attributes)
        self._problems = Problems()

    def build(self, folder: Path, fingerprint: str) -> None:
        """Writes all files of the corpus into an empty folder.

        Raises:
            ArgumentError: The source can't be read, or fails.
            OSError: The folder can't be written.
        """
        incoming = folder / "incoming.arrow"
        numbers = self._read(incoming)
        n_examples = self._group(folder, Table(incoming), numbers)
        incoming.unlink()
        meta = {
            "fingerprint": fingerprint,
            "name": self._preparation.name,
            "max_tokens": self._preparation.max_tokens,
            "attributes": self._columns.attributes,
            "bad_records": self._problems.bad_records,
            "n_users": len(self._users),
            "n_examples": n_examples,
        }
        problems = self._problems.document(self._users.differing())
        for name, document in ((store.PROBLEMS, problems), (store.META, meta)):
            with create_private(folder / name) as file:
                file.write(json.dumps(document, indent=1, ensure_ascii=False).encode(errors="replace"))

    def _records(self) -> Iterator[Record | BadRecord]:
        """The source's records, checked once more: a source may be anybody's plugin."""
        source, columns = self._source, self._columns
        items = guard.guarded(source, lambda: iter(source.records(columns)), self._private_dir)
        for item in guard.guarded_iteration(source, items, self._private_dir):
            if isinstance(item, Record):
                yield make_record(item.user, item.text, item.attributes, columns, item.where)
            else:
                user, _ = user_of(item.user)
                yield BadRecord(item.where, item.reason, user, item.attributes)

    def _read(self, path: Path) -> array[int]:
        """Writes every usable record, tokenised, in the source's order; returns the number of each one's user."""
        numbers = array("q")
        batch: list[str] = []
        characters = 0
        with TableWriter(path, store.INCOMING_SCHEMA) as writer:
            for record in self._records():
                number = -1 if record.user is None else self._users.add(record.user, record.attributes)
                if isinstance(record, BadRecord):
                    self._problems.add(record)
                    continue
                numbers.append(number)
                batch.append(record.text)
                characters += len(record.text)
                if len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
                    self._tokenize(batch, writer)
                    batch, characters = [], 0
            if batch:
                self._tokenize(batch, writer)
        return numbers

    def _tokenize(self, texts: list[str], writer: TableWriter) -> None:
        found = guard.guarded(self._tokenizer, lambda: tokenize(self._tokenizer, texts), self._private_dir)
        for text, tokens in zip(texts, found, strict=True):
            writer.append((text, tokens), weight=len(text) + len(tokens))

    def _group(self, folder: Path, incoming: Table, numbers: array[int]) -> int:
        """Writes the three tables, user by user; returns the number of examples."""
        owners = np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")  # a user's records stay in the source's order
        bounds = np.searchsorted(owners[rows], np.arange(len(self._users) + 1))
        name, prepared = self._preparation.name, self._preparation
        with (
            TableWriter(folder / store.USERS, store.USERS_SCHEMA) as users,
            TableWriter(folder / store.EXAMPLES, store.EXAMPLES_SCHEMA) as examples,
            TableWriter(folder / store.RECORDS, store.RECORDS_SCHEMA) as records,
        ):
            for user, number in self._users.sorted():
                first_record, first_example = records.rows, examples.rows
                texts = []
                for row in rows[bounds[number] : bounds[number + 1]]:
                    text, tokens = incoming.value(int(row), "text"), incoming.tokens(int(row), "tokens")
                    records.append((text, len(tokens)), weight=len(text))
                    texts.append(tokens)
                packed = pack(texts, eos=prepared.eos, max_tokens=prepared.max_tokens)
                for tokens in packed:
                    examples.append((tokens,), weight=len(tokens))
                users.append(
                    (
                        user,
                        json.dumps(self._users.attributes(number), ensure_ascii=False),
                        is_holdout(user, name, prepared.holdout),
                        holdout_order(user, name),
                        len(texts),
                        len(packed),
                        sum(map(len, packed)),
                        first_record,
                        first_example,
                    )
                )
            return examples.rows
