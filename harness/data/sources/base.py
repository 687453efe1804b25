"""What a source of records is, and how any source's values become records.

A source yields every record in order, and says of each broken one where it is and why; it never stops at one.
`RecordSource.public` is the only way in for `uudp plan`: user names and declared public columns, no text.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from harness import plugins
from harness.data.times import time_of
from harness.errors import ArgumentError
from harness.spec.models import DataBlock, private_columns

ASSISTANT = "assistant"
"""The role whose messages are learnt."""

_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0+", re.ASCII)
_EXACT = 1 << 53


@dataclass(frozen=True)
class Columns:
    """Which columns of a source are read, and as what.

    Attributes:
        user: Says who a record belongs to.
        text: The text, or the prompt, or the messages. Private.
        attributes: The declared public columns.
        completion: What is to be learnt, if `text` is a prompt. Private.
        chat: Whether `text` holds messages.
        time: Says when a record was written. Private.
    """

    user: str
    text: str
    attributes: tuple[str, ...] = ()
    completion: str | None = None
    chat: bool = False
    time: str | None = None

    @classmethod
    def of(cls, data: DataBlock) -> Columns:
        """The columns that a spec declares.

        Raises:
            ArgumentError: A private column is declared as something else as well.
        """
        private = private_columns(data)
        for key, column in private.items():
            if column in data.attributes:
                raise ArgumentError(f'data.attributes: "{column}" is the {key.rpartition(".")[2]}, which is private')
            if data.user == column:
                raise ArgumentError(f'data.user and {key} are the same column "{data.user}"')
            if data.time == column:
                raise ArgumentError(f'data.time and {key} are the same column "{data.time}"')
        if data.time is not None and data.time in (data.user, *data.attributes):
            raise ArgumentError(f'data.time: the column "{data.time}" is declared as something else as well')
        text, *rest = private.values()
        attributes = tuple(dict.fromkeys(data.attributes))
        completion = rest[0] if rest else None
        return cls(data.user, text, attributes, completion, chat=data.messages is not None, time=data.time)

    def declared(self) -> list[tuple[str, str]]:
        """Every column that is read, after the spec's key for it."""
        if self.completion is not None:
            private = [("data.text.prompt", self.text), ("data.text.completion", self.completion)]
        else:
            private = [("data.messages" if self.chat else "data.text", self.text)]
        if self.time is not None:
            private.append(("data.time", self.time))
        return [("data.user", self.user), *private, *(("data.attributes", name) for name in self.attributes)]

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        return tuple(column for _, column in self.declared())


@dataclass(frozen=True)
class Turn:
    """A part of a conversation, or the prompt or the completion of a pair. Private.

    Attributes:
        role: Who says it; of a pair, ``prompt`` or ``completion``.
        content: What is said.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One record of one user. Private, except for the user's attributes.

    Attributes:
        user: Who it belongs to.
        text: What they wrote; not empty. Of a pair or a conversation, all of it in one.
        attributes: Their declared public columns; None where a value is missing.
        where: Its place in the source, as in ``line 17``.
        turns: The parts of a pair or of a conversation; none of a plain text.
        time: When it was written, in seconds since 1970 (UTC); None: it is not known, or not asked.
    """

    user: str
    text: str
    attributes: Mapping[str, str | None]
    where: str
    turns: tuple[Turn, ...] = ()
    time: float | None = None


@dataclass(frozen=True)
class BadRecord:
    """A record that can't be used. Private.

    Attributes:
        where: Its place in the source.
        reason: What is wrong with it; never a piece of its text.
        user: Whose it is, if that much can be read: the user still counts as one.
        attributes: Their declared public columns, if they can be read.
    """

    where: str
    reason: str
    user: str | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict)


