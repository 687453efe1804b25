"""Rooms: processes of their own for plugins' code that touches users' records, or learns from answers.

- The *user room* imports a plugin and then forks once per user: the fork is handed the records of that one user,
  answers and ends. So nothing passes from one user to another, whatever the plugin keeps, and where.
- The *fitting room* runs `fit` of a `SessionSegmenter` or `SessionScore`. It has no data at all; it asks through a
  pipe.

A room is started fresh: no inherited memory, descriptors, environment or working folder; behind the walls of
`harness.data.walls`, whose limits hold here too. What a room sends is JSON that is looked at, never a pickle. What a
plugin prints, warns or raises goes to the private log. The plugin's module is imported in the harness's own process as
well, when a spec names it: what it does there, before any record is read, no room can hold back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import Any, Literal

from harness.data import portable
from harness.data.learning import Kind, learnt
from harness.data.quiet import LOG
from harness.data.within import message, receive
from harness.errors import ArgumentError, MachineError
from harness.files import append_private, private_folder
from harness.plugins import PluginError, UserRecords
from harness.privacy.session import DeclaredSession, to_document
from harness.queries import Described

Task = Literal["value", "assign", "score"]

SECONDS_PER_USER = 10.0
FIT_SECONDS = 600.0
_SLACK = 5.0
"""The system ends a user's process in time; whoever evades that is ended from here."""
_MOST_ANSWER = 2**24
_MOST_ROOMS = 8
_START = "import sys; from harness.data.within import main; main(int(sys.argv[1]))"


@dataclass(frozen=True)
class Reply:
    """What a plugin said of one user. Private.

    Attributes:
        answer: A number, a text, or a list of them; None is anything else.
        failed: It raised something, ended its process, or was out of time.
    """

    answer: Any
    failed: bool


