"""Files that are whole or absent, readable by whom they should be, and there after a power cut."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import MachineError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


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
    _write(path, content, 0o600)


def write_released(path: Path, text: str) -> None:
    """Writes a text that everybody may read (0644, whatever the umask), whole or not at all."""
    _write(path, text.encode(), 0o644)


def write_released_bytes(path: Path, content: bytes) -> None:
    """The same for any content."""
    _write(path, content, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with create_private(new) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode)
        os.replace(new, path)
        sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def append_private(path: Path, content: bytes) -> None:
    """Appends to a file that is 0600 from its first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        file.write(content)


def is_unwritable(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more: full, over a quota or a limit, read-only, broken."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def unwritable(error: BaseException, path: Path) -> MachineError:
    """What a user is told of a disk that takes no more.

    Args:
        error: Of the system, or of a library.
        path: What was to be written, or where.
    """
    reason = getattr(error, "strerror", None) or error
    return MachineError(f"{path} could not be written: {reason}")


def as_json(document: Mapping[str, Any]) -> str:
    """A document as JSON, strict: no NaN.

    Raises:
        ValueError: A number in it is not finite.
    """
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def release_folder(partial: Path, folder: Path) -> None:
    """Makes a folder durable and readable for all, and puts it into its place, whole or not at all.

    Args:
        partial: What was written, with files alone in it; beside `folder`.
        folder: Its place; what was there is gone.
    """
    for path in partial.iterdir():
        path.chmod(0o644)  # what writes weights makes its files for the owner alone
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Makes a rename in this folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


@contextlib.contextmanager
def hold(path: Path, *, seconds: float) -> Iterator[bool]:
    """Holds a lock that somebody may be about to let go of; it must not be done without.

    Args:
        path: The lock.
        seconds: So long it waits for another process to let go.

    Yields:
        Whether it is held: not, if another process keeps it.

    Raises:
        MachineError: The file system has no locks, or the file can't be made.
    """
    deadline = time.monotonic() + seconds
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise MachineError(f"{path} can't be made: {error.strerror}") from None
    try:
        held = _try_lock(handle, path)
        while not held and time.monotonic() < deadline:
            time.sleep(0.1)
            held = _try_lock(handle, path)
        yield held
    finally:
        os.close(handle)


def _try_lock(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise MachineError(f"{path.parent} lies on a file system without locks ({error.strerror})") from None
    return True


def is_locked(path: Path) -> bool | None:
    """Whether another process holds a lock; None where that can't be seen. Takes it for no longer than a look."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False