class RecordSource(plugins.Source):
    """A source that the harness can read. To add one, implement the three abstract methods.

    Attributes:
        evaluation: The records of ``data.holdout.file``, if the spec names one. Their users are public, and only those
            whom `records` does not have: nobody who is trained on gives up protection.
    """

    evaluation: RecordSource | None = None

    def located(self, base_dir: Path) -> RecordSource:
        """The same source with its relative paths made absolute and found to exist.

        Args:
            base_dir: The folder of the spec; a path that exists below the current directory comes first.

        Raises:
            ArgumentError: There is no such file.
            MachineError: A package that it needs is not installed.
        """
        return self

    def beside(self, path: str, base_dir: Path) -> RecordSource:
        """A source like this one that reads another file: that of ``data.holdout.file``.

        Args:
            path: As the spec writes it.
            base_dir: The folder of the spec.

        Raises:
            ArgumentError: There is no such file, or this source reads none.
        """
        raise ArgumentError("data.holdout.file: this data.source reads no files; give data.holdout.users")

    @abstractmethod
    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        """Every record, in an order that is the same each time. Private.

        Raises:
            ArgumentError: A column occurs in no record, or nothing can be read at all.
        """

    @abstractmethod
    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        """User and public attributes of every record whose user can be read; a user comes as often as they wrote.

        Looks at no text, not even whether there is one.
        """

    def known_risks(self) -> Mapping[str, frozenset[str]] | None:
        """What is known to put whom at risk, by user, where users are made; None: nobody knows.

        Users without any may be left out. Names of risks are a reader's words, such as ``planted secret``.
        """
        return None

    @abstractmethod
    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        """Feeds everything that decides what `records` yields (the content, not its place) to a keyed digest.

        A plain hash of private data would let anyone test a guess of them: the caller's digest has a secret key.
        """


def open_source(data: DataBlock, base_dir: Path) -> RecordSource:
    """The source that a spec names, ready to read.

    Args:
        data: The spec's data block.
        base_dir: The folder of the spec, for relative paths.

    Raises:
        ArgumentError: There is no such source or file, or its parameters are wrong.
        MachineError: A package that it needs is not installed.
    """
    try:
        found = plugins.source.build(data.source.type, data.source.parameters)
    except plugins.PluginError as error:
        near = plugins.suggest(data.source.type, error.candidates)
        raise ArgumentError(f"data.source: {error.message}" + (f'; did you mean "{near}"?' if near else "")) from None
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in ("data", "source", *first["loc"]))
        raise ArgumentError(f"{path}: {first['msg']}") from None
    if not isinstance(found, RecordSource):
        raise ArgumentError(f"data.source: {data.source.type} can't be read: it must be a subclass of RecordSource")
    located = found.located(base_dir)
    if data.holdout.file is not None:
        located.evaluation = located.beside(data.holdout.file, base_dir)
    return located


def user_of(value: object) -> tuple[str | None, str]:
    """Reads a user's name from a source's value: a string, or a whole number.

    One user has one name in every format: a column of whole numbers with gaps is written as 12.0 by many tools, into
    CSV files as well, and that is 12. What looks like no number, as 007, stays as it is.

    Returns:
        The name and "", or None and what is wrong.
    """
    if value is None:
        return None, "the user is missing"
    if isinstance(value, float | Decimal):
        if value != value:  # noqa: PLR0124  # not a number: how a gap is written among numbers
            return None, "the user is missing"
        value = _whole(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), ""
    if not isinstance(value, str):
        return None, "the user is neither a string nor a whole number"
    if not value.strip():
        return None, "the user is empty"
    if _WHOLE.fullmatch(value):
        return value.partition(".")[0], ""
    return (value, "") if _encodable(value) else (None, "the user is not valid Unicode")


def _whole(value: float | Decimal) -> object:
    """The whole number that a value is exactly, else the value."""
    exact = isinstance(value, Decimal) or abs(value) <= _EXACT
    return int(value) if exact and math.isfinite(value) and value == int(value) else value


def text_problem(value: object, what: str = "text") -> str:
    """What is wrong with a text, or "". Never quotes it."""
    if value is None:
        return f"the {what} is missing"
    if not isinstance(value, str):
        return f"the {what} is not a string"
    if not value.strip():
        return f"the {what} is empty"
    return "" if _encodable(value) else f"the {what} is not valid Unicode"


