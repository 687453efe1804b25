"""The inside of a room: what its process runs. See `harness.data.rooms`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from harness.data import portable
from harness.data.learning import base_of, rule_of
from harness.data.walls import Walls, close_all_but
from harness.plugins import (
    ModelView,
    OwnRecordsScore,
    OwnRecordsSegmenter,
    PluginError,
    Statistic,
    UserRecords,
)
from harness.queries import Answer, Described

LENGTH = struct.Struct(">Q")
MOST_LOG = 100_000
_DIE_WITH_PARENT = 1
_TASKS: dict[str, tuple[type, str]] = {
    "value": (Statistic, "value"),
    "assign": (OwnRecordsSegmenter, "assign"),
    "score": (OwnRecordsScore, "score"),
}


def receive(read: Callable[[int], bytes], most: int = 2**40) -> bytes:
    """One message: its length, then its bytes.

    Raises:
        EOFError: The other side has gone, or announces more than `most`.
    """
    (length,) = LENGTH.unpack(_exactly(read, LENGTH.size))
    if length > most:
        raise EOFError
    return _exactly(read, length)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = read(min(count - len(found), 2**20))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def message(document: Any) -> bytes:
    """One message, as it is sent."""
    content = json.dumps(document).encode()
    return LENGTH.pack(len(content)) + content


def _send(descriptor: int, document: Any) -> None:
    content = memoryview(message(document))
    while content:
        content = content[os.write(descriptor, content) :]


def _listen(descriptor: int) -> Any:
    return json.loads(receive(lambda count: os.read(descriptor, count)))


class _Heard(io.StringIO):
    """What the plugin prints; the first part of it."""

    def write(self, text: str, /) -> int:
        if self.tell() < MOST_LOG:
            super().write(text[:MOST_LOG])
        return len(text)


def main(descriptor: int) -> None:
    """Runs a room over a socket that it was given, until the other side closes it."""
    warnings.simplefilter("ignore")
    job = _listen(descriptor)
    walls = Walls(job["refused"])
    if job["task"] == "fit":
        _fit(descriptor, job, walls)
    else:
        _serve_users(descriptor, job, walls)


def _described(document: Any) -> Described:
    return Described(document["path"], document["attributes"], document["version"])


# --- the user room ------------------------------------------------------------------------------------------


def _serve_users(descriptor: int, job: Any, walls: Walls) -> None:
    base, method = _TASKS[job["task"]]
    control = socket.socket(fileno=descriptor)
    start_clock, wait, exit_ = signal.setitimer, os.waitpid, os._exit
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    heard = _Heard()
    sys.stdout = sys.stderr = heard
    walls.raise_()
    thing: Any = _imported(lambda: portable.rebuild(_described(job["thing"]), base), heard)
    problem = heard.getvalue() if thing is None else None
    if problem is None and threading.active_count() > 1:
        problem = "it starts a thread"
    close_all_but([descriptor])
    control.sendall(message({"problem": problem}))
    if problem is not None:
        return
    walls.allow_forks()
    gc.collect()
    gc.freeze()  # what is here before the first user is shared by all of them
    gc.disable()
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not order:
            return
        (own,) = descriptors
        child = os.fork()
        if child == 0:
            try:
                start_clock(signal.ITIMER_REAL, job["seconds"])
                close_all_but([own])  # the next users' are handed over on `control`
                walls.seal()
                _answer(own, thing, method)
            finally:
                exit_(0)
        os.close(own)
        wait(child, 0)
        control.sendall(b".")  # only now may the next user come


def _imported(make: Callable[[], Any], heard: _Heard) -> Any:
    """What `make` gives; None if it fails, which is then heard."""
    try:
        return make()
    except (Exception, SystemExit) as error:
        heard.write("".join(traceback.format_exception(error)))
        return None


def _answer(own: int, thing: Any, method: str) -> None:
    """Reads one user's records, and says what the plugin makes of them. In a process that ends afterwards."""
    heard = _Heard()
    sys.stdout = sys.stderr = heard
    warnings.simplefilter("always")
    document: dict[str, Any] = {"answer": None, "failed": True}
    try:
        given = _listen(own)
        texts, counts, times = (tuple(given[name]) for name in ("texts", "token_counts", "times"))
        view = _view(given["model"])
        user = UserRecords(texts, counts, given["examples"], given["attributes"], times, view)
        document = {"answer": _plain(getattr(thing, method)(user)), "failed": False}
    except BaseException as error:
        heard.write("".join(traceback.format_exception(error)))
    _send(own, document | {"log": heard.getvalue()})


def _view(given: Any) -> ModelView | None:
    """What the base model makes of the user, from JSON."""
    if given is None:
        return None
    losses, tails, guessed = (tuple(given[name]) for name in ("losses", "tails", "guessed"))
    return ModelView(losses, tails, guessed, given["gradient_norm"], tuple(given["embedding"]))


def _plain(value: Any) -> Any:
    """An answer for JSON: numbers, texts, and lists of them; anything else is None."""
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [v if isinstance(v, str) else _number(v) for v in value]
    return str(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> Any:
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return float(value) if abs(value) < 2**1000 else None
    return float(value) if isinstance(value, float) else None


# --- the fitting room ---------------------------------------------------------------------------------------


class _Asking:
    """The session, as `fit` sees it: every question goes out of the room."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._ask = ask

    def ask(self, query: str, statistic: Statistic) -> Answer:
        """The noisy answer to a declared query."""
        if not isinstance(statistic, Statistic):
            raise PluginError("a session is asked with a Statistic")
        path, attributes = portable.parts(statistic)
        found = self._ask({"ask": query, "path": path, "attributes": attributes})
        if "refused" in found:
            raise PluginError(found["refused"])
        value = found["value"]
        shown = tuple(value) if isinstance(value, list) else value
        return Answer(found["query"], shown, found["std"], tuple(found["noisy"]))


def _fit(descriptor: int, job: Any, walls: Walls) -> None:
    heard = _Heard()
    sys.stdout = sys.stderr = heard
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # it may be asleep when the harness is killed
    walls.raise_()
    walls.seal()

    def ask(question: Any) -> Any:
        _send(descriptor, question)
        return _listen(descriptor)

    try:
        learner = portable.rebuild(_described(job["thing"]), base_of(job["kind"]))
        close_all_but([descriptor])
        path, attributes = portable.parts(rule_of(learner, learner.fit(_Asking(ask))))
        last: Any = {"rule": path, "attributes": attributes}
    except BaseException as error:
        last = {"failed": "".join(traceback.format_exception(error))}
    with contextlib.suppress(OSError):
        _send(descriptor, last | {"log": heard.getvalue()})
