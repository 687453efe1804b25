"""What a source of records is, and how any source's values become records.

A source yields every record in order, and says of each broken one where it is and why; it never stops at one.
`RecordSource.public` is the only way in for `uudp plan`: user names and declared public columns, no text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from harness import plugins
from harness.errors import ArgumentError
from harness.spec.models import DataBlock


@dataclass(frozen=True)
class Columns:
    """Which columns of a source are read, and as what.

    Attributes:
        user: Says who a record belongs to.
        text: The text. Private.
        attributes: The declared public columns.
    """

    user: str
    text: str
    attributes: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: DataBlock) -> Columns:
        """The columns that a spec declares.

        Raises:
            ArgumentError: The text is declared as something else as well.
        """
        if data.text in data.attributes:
            raise ArgumentError(f'data.attributes: "{data.text}" is the text, which is private')
        if data.user == data.text:
            raise ArgumentError(f'data.user and data.text are the same column "{data.user}"')
        return cls(data.user, data.text, tuple(dict.fromkeys(data.attributes)))


@dataclass(frozen=True)
class Record:
    """One record of one user. Private, except for the user's attributes.

    Attributes:
        user: Who it belongs to.
        text: What they wrote; not empty.
        attributes: Their declared public columns; None where a value is missing.
        where: Its place in the source, as in ``line 17``.
    """

    user: str
    text: str
    attributes: Mapping[str, str | None]
    where: str


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
    """A source that the harness can read. To add one, implement the three abstract methods."""

    def located(self, base_dir: Path) -> RecordSource:
        """The same source with its relative paths made absolute and found to exist.

        Args:
            base_dir: The folder of the spec; a path that exists below the current directory comes first.

        Raises:
            ArgumentError: There is no such file.
            MachineError: A package that it needs is not installed.
        """
        return self

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
    return found.located(base_dir)


def user_of(value: object) -> tuple[str | None, str]:
    """Reads a user's name from a source's value: a string, or a whole number.

    Returns:
        The name and "", or None and what is wrong.
    """
    if value is None:
        return None, "the user is missing"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), ""
    if not isinstance(value, str):
        return None, "the user is neither a string nor a whole number"
    if not value.strip():
        return None, "the user is empty"
    return (value, "") if _encodable(value) else (None, "the user is not valid Unicode")


def text_problem(value: object) -> str:
    """What is wrong with a text, or "". Never quotes it."""
    if value is None:
        return "the text is missing"
    if not isinstance(value, str):
        return "the text is not a string"
    if not value.strip():
        return "the text is empty"
    return "" if _encodable(value) else "the text is not valid Unicode"


def attributes_of(values: Mapping[str, object], names: Iterable[str]) -> dict[str, str | None]:
    """Exactly the named attributes, as text; None for what is missing or is no single value."""
    return {name: _attribute(values.get(name)) for name in names}


def make_record(
    user: object, text: object, values: Mapping[str, object], columns: Columns, where: str
) -> Record | BadRecord:
    """A record from a source's raw values, or what is wrong with them.

    Args:
        user: The value of the user column; None if it is missing.
        text: The value of the text column; None if it is missing.
        values: Holds the public columns, by name; others are ignored.
        columns: What is read.
        where: The place in the source.
    """
    name, problem = user_of(user)
    if name is None:
        return BadRecord(where, problem)
    attributes = attributes_of(values, columns.attributes)
    problem = text_problem(text)
    if problem or not isinstance(text, str):
        return BadRecord(where, problem, name, attributes)
    return Record(name, text, attributes, where)


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
