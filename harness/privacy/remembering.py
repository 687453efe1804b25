"""Remembers what accounting has computed, on disk: a calibration takes seconds, and is a pure function of numbers.

A result is found again only for the same function, the same arguments to the last digit, the same versions of the
libraries and the same code of ours. A file that is damaged, or that was not written with this cache's own key, counts
as none. Everything in here is public.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from harness.cache import default_cache_dir, secret_key
from harness.errors import UserError
from harness.files import private_folder, write_private

P = ParamSpec("P")
R = TypeVar("R")

LIBRARIES = ("dp-accounting", "numpy", "scipy", "attrs")
MODULES = (
    *("accounting", "calibration", "exposure", "levers", "mechanism"),
    *("mixture", "rates", "renyi", "roots", "terms"),
)
"""Of this package: what decides a result."""


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, of numbers, texts and frozen data alone, whose results are kept on disk.

    Args:
        function: Pure. Its arguments have a `repr` that says all of them; its result goes through JSON unchanged.
    """
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        key = json.dumps([name, [repr(a) for a in args], {k: repr(v) for k, v in kwargs.items()}], sort_keys=True)
        place = _place(key)
        if place is None:
            return function(*args, **kwargs)
        path, secret = place
        found = _read(path, secret, key)
        if found is None:
            found = {"result": function(*args, **kwargs)}
            _write(path, secret, key, found)
        result: R = found["result"]
        return result

    return wrapper


@functools.lru_cache(maxsize=1)
def _version() -> str:
    """Everything that a result depends on besides the arguments."""
    digest = hashlib.sha256()
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for name in MODULES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _place(key: str) -> tuple[Path, bytes] | None:
    """Where the result of a call is kept, and the key of its seal; None where nothing can be kept."""
    try:
        cache = default_cache_dir()
        folder = private_folder(private_folder(cache) / "accounting")
        return folder / hashlib.sha256((_version() + key).encode()).hexdigest(), _secret(cache)
    except (OSError, RuntimeError, UserError):
        return None


@functools.lru_cache(maxsize=8)
def _secret(cache: Path) -> bytes:
    return secret_key(cache)


def _seal(secret: bytes, key: str, content: str) -> str:
    message = "\0".join(("accounting", _version(), key, content))
    return hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()


def _read(path: Path, secret: bytes, key: str) -> dict[str, Any] | None:
    try:
        seal, content = path.read_text(encoding="utf-8").split("\n", 1)
        if not hmac.compare_digest(seal, _seal(secret, key, content)):
            return None
        found: dict[str, Any] = json.loads(content)
        return found
    except (OSError, ValueError):
        return None


def _write(path: Path, secret: bytes, key: str, found: dict[str, Any]) -> None:
    content = json.dumps(found)  # infinity is written as such, and read again
    with contextlib.suppress(OSError):  # a full disk makes the next plan slower, and nothing else
        write_private(path, f"{_seal(secret, key, content)}\n{content}".encode())
