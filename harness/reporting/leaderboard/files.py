"""Files that somebody else wrote: read whole and within limits, or refused in one line.

Nothing is followed out of its folder, nothing that is not a plain file is opened, and no value is passed on that JSON
does not have, or that would take a page, a terminal or the memory with it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from harness.errors import UserError

MOST_BYTES: Mapping[str, int] = {
    "plan.json": 8 << 20,
    "privacy.json": 4 << 20,
    "metrics.jsonl": 16 << 20,
    "spec.yaml": 128 << 10,
    "sweep.json": 8 << 20,
    "assessment.json": 1 << 20,
    "audit.json": 4 << 20,
    "results.jsonl": 64 << 20,
}
"""Far more than a run ever writes."""
MOST_ROWS = 20_000
"""Of a file of lines."""
DEEPEST = 40
"""Of values in values."""
LONGEST = 20_000
"""Of a text, in characters."""
_STEERING = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")
"""Characters that turn the direction of what follows: a name must not rearrange the table around it."""


class Refused(UserError):
    """A folder that is no run that could be shown. The message is one line and may quote what the folder holds."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        super().__init__(shown(reason, 300))


def shown(text: object, most: int = 120) -> str:
    """A text as a page or a terminal may show it: one line, nothing that steers either, and not too long."""
    plain = _STEERING.sub("", str(text).encode("utf-8", "replace").decode())
    line = " ".join("".join(c if unicodedata.category(c) != "Cc" else " " for c in plain).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def harmless(value: Any) -> Any:
    """The same document with every text in it as `shown` has it."""
    if isinstance(value, dict):
        return {shown(key): harmless(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [harmless(inner) for inner in value]
    return shown(value, LONGEST) if isinstance(value, str) else value


def read_text(folder: int, name: str) -> str | None:
    """The text of a plain file in an open folder; None: there is none.

    Args:
        folder: Descriptor of the folder.
        name: Of the file, one of `MOST_BYTES`.

    Raises:
        Refused: It is a link, no plain file, too large, no UTF-8, or can't be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        link = stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)
        raise Refused(f"{name} {'is a link' if link else f'can not be read ({error.strerror})'}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused(f"{name} is no plain file")
    with os.fdopen(handle, "rb") as file:
        try:
            content = file.read(MOST_BYTES[name] + 1)
        except OSError as error:
            raise Refused(f"{name} can not be read ({error.strerror})") from None
    if len(content) > MOST_BYTES[name]:
        raise Refused(f"{name} is larger than {_size(MOST_BYTES[name])}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{name} is no UTF-8") from None


def open_folder(path: Path) -> int:
    """Opens a folder, never through a link.

    Raises:
        Refused: It can't be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"the folder can not be opened ({error.strerror})") from None


def json_object(text: str, name: str) -> dict[str, Any]:
    """The one JSON object that a text holds.

    Raises:
        Refused: It holds none, or values that JSON does not have or nobody needs.
    """
    try:
        found = json.loads(
            text, parse_constant=_no_number, parse_float=_float, object_pairs_hook=lambda pairs: _once(pairs, name)
        )
    except RecursionError:
        raise Refused(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"{name} is no JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(found, dict):
        raise Refused(f"{name} should hold a JSON object")
    _check(found, name)
    return found


def json_rows(text: str, name: str) -> list[dict[str, Any]]:
    """One object per line; empty lines are none.

    Raises:
        Refused: As `json_object`, or there are too many.
    """
    # Not splitlines(): that would also break a row at the Unicode separators that JSON allows inside a name.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > MOST_ROWS:
        raise Refused(f"{name} has more than {MOST_ROWS} lines")
    return [json_object(line, f"{name}:{number}") for number, line in lines]


def yaml_object(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds, as JSON would have it. An alias is refused: it can stand for millions.

    Raises:
        Refused: It holds none, or values that JSON does not have.
    """
    try:
        found = yaml.load(text, _Plain)
        found = json.loads(json.dumps(found, allow_nan=False))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Refused(f"{name}{'' if mark is None else f':{mark.line + 1}'} is no plain YAML") from None
    except RecursionError:
        raise Refused(f"{name} is nested too deeply") from None
    except (ValueError, TypeError, OverflowError):
        raise Refused(f"{name} holds what is no plain value") from None
    if not isinstance(found, dict):
        raise Refused(f"{name} should hold a mapping")
    _check(found, name)
    return found


class _Plain(yaml.SafeLoader):
    """YAML without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused(f"{name} has a key twice")
    return found


def _check(document: Any, name: str) -> None:
    """That nothing in it is too deep, too long or too large."""
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise Refused(f"{name} is nested too deeply")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            if len(value) > LONGEST:
                raise Refused(f"{name} holds a text of more than {LONGEST} characters")
            if any("\ud800" <= c <= "\udfff" for c in value):
                raise Refused(f"{name} holds what is no Unicode text")
        elif isinstance(value, int) and abs(value) >= 1 << 63:
            raise Refused(f"{name} holds a number beyond all reason")


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} kB"
