"""Reads a source once, tokenises it, groups it by user and writes the corpus's files."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import guard, layout
from harness.data.answers import Piece, RefusedError, pieces_of
from harness.data.holdout import holdout_order, is_holdout
from harness.data.packing import (
    EVERY,
    Answers,
    Example,
    Loss,
    Tokenizer,
    Tokens,
    pack,
    pack_answers,
    tokenize,
)
from harness.data.quiet import Quiet
from harness.data.sources.base import BadRecord, Columns, Record, RecordSource, remade, user_of
from harness.data.tables import Table, TableWriter
from harness.data.users import Users
from harness.files import create_private

EVALUATION = "evaluation file, "
TRAINED_ON = "its user is trained on, so this record would cost them their protection"

LISTED = 10_000
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
        if len(self.listed) < LISTED:
            self.listed.append({"where": bad.where, "reason": bad.reason, "user": bad.user})

    def shorten(self, user: str) -> None:
        """Notes an answer that does not fit into an example with its question."""
        self.shortened[user] = self.shortened.get(user, 0) + 1

    def document(self, differing: dict[str, list[str]]) -> dict[str, Any]:
        """What the private report says; `differing` holds the users whose attributes differ between records."""
        conflicts = [{"user": user, "columns": columns} for user, columns in differing.items()]
        return {
            "bad_records": {"total": self.bad_records, "listed": self.listed},
            "differing_attributes": {"total": len(conflicts), "listed": conflicts[:LISTED]},
            # Answers that don't fit into max_tokens with their question.
            "shortened_answers": {
                "total": sum(self.shortened.values()),
                "listed": [{"user": u, "answers": n} for u, n in list(self.shortened.items())[:LISTED]],
            },
        }


class Builder:
    """Builds one corpus. Texts and tokens go through files: memory grows with the number of records alone."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._columns = steps.columns
        self._users = Users(steps.columns.attributes)
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
        self._group(folder, Table.of(incoming), numbers)
        incoming.unlink()
        finish(folder, fingerprint, self._steps, [""], self._problems.document(self._users.differing()))

    def _all_records(self) -> Iterator[Record | BadRecord]:
        """The training records, then those of the evaluation file whose users are not trained on."""
        source, records = self._steps.source, self._steps.records
        yield from records(source, lambda: source.records(self._columns))
        self._trained = len(self._users)
        evaluation = source.evaluation
        if evaluation is None:
            return
        trained = {user for user, _ in self._users.sorted()}
        for item in records(evaluation, lambda: evaluation.records(self._columns)):
            where = f"{EVALUATION}{item.where}"
            if item.user in trained:
                # Not taken as a record of the user: it may change nothing about somebody who is protected.
                self._problems.add(BadRecord(where, TRAINED_ON, item.user))
            else:
                yield replace(item, where=where)

    def _read(self, path: Path) -> array[int]:
        """Writes every usable record, tokenised, in the source's order; returns the number of each one's user."""
        numbers = array("q")
        # Around all of it: a chat template is somebody's code as well, and nothing of ours speaks in between.
        with Quiet(self._steps.private_dir), TableWriter(path, layout.INCOMING_SCHEMA) as writer:

            def usable() -> Iterator[tuple[Record, list[Piece]]]:
                for record in self._all_records():
                    number = -1 if record.user is None else self._users.add(record.user, record.attributes)
                    ready = self._steps.ready(record)
                    if isinstance(ready, BadRecord):
                        self._problems.add(ready)
                    else:
                        numbers.append(number)
                        yield ready

            for record, tokens, loss in self._steps.tokenized(usable()):
                weight = len(record.text) + len(tokens) + len(loss)
                writer.append((record.text, record.time, tokens, loss), weight=weight)
        return numbers

    def _group(self, folder: Path, incoming: Table, numbers: array[int]) -> None:
        """Writes the three tables, user by user."""
        owners = np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
        rows = np.argsort(owners, kind="stable")  # a user's records stay in the source's order
        bounds = np.searchsorted(owners[rows], np.arange(len(self._users) + 1))
        with ShardWriter(folder, self._steps, self._problems) as shard:
            for user, number in self._users.sorted():
                own = rows[bounds[number] : bounds[number + 1]]
                shard.add(user, self._users.attributes(number), number >= self._trained, incoming, own)


