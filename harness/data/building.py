"""Reads a source once, tokenises it, groups it by user and writes the corpus's files."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import guard, store
from harness.data.answers import Piece, RefusedError, pieces_of
from harness.data.holdout import holdout_order, is_holdout
from harness.data.packing import EVERY, Answers, Example, Tokenizer, pack, pack_answers, tokenize
from harness.data.quiet import Quiet
from harness.data.sources.base import BadRecord, Columns, Record, RecordSource, remade, user_of
from harness.data.store import Table, TableWriter
from harness.data.users import Users
from harness.files import create_private

TRAINED_ON = "its user is trained on, so this record would cost them their protection"

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
    columns: dict[str, Any]
    chat_template: str


@dataclass
class Problems:
    """What is wrong with the data. Private."""

    bad_records: int = 0
    listed: list[dict[str, str | None]] = field(default_factory=list)
    shortened: dict[str, int] = field(default_factory=dict)

    def add(self, bad: BadRecord) -> None:
        """Notes a record that can't be used."""
        self.bad_records += 1
        if len(self.listed) < _LISTED:
            self.listed.append({"where": bad.where, "reason": bad.reason, "user": bad.user})

    def shorten(self, user: str) -> None:
        """Notes an answer that does not fit into an example with its question."""
        self.shortened[user] = self.shortened.get(user, 0) + 1

    def document(self, differing: dict[str, list[str]]) -> dict[str, Any]:
        """What the private report says; `differing` holds the users whose attributes differ between records."""
        conflicts = [{"user": user, "columns": columns} for user, columns in differing.items()]
        return {
            "bad_records": {"total": self.bad_records, "listed": self.listed},
            "differing_attributes": {"total": len(conflicts), "listed": conflicts[:_LISTED]},
            # Answers that don't fit into max_tokens with their question.
            "shortened_answers": {
                "total": sum(self.shortened.values()),
                "listed": [{"user": u, "answers": n} for u, n in list(self.shortened.items())[:_LISTED]],
            },
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
        self._trained = 0
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
        store.write_columns(folder)
        meta = {
            "fingerprint": fingerprint,
            "name": self._preparation.name,
            "max_tokens": self._preparation.max_tokens,
            "attributes": self._columns.attributes,
            "times": self._columns.time is not None,
            "bad_records": self._problems.bad_records,
            "n_users": len(self._users),
            "n_examples": n_examples,
        }
        problems = self._problems.document(self._users.differing())
        for name, document in ((store.PROBLEMS, problems), (store.META, meta)):
            with create_private(folder / name) as file:
                file.write(json.dumps(document, indent=1, ensure_ascii=False).encode(errors="replace"))

    def _records(self, source: RecordSource) -> Iterator[Record | BadRecord]:
        """A source's records, checked once more: a source may be anybody's plugin."""
        columns = self._columns
        items = guard.guarded(source, lambda: iter(source.records(columns)), self._private_dir)
        for item in guard.guarded_iteration(source, items, self._private_dir):
            if isinstance(item, Record):
                yield remade(item, columns)
            else:
                user, _ = user_of(item.user)
                yield BadRecord(item.where, item.reason, user, item.attributes)

    def _all_records(self) -> Iterator[Record | BadRecord]:
        """The training records, then those of the evaluation file whose users are not trained on."""
        yield from self._records(self._source)
        self._trained = len(self._users)
        if self._source.evaluation is None:
            return
        trained = {user for user, _ in self._users.sorted()}
        for item in self._records(self._source.evaluation):
            where = f"evaluation file, {item.where}"
            if item.user in trained:
                # Not taken as a record of the user: it may change nothing about somebody who is protected.
                self._problems.add(BadRecord(where, TRAINED_ON, item.user))
            else:
                yield replace(item, where=where)

    def _read(self, path: Path) -> array[int]:
        """Writes every usable record, tokenised, in the source's order; returns the number of each one's user."""
        numbers = array("q")
        batch: list[tuple[Record, list[Piece]]] = []
        characters = 0
        # Around all of it: a chat template is somebody's code as well, and nothing of ours speaks in between.
        with Quiet(self._private_dir), TableWriter(path, store.INCOMING_SCHEMA) as writer:
            for record in self._all_records():
                number = -1 if record.user is None else self._users.add(record.user, record.attributes)
                try:
                    if isinstance(record, BadRecord):
                        raise RefusedError(record.reason)
                    pieces = pieces_of(record, self._columns, self._tokenizer)
                except RefusedError as refused:
                    self._problems.add(BadRecord(record.where, str(refused), record.user))
                    continue
                numbers.append(number)
                batch.append((record, pieces))
                characters += len(record.text)
                if len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
                    self._tokenize(batch, writer)
                    batch, characters = [], 0
            if batch:
                self._tokenize(batch, writer)
        return numbers

    def _tokenize(self, batch: list[tuple[Record, list[Piece]]], writer: TableWriter) -> None:
        texts = [piece for record, pieces in batch for piece, _ in pieces or [(record.text, True)]]
        found = iter(guard.guarded(self._tokenizer, lambda: tokenize(self._tokenizer, texts), self._private_dir))
        for record, pieces in batch:
            if pieces:
                parts = [(next(found), learnt) for _, learnt in pieces]
                tokens = np.concatenate([part for part, _ in parts])
                loss = np.concatenate([np.full(len(part), learnt, dtype=np.uint8) for part, learnt in parts])
            else:
                tokens, loss = next(found), EVERY
            weight = len(record.text) + len(tokens) + len(loss)
            writer.append((record.text, record.time, tokens, loss), weight=weight)

    def _group(self, folder: Path, incoming: Table, numbers: array[int]) -> int:
        """Writes the three tables, user by user; returns the number of examples."""
        owners = np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")  # a user's records stay in the source's order
        bounds = np.searchsorted(owners[rows], np.arange(len(self._users) + 1))
        name, holdout = self._preparation.name, self._preparation.holdout
        with (
            TableWriter(folder / store.USERS, store.USERS_SCHEMA) as users,
            TableWriter(folder / store.EXAMPLES, store.EXAMPLES_SCHEMA) as examples,
            TableWriter(folder / store.RECORDS, store.RECORDS_SCHEMA) as records,
        ):
            for user, number in self._users.sorted():
                first_record, first_example, n_tokens = records.rows, examples.rows, 0
                own = rows[bounds[number] : bounds[number + 1]]
                for example in self._pack(user, _copied(incoming, own, records)):
                    row_of_example = (example.tokens, example.loss, example.targets)
                    examples.append(row_of_example, weight=len(example.tokens) + len(example.loss))
                    n_tokens += len(example.tokens)
                users.append(
                    (
                        user,
                        json.dumps(self._users.attributes(number), ensure_ascii=False),
                        number >= self._trained or is_holdout(user, name, holdout),
                        holdout_order(user, name),
                        len(own),
                        examples.rows - first_example,
                        n_tokens,
                        first_record,
                        first_example,
                    )
                )
            return examples.rows

    def _pack(self, user: str, own: Iterator[Answers]) -> Iterator[Example]:
        """One user's records as examples, one after the other: a single user may have more than memory holds."""
        eos, max_tokens = self._preparation.eos, self._preparation.max_tokens
        if not self._columns.chat and self._columns.completion is None:
            return map(Example, pack((record.tokens for record in own), eos=eos, max_tokens=max_tokens))
        if not self._columns.chat:  # a completion ends; a chat template ends its answers itself
            own = (Answers(np.append(r.tokens, np.int32(eos)), np.append(r.loss, np.uint8(1))) for r in own)
        return pack_answers(own, max_tokens=max_tokens, shortened=lambda: self._problems.shorten(user))


def _copied(incoming: Table, rows: Sequence[int] | npt.NDArray[np.int64], records: TableWriter) -> Iterator[Answers]:
    """These records' tokens, each record's text written as it passes."""
    for row in rows:
        text, tokens = incoming.value(int(row), "text"), incoming.numbers_in(int(row), "tokens")
        records.append((text, len(tokens), incoming.value(int(row), "time")), weight=len(text))
        yield Answers(tokens, incoming.numbers_in(int(row), "loss"))
