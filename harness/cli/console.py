"""Plain lines for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any


def out(line: str = "") -> None:
    """Prints one line of the result to stdout, never wrapped."""
    _print(line, sys.stdout)


def err(line: str = "") -> None:
    """Prints one line about the work, or an error, to stderr, never wrapped."""
    sys.stdout.flush()
    _print(line, sys.stderr)


def emit_json(document: Mapping[str, Any]) -> None:
    """Prints the one JSON document of a verb to stdout.

    Raises:
        ValueError: A number in it is not finite, which JSON can't say.
    """
    out(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _print(text: str, stream: Any) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
