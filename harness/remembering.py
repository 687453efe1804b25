"""Remembers on disk what takes seconds to find and never changes: a pure function of a key, of libraries and of code.

What is found again was kept for the same key, the same versions of the libraries and the same code of ours. A file
that is damaged, or that was not written with this cache's own key, counts as none. Nothing private belongs in here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cache import default_cache_dir, secret_key
from harness.errors import UserError
from harness.files import private_folder, write_private


@dataclass(frozen=True)
class Memory:
    """One kind of results, in a folder of the user's cache.

    Attributes:
        kind: Its name.
        libraries: Installed distributions whose versions decide a result.
        sources: Files of ours that do.
    """

    kind: str
    libraries: tuple[str, ...]
    sources: tuple[Path, ...]

    def find(self, key: str) -> dict[str, Any] | None:
        """What was kept for this key; None: nothing that can be trusted."""
        place = self._place(key)
        if place is None:
            return None
        path, secret = place
        try:
            seal, content = path.read_text(encoding="utf-8").split("\n", 1)
            if not hmac.compare_digest(seal, self._seal(secret, key, content)):
                return None
            found: dict[str, Any] = json.loads(content)
            return found
        except (OSError, ValueError):
            return None

    def keep(self, key: str, found: dict[str, Any]) -> None:
        """Keeps what goes through JSON unchanged; where it can't be kept, the next one has to find it again."""
        place = self._place(key)
        if place is None:
            return
        path, secret = place
        content = json.dumps(found)  # infinity is written as such, and read again
        with contextlib.suppress(OSError):
            write_private(path, f"{self._seal(secret, key, content)}\n{content}".encode())

    def _place(self, key: str) -> tuple[Path, bytes] | None:
        """Where the result of a key is kept, and the key of its seal; None where nothing can be kept."""
        try:
            cache = default_cache_dir()
            folder = private_folder(private_folder(cache) / self.kind)
            return folder / hashlib.sha256((self._version() + key).encode()).hexdigest(), _secret(cache)
        except (OSError, RuntimeError, UserError):
            return None

    def _version(self) -> str:
        return _version(self.libraries, self.sources)

    def _seal(self, secret: bytes, key: str, content: str) -> str:
        message = "\0".join((self.kind, self._version(), key, content))
        return hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()


@functools.lru_cache(maxsize=8)
def _version(libraries: Sequence[str], sources: Sequence[Path]) -> str:
    """Everything that a result depends on besides its key."""
    digest = hashlib.sha256()
    for name in libraries:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _secret(cache: Path) -> bytes:
    return secret_key(cache)
