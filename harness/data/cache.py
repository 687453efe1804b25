"""Where corpora are kept, and how private files are written: owner-only, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harness.errors import MachineError

KEY_BYTES = 32


def default_cache_dir() -> Path:
    """``$UUDP_CACHE``, or ``uudp`` in the user's cache folder."""
    if given := os.environ.get("UUDP_CACHE"):
        return Path(given).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "")  # by its specification, a relative value does not count
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "uudp"


def private_folder(path: Path) -> Path:
    """Makes a folder that its owner alone may enter; one that exists is left as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def create_private(path: Path) -> BinaryIO:
    """Opens a new file, 0600 from its first moment on, for writing.

    Raises:
        FileExistsError: There is one already.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def write_private(path: Path, content: bytes) -> None:
    """Writes a file (0600) whole or not at all, replacing what was there."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with create_private(new) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def append_private(path: Path, content: bytes) -> None:
    """Appends to a file that is 0600 from its first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        file.write(content)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock between processes; the system lets go of it when the process ends, however it ends.

    Yields:
        Whether it is held: not, if another process has it and `wait` is false, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


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
