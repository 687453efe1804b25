"""Where corpora are kept, and the key of their fingerprints."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from harness.errors import MachineError
from harness.files import locked, write_private

KEY_BYTES = 32


def default_cache_dir() -> Path:
    """``$UUDP_CACHE``, or ``uudp`` in the user's cache folder."""
    if given := os.environ.get("UUDP_CACHE"):
        return Path(given).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "")  # by its specification, a relative value does not count
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "uudp"


def secret_key(cache_dir: Path) -> bytes:
    """The random key of this cache's fingerprints, made when it is first asked for.

    A fingerprint tells nothing about the data to those who do not have it.
    """
    path = cache_dir / "fingerprint.key"
    with locked(cache_dir / "fingerprint.lock"):
        if not path.exists():
            write_private(path, secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise MachineError(f"{path} is damaged; delete the folder {cache_dir}")
    return key


@contextlib.contextmanager
def machine_errors(what: str) -> Iterator[None]:
    """Turns a full disk or a missing permission into one line.

    Raises:
        MachineError: In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(f"{what} can't be used: {error.strerror or type(error).__name__}") from None
