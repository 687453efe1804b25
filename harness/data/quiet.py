"""Keeps what foreign code prints, warns or logs about private data off the console, which is released."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from harness.files import private_folder

LOG = "plugin-errors.log"


class _Sink(io.RawIOBase):
    """What foreign code finds behind ``sys.stdout``; it may hold on to it, and then writes into nothing."""

    fd: int | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, content: Any, /) -> int:
        if self.fd is not None:
            os.write(self.fd, content)
        return len(content)


_SINK = _Sink()
_STREAM = io.TextIOWrapper(cast(BinaryIO, _SINK), encoding="utf-8", errors="backslashreplace", write_through=True)


class _State:
    """How many contexts are open in this process, and what undoes the first."""

    lock = threading.Lock()
    depth = 0
    undo = contextlib.ExitStack()


class _Own(threading.local):
    """How many of them are this thread's."""

    depth = 0


_OWN = _Own()


def silent() -> bool:
    """Whether this thread is within a `Quiet`."""
    return _OWN.depth > 0


class Quiet:
    """As a context: stdout, stderr, their file descriptors and logging go to the private log, or nowhere.

    Contexts may lie within each other and in several threads: the first redirects (some 0.1 ms), the last undoes it,
    and those between cost nothing to speak of. Whoever asks much of foreign code opens one around the loop.
    """

    def __init__(self, private_dir: Path | None) -> None:
        self._private_dir = private_dir

    def __enter__(self) -> None:
        with _State.lock:
            if _State.depth == 0:
                with contextlib.ExitStack() as stack:
                    _redirect(stack, self._private_dir)
                    _State.undo = stack.pop_all()
            _State.depth += 1
        _OWN.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OWN.depth -= 1
        with _State.lock:
            _State.depth -= 1
            if _State.depth == 0:
                _State.undo.close()


def _redirect(stack: contextlib.ExitStack, private_dir: Path | None) -> None:
    streams = [s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if s is not None]
    _flush(streams)  # our own lines, before the console is gone
    fd = stack.enter_context(_log(private_dir))
    for number in (1, 2):
        with contextlib.suppress(OSError):  # a closed one shows nothing
            kept = os.dup(number)
            stack.callback(os.close, kept)
            os.dup2(fd, number)
            stack.callback(os.dup2, kept, number)
    stack.callback(_flush_c)
    stack.callback(_flush, streams)  # what somebody wrote to the real ones, before they are back
    stack.callback(setattr, _SINK, "fd", None)
    _SINK.fd = fd
    root = logging.getLogger()
    for thing, name, value in (
        (sys, "stdout", _STREAM),
        (sys, "stderr", _STREAM),
        (root, "handlers", [logging.StreamHandler(_STREAM)]),
        (root, "level", root.level),
    ):
        stack.callback(setattr, thing, name, getattr(thing, name))
        setattr(thing, name, value)


@contextlib.contextmanager
def _log(private_dir: Path | None) -> Iterator[int]:
    """A descriptor of the log, or of nothing. A log in which nothing was written does not stay."""
    path = None if private_dir is None else private_dir / LOG
    try:
        if private_dir is not None:
            private_folder(private_dir)
        fd = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:  # no place for it: nobody shall see it
        path, fd = None, os.open(os.devnull, os.O_WRONLY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            if path is not None and os.fstat(fd).st_size == 0:
                path.unlink()
        os.close(fd)


def _flush(streams: list[Any]) -> None:
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _flush_c() -> None:
    """What a compiled library printed waits in a buffer of C's own."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
