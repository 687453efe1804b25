"""Plain lines for people, one JSON document for programs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any


def out(line: str = "") -> None:
    """Prints one line of the result to stdout, never wrapped, without what steers a terminal."""
    _print(printable(line), sys.stdout)


def err(line: str = "") -> None:
    """Prints one line about the work, or an error, to stderr, never wrapped."""
    sys.stdout.flush()
    _print(printable(line), sys.stderr)


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