class _Room:
    """A process behind walls, and the socket to it."""

    def __init__(self, job: dict[str, Any]) -> None:
        own, other = socket.socketpair()
        paths = [os.path.abspath(place) for place in sys.path]
        environment = {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONHASHSEED": "0",  # the same rule says the same in every room
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",  # a fork has no threads
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
        }
        try:
            with other:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(other.fileno(),),
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            own.close()
            raise MachineError(f"a process for a plugin can't be started: {error.strerror}") from None
        self.socket = own
        self.send(job, FIT_SECONDS)

    def send(self, document: Any, seconds: float) -> None:
        self.socket.settimeout(seconds)
        self.socket.sendall(message(document))

    def listen(self, seconds: float) -> Any:
        """The next message; None if there is none in time, or none that can be read."""
        return _heard(self.socket, seconds)

    def close(self) -> None:
        """Ends the process and all that came out of it."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _heard(line: socket.socket, seconds: float) -> Any:
    until = time.monotonic() + seconds

    def read(count: int) -> bytes:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        return line.recv(count)

    try:
        found = json.loads(receive(read, _MOST_ANSWER))
    except (OSError, EOFError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _note(private_dir: Path | None, who: str, text: object) -> None:
    """Writes what a plugin said to the private log."""
    if private_dir is None or not isinstance(text, str) or not text:
        return
    private_folder(private_dir)
    append_private(private_dir / LOG, f"{who}\n{text}\n".encode(errors="replace"))


def _hint(private_dir: Path | None) -> str:
    return f"; see {private_dir.name}/{LOG}" if private_dir is not None else ""


class UserRoom:
    """Asks a plugin about one user at a time. A context: the room is closed behind it."""

    def __init__(
        self,
        thing: Described,
        task: Task,
        *,
        who: str,
        private_dir: Path | None,
        refused: Sequence[Path] = (),
        seconds: float = SECONDS_PER_USER,
    ) -> None:
        """Takes a plugin.

        Args:
            thing: What is asked, rebuilt in the room.
            task: Which of its methods.
            who: The plugin's name, for errors.
            private_dir: Gets what the plugin prints and raises; None: nobody does.
            refused: Folders in which it may read nothing, even if a library lies there.
            seconds: Time for one user.
        """
        folders = [str(path) for path in (*refused, *([private_dir] if private_dir is not None else []))]
        self._job = {"task": task, "thing": asdict(thing), "refused": folders, "seconds": seconds}
        self._who, self._private_dir, self._seconds = who, private_dir, seconds
        self._room: _Room | None = None

    def __enter__(self) -> UserRoom:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._room is not None:
            self._room.close()
            self._room = None

    def ask(self, user: UserRecords) -> Reply:
        """What the plugin says of the user with these records, and of nobody else.

        Raises:
            ArgumentError: The plugin can't be used in a room at all; no record has any part in that.
        """
        room = self._room = self._room or self._opened()
        own, other = socket.socketpair()
        found = None
        with own:
            try:
                with other:
                    socket.send_fds(room.socket, [b"u"], [other.fileno()])
                own.settimeout(self._seconds + _SLACK)
                own.sendall(message(asdict(user)))
                found = _heard(own, self._seconds + _SLACK)
            except OSError:
                pass  # it ended without listening
        self._wait(room)
        if found is None:
            _note(self._private_dir, self._who, "ended without an answer, or was out of time")
            return Reply(None, True)
        _note(self._private_dir, self._who, found.get("log"))
        return Reply(found.get("answer"), found.get("failed") is not False)

    def _wait(self, room: _Room) -> None:
        """Until the user's process has ended; a room in which it doesn't is given up."""
        try:
            room.socket.settimeout(self._seconds + _SLACK)
            if room.socket.recv(1) == b".":
                return
        except OSError:
            pass
        room.close()
        self._room = None

    def _opened(self) -> _Room:
        room = _Room(self._job)
        ready = room.listen(FIT_SECONDS)
        if ready is None or ready.get("problem") is not None:
            room.close()
            _note(self._private_dir, self._who, (ready or {}).get("problem"))
            raise ArgumentError(
                f"the plugin {self._who} can't be imported in a process without files, network and data"
                + _hint(self._private_dir)
            )
        return room


def ask_all(make: Callable[[], UserRoom], users: Iterable[UserRecords]) -> Iterator[Reply]:
    """What a plugin says of each user, in their order; several rooms work at once.

    Args:
        make: A new room.
        users: One user's records each; read a few ahead.
    """
    width = min(_MOST_ROOMS, len(os.sched_getaffinity(0)))
    free: LifoQueue[UserRoom] = LifoQueue()  # rooms that are open already come first

    def ask(user: UserRecords) -> Reply:
        room = free.get()
        try:
            return room.ask(user)
        finally:
            free.put(room)

    with contextlib.ExitStack() as rooms:
        for _ in range(width):
            free.put(rooms.enter_context(make()))
        pool = ThreadPoolExecutor(width)
        rooms.callback(pool.shutdown, cancel_futures=True)  # before the rooms are closed
        pending: deque[Future[Reply]] = deque()
        for user in users:
            pending.append(pool.submit(ask, user))
            if len(pending) >= 2 * width:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def run_fit(
    thing: Described,
    session: DeclaredSession,
    *,
    who: str,
    private_dir: Path | None,
    kind: Kind = "segmenter",
    refused: Sequence[Path] = (),
    seconds: float = FIT_SECONDS,
) -> Described:
    """Runs `fit` of a plugin that learns in a fitting room, and closes the session.

    Args:
        thing: The plugin.
        session: What it asks.
        who: The plugin's name, for errors.
        private_dir: Gets what the plugin prints and raises; None: nobody does.
        kind: What it is.
        refused: Folders in which it may read nothing.
        seconds: Time for its own work between two questions.

    Returns:
        The rule or score, not rebuilt: only a user room ever does that.

    Raises:
        ArgumentError: It raised an error, was out of time, or gave no rule.
    """
    folders = [str(path) for path in (*refused, *([private_dir] if private_dir is not None else []))]
    room = _Room({"task": "fit", "kind": kind, "thing": asdict(thing), "refused": folders})
    try:
        for sent in _messages(room, seconds):
            if "ask" in sent:
                room.send(_answered(session, sent), seconds)
                continue
            _note(private_dir, who, sent.get("log"))
            if "failed" in sent:
                _note(private_dir, who, sent["failed"])
                raise ArgumentError(f"the plugin {who} raised an error{_hint(private_dir)}")
            return _rule(sent, who, kind)
    except OSError:
        pass  # it has gone
    finally:
        room.close()
        session.close()
    raise ArgumentError(f"the plugin {who} ended, or took more than {seconds:g} seconds, without giving a rule")


def _messages(room: _Room, seconds: float) -> Iterator[dict[str, Any]]:
    while (sent := room.listen(seconds)) is not None:
        yield sent


def _answered(session: DeclaredSession, sent: dict[str, Any]) -> dict[str, Any]:
    try:
        statistic = portable.described(sent.get("path"), sent.get("attributes"))
        return to_document(session.answer(sent["ask"], statistic))
    except PluginError as error:
        return {"refused": error.message}


def _rule(sent: dict[str, Any], who: str, kind: Kind) -> Described:
    try:
        return portable.described(sent.get("rule"), sent.get("attributes"))
    except PluginError:
        raise ArgumentError(f"the plugin {who} gave no {learnt(kind)}") from None