def attributes_of(values: Mapping[str, object], names: Iterable[str]) -> dict[str, str | None]:
    """Exactly the named attributes, as text; None for what is missing or is no single value."""
    return {name: _attribute(values.get(name)) for name in names}


def make_record(
    user: object, text: object, values: Mapping[str, object], columns: Columns, where: str
) -> Record | BadRecord:
    """A record from a source's raw values, or what is wrong with them.

    Args:
        user: The value of the user column; None if it is missing.
        text: The value of the column `Columns.text`; None if it is missing.
        values: Holds the public columns, the completion and the time, by name; others are ignored.
        columns: What is read.
        where: The place in the source.
    """
    name, problem = user_of(user)
    if name is None:
        return BadRecord(where, problem)
    attributes = attributes_of(values, columns.attributes)
    turns = _turns(text, values, columns)
    if isinstance(turns, str):
        return BadRecord(where, turns, name, attributes)
    time, problem = time_of(values.get(columns.time)) if columns.time is not None else (None, "")
    if problem:
        return BadRecord(where, problem, name, attributes)
    whole = "\n".join(turn.content for turn in turns) if turns else str(text)
    return Record(name, whole, attributes, where, turns, time)


def remade(record: Record, columns: Columns) -> Record | BadRecord:
    """The same record, checked again: it may come from anybody's plugin."""
    text: object = record.text
    values: dict[str, object] = dict(record.attributes)
    if columns.time is not None:
        values[columns.time] = record.time
    if columns.chat:
        text = [{"role": turn.role, "content": turn.content} for turn in record.turns]
    elif columns.completion is not None:
        text, values[columns.completion] = [turn.content for turn in record.turns] if len(record.turns) == 2 else (0, 0)
    return make_record(record.user, text, values, columns, record.where)


def _turns(text: object, values: Mapping[str, object], columns: Columns) -> tuple[Turn, ...] | str:
    """The turns of a pair or a conversation, none of a plain text, or what is wrong."""
    if columns.chat:
        return _conversation(text)
    if columns.completion is not None:
        return _pair(text, values.get(columns.completion))
    return text_problem(text) or ()


def _pair(prompt: object, completion: object) -> tuple[Turn, ...] | str:
    """The turns of a pair, or what is wrong with it."""
    for what, value in (("prompt", prompt), ("completion", completion)):
        if problem := text_problem(value, what):
            return problem
    return Turn("prompt", str(prompt)), Turn("completion", str(completion))


def _conversation(messages: object) -> tuple[Turn, ...] | str:
    """The turns of a conversation, or what is wrong with it. Never quotes it."""
    if messages is None:
        return "the messages are missing"
    if not isinstance(messages, list):
        return "the messages are not a list"
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(role, str):
            return "a message is not an object with a role and a content"
        if problem := text_problem(message.get("content"), "content of a message"):
            return problem
        if not role.strip() or not _encodable(role):
            return "a message has an unusable role"
        turns.append(Turn(role, str(message["content"])))
    if not turns:
        return "the messages are empty"
    if turns[0].role == ASSISTANT:
        return "the conversation begins with an answer"
    if not any(turn.role == ASSISTANT for turn in turns):
        return "the conversation has no answer of the assistant"
    return tuple(turns)


def missing_column(what: str, name: str, existing: Iterable[str], source: str) -> ArgumentError:
    """The error for a column that no record has.

    Args:
        what: The key of the spec, as in ``data.user``.
        name: The column that it names.
        existing: The columns that there are.
        source: What was read.
    """
    known = sorted(existing)
    near = plugins.suggest(name, known)
    hint = f'; did you mean "{near}"?' if near else ""
    there = f" (there are: {', '.join(known[:20])})" if known else ""
    return ArgumentError(f'{what}: no record of {source} has the column "{name}"{there}{hint}')


def _attribute(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float):
        return str(value)
    return value if isinstance(value, str) and _encodable(value) else None


def _encodable(text: str) -> bool:
    """Whether it is without lone surrogates, which neither UTF-8 nor a tokenizer can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
