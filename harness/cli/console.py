"""Plain lines for people, one JSON document for programs; with ``UUDP_LOG=json``, lines for a log collector."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import ArgumentError

LOG = "UUDP_LOG"


def out(line: str = "") -> None:
    """Prints one line of the result to stdout, never wrapped, without what steers a terminal."""
    _print(printable(line), sys.stdout)


def err(line: str = "", **fields: Any) -> None:
    """Prints one line about the work to stderr, never wrapped.

    Structured, it is one JSON object: ``level``, ``message``, and the fields, which plain lines leave out. There is no
    time in it: how long a step takes depends on who took part, and whoever collects lines stamps them.

    Args:
        line: The text.
        fields: What a program would want of it; nothing private.
    """
    sys.stdout.flush()
    text = printable(line)
    if structured():
        if not text.strip():
            return
        # What is not a finite number (of a run that diverged) is no JSON; the message has it.
        fields = {name: value for name, value in fields.items() if _is_json(value)}
        text = json.dumps({"level": "info", "message": text, **fields}, ensure_ascii=False)
    _print(text, sys.stderr)


def error(line: str) -> None:
    """Prints what went wrong to stderr."""
    err(line, level="error")


def structured() -> bool:
    """Whether lines about the work are JSON objects."""
    return os.environ.get(LOG) == "json"


def check_log() -> None:
    """Looks at the environment.

    Raises:
        ArgumentError: ``UUDP_LOG`` is neither of what it may be.
    """
    value = os.environ.get(LOG, "")
    if value not in ("", "text", "json"):
        raise ArgumentError(f'UUDP_LOG={shortened(value, 40)}: it must be "text" or "json"')


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def shortened(text: str, width: int) -> str:
    """A value in at most so many columns, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def printable(text: str) -> str:
    """A text without control characters but line ends and tabs: what a model wrote must not steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))


def markdown(text: str) -> None:
    """Prints Markdown to stdout: laid out on a terminal, as it is written elsewhere or where NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        out(text.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    screen = Console(file=sys.stdout)
    screen.width = min(screen.width, 100)
    screen.print(Markdown(printable(text), hyperlinks=False))


def emit_json(document: Mapping[str, Any]) -> None:
    """Prints the one JSON document of a verb to stdout.

    Raises:
        ValueError: A number in it is not finite, which JSON can't say.
    """
    _print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), sys.stdout)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector rests: of a second's work that mostly imports, it takes a tenth and finds nothing."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _print(text: str, stream: Any) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