@dataclass(frozen=True)
class Steps:
    """What is done with records, whoever does it.

    Attributes:
        source: Where they come from.
        columns: What is read of them.
        tokenizer: Of the base model.
        preparation: What else decides the corpus.
        private_dir: Gets what plugins print, and the details of their errors; None: nobody does.
    """

    source: RecordSource
    columns: Columns
    tokenizer: Tokenizer
    preparation: Preparation
    private_dir: Path | None

    def records(
        self, source: RecordSource, read: Callable[[], Iterator[Record | BadRecord]]
    ) -> Iterator[Record | BadRecord]:
        """What `read` yields of a source, checked once more: a source may be anybody's plugin."""
        items = guard.guarded(source, lambda: iter(read()), self.private_dir)
        for item in guard.guarded_iteration(source, items, self.private_dir):
            if isinstance(item, Record):
                yield remade(item, self.columns)
            else:
                user, _ = user_of(item.user)
                yield BadRecord(item.where, item.reason, user, item.attributes)

    def ready(self, record: Record | BadRecord) -> tuple[Record, list[Piece]] | BadRecord:
        """A record and the pieces that it is made of; or what is wrong with it."""
        if isinstance(record, BadRecord):
            return BadRecord(record.where, record.reason, record.user)
        try:
            return record, pieces_of(record, self.columns, self.tokenizer)
        except RefusedError as refused:
            return BadRecord(record.where, str(refused), record.user)

    def tokenized(self, records: Iterable[tuple[Record, list[Piece]]]) -> Iterator[tuple[Record, Tokens, Loss]]:
        """The records with their tokens and the loss of each."""
        batch: list[tuple[Record, list[Piece]]] = []
        characters = 0
        for record, pieces in records:
            batch.append((record, pieces))
            characters += len(record.text)
            if len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
                yield from self._tokenize(batch)
                batch, characters = [], 0
        yield from self._tokenize(batch)

    def _tokenize(self, batch: list[tuple[Record, list[Piece]]]) -> Iterator[tuple[Record, Tokens, Loss]]:
        texts = [piece for record, pieces in batch for piece, _ in pieces or [(record.text, True)]]
        if not texts:
            return
        found = iter(guard.guarded(self.tokenizer, lambda: tokenize(self.tokenizer, texts), self.private_dir))
        for record, pieces in batch:
            if pieces:
                parts = [(next(found), learnt) for _, learnt in pieces]
                tokens = np.concatenate([part for part, _ in parts])
                loss = np.concatenate([np.full(len(part), learnt, dtype=np.uint8) for part, learnt in parts])
                yield record, tokens, loss
            else:
                yield record, next(found), EVERY

    def packed(self, own: Iterator[Answers], shortened: Callable[[], None]) -> Iterator[Example]:
        """One user's records as examples, one after the other: a single user may have more than memory holds."""
        eos, max_tokens = self.preparation.eos, self.preparation.max_tokens
        if not self.columns.chat and self.columns.completion is None:
            return map(Example, pack((record.tokens for record in own), eos=eos, max_tokens=max_tokens))
        if not self.columns.chat:  # a completion ends; a chat template ends its answers itself
            own = (Answers(np.append(r.tokens, np.int32(eos)), np.append(r.loss, np.uint8(1))) for r in own)
        return pack_answers(own, max_tokens=max_tokens, shortened=shortened)


class ShardWriter:
    """Writes three tables of a corpus, or of a shard of it, user by user."""

    def __init__(self, folder: Path, steps: Steps, problems: Problems) -> None:
        """Into an empty folder; answers that are shortened go to `problems`."""
        self._steps, self._problems = steps, problems
        self._open = contextlib.ExitStack()
        with self._open as stack:
            self._users = stack.enter_context(TableWriter(folder / layout.USERS, layout.USERS_SCHEMA))
            self._examples = stack.enter_context(TableWriter(folder / layout.EXAMPLES, layout.EXAMPLES_SCHEMA))
            self._records = stack.enter_context(TableWriter(folder / layout.RECORDS, layout.RECORDS_SCHEMA))
            self._open = stack.pop_all()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def add(
        self, user: str, attributes: dict[str, str | None], held: bool, table: Table, rows: npt.NDArray[np.int64]
    ) -> None:
        """Writes a user: the next one by name.

        Args:
            user: Their name.
            attributes: Their public columns.
            held: Whether they are held out, whatever their name says.
            table: Has the columns of `layout.INCOMING_SCHEMA`.
            rows: Theirs in it, in the source's order.
        """
        records, examples = self._records, self._examples
        first_record, first_example, n_tokens = records.rows, examples.rows, 0
        own = _copied(table, rows, records)
        for example in self._steps.packed(own, lambda: self._problems.shorten(user)):
            of_example = (example.tokens, example.loss, example.targets)
            examples.append(of_example, weight=len(example.tokens) + len(example.loss))
            n_tokens += len(example.tokens)
        preparation = self._steps.preparation
        self._users.append(
            (
                user,
                json.dumps(attributes, ensure_ascii=False),
                held or is_holdout(user, preparation.name, preparation.holdout),
                holdout_order(user, preparation.name),
                len(rows),
                examples.rows - first_example,
                n_tokens,
                first_record,
                first_example,
            )
        )


def _copied(incoming: Table, rows: npt.NDArray[np.int64], records: TableWriter) -> Iterator[Answers]:
    """These records' tokens, each record's text written as it passes."""
    for row in rows:
        text, tokens = incoming.value(int(row), "text"), incoming.numbers_in(int(row), "tokens")
        records.append((text, len(tokens), incoming.value(int(row), "time")), weight=len(text))
        yield Answers(tokens, incoming.numbers_in(int(row), "loss"))


def finish(folder: Path, fingerprint: str, steps: Steps, shards: Sequence[str], problems: dict[str, Any]) -> None:
    """Completes a corpus whose tables are written.

    Args:
        folder: The corpus.
        fingerprint: Its own.
        steps: How it was made.
        shards: Folders of its tables, within `folder`.
        problems: What is wrong with the data, as `Problems.document` says it.
    """
    n_users, n_examples = layout.write_columns(folder, [folder / shard for shard in shards])
    meta = {
        "fingerprint": fingerprint,
        "name": steps.preparation.name,
        "max_tokens": steps.preparation.max_tokens,
        "attributes": steps.columns.attributes,
        "times": steps.columns.time is not None,
        "bad_records": problems["bad_records"]["total"],
        "n_users": n_users,
        "n_examples": n_examples,
        "shards": list(shards),
    }
    for name, document in ((layout.PROBLEMS, problems), (layout.META, meta)):
        with create_private(folder / name) as file:
            file.write(json.dumps(document, indent=1, ensure_ascii=False).encode(errors="replace"))
