"""The head of a GGUF file: its numbers and the shapes of its tensors, in a few milliseconds.

The package `gguf` reads the same, and turns a hundred thousand tokens into objects on the way, which takes seconds.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_head(file: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata by key (arrays are left out), and each tensor's shape by name, the fastest dimension first.

    Args:
        file: Of GGUF version 2 or 3.

    Raises:
        ValueError: It is none.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF" or _number(stream, "I") not in (2, 3):
            raise ValueError("no GGUF file of version 2 or 3")
        tensors, keys = _number(stream, "Q"), _number(stream, "Q")
        metadata = {}
        for _ in range(keys):
            key = _string(stream)
            value = _value(stream, _number(stream, "I"))
            if value is not None:
                metadata[key] = value
        shapes = {}
        for _ in range(tensors):
            name = _string(stream)
            shapes[name] = tuple(_number(stream, "Q") for _ in range(_number(stream, "I")))
            stream.seek(12, 1)  # its type and place
    return metadata, shapes


def _number(stream: BinaryIO, kind: str) -> Any:
    size = struct.calcsize("<" + kind)
    read = stream.read(size)
    if len(read) < size:
        raise ValueError("a GGUF file that ends too soon")
    return struct.unpack("<" + kind, read)[0]


def _string(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "Q")).decode("utf-8", "replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind in _NUMBERS:
        return _number(stream, _NUMBERS[kind])
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        raise ValueError(f"a GGUF value of an unknown kind, {kind}")
    inner, count = _number(stream, "I"), _number(stream, "Q")
    if inner in _NUMBERS:
        stream.seek(count * struct.calcsize("<" + _NUMBERS[inner]), 1)
        return None
    for _ in range(count):
        if inner == _STRING:
            stream.seek(_number(stream, "Q"), 1)
        else:
            _value(stream, inner)
    return None
