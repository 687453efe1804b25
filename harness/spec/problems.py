"""A problem of a spec: where it is, at which key, what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.errors import ArgumentError

KeyPath = tuple[str | int, ...]
_LONGEST_KEY = 100


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written.

    Attributes:
        file: The file as the user named it, or ``<command line>``, or ``default``.
        line: Line from 1; 0 where there is none.
        column: Column from 1, in characters; 0 where there is none.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


COMMAND_LINE = Place("<command line>")
DEFAULT = Place("default")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec.

    Attributes:
        place: Where to look.
        key: The dotted key; empty where the whole file is at fault.
        message: What is wrong, in one line.
        suggestion: What was probably meant, or None.
    """

    place: Place
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        between = " " if self.place.line or self.place == COMMAND_LINE else ": "
        shown = self.key if len(self.key) <= _LONGEST_KEY else self.key[: _LONGEST_KEY - 3] + "..."
        key = f"{shown}: " if shown else ""
        tail = f'; did you mean "{self.suggestion}"?' if self.suggestion else ""
        return one_line(f"{self.place}{between}{key}{self.message}{tail}")


class SpecErrors(ArgumentError):
    """All problems of one spec; its text is one line for each.

    Attributes:
        problems: At least one, in the order of the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(str(p) for p in self.problems))


def one_line(text: str) -> str:
    """`text` with everything that would break the line, or act on a terminal, written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def dotted(path: KeyPath) -> str:
    """A key path as the user writes it on the command line; list items count from 0."""
    return ".".join('""' if part == "" else str(part) for part in path)


def show(value: Any) -> str:
    """A value of the spec, as an error quotes it: short, and in one line."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a block" if value else "an empty block"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
    return json.dumps(value) if isinstance(value, float) or abs(value) < 10**40 else "a huge number"
