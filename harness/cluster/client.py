"""Ray's job server, over HTTP: the only file that talks to it. Whatever goes wrong is one line.

Ray's own client does the work, with two changes: the address that was given wins over ``RAY_ADDRESS``, and no request
waits for ever. A token is Ray's affair (``RAY_AUTH_MODE=token`` and its file or variable): it is never read here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.errors import ArgumentError, MachineError
from harness.training.job import RUN_ID

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""By which Ray itself lets an address be given; its client would prefer them to the argument."""
SECONDS = (10.0, 300.0)
"""A request may take so long to connect, and then to answer (an upload, on a slow line)."""
QUIET_SECONDS = 60.0
"""Without a new line for so long, the connection is looked after."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
OLDEST, NEWEST = (2, 60), (3, 0)
"""Of the cluster's Ray, as in pyproject: from, and below."""


@dataclass(frozen=True)
class JobInfo:
    """What the job server says of a job.

    Attributes:
        id: Its submission id.
        status: Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        code: Exit code of its command, where it ended by itself.
        begun: Seconds since 1970; None where it has not begun.
        metadata: What was sent along with it; ours has a key ``uudp``.
        message: Ray's own, of a job that failed before its command ran.
    """

    id: str
    status: str
    code: int | None = None
    begun: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED

    @property
    def exit_code(self) -> int:
        """The exit code of the run, as `uudp run` would have ended with; 4 where its command never ran."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return 4 if self.code in (None, 126, 127) else int(self.code or 1)


def server(given: str | None) -> str:
    """The job server's address: the one given, else what Ray's variables say.

    Raises:
        ArgumentError: There is none, or it is no address of a job server.
    """
    named = next(((name, os.environ[name]) for name in VARIABLES if os.environ.get(name)), None)
    where, text = ("--address", given) if given is not None else named or ("", "")
    if not text:
        raise ArgumentError("--address: must be given: the cluster's job server, as http://HOST:8265")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ArgumentError(f"{where}: can't be read as an address, http://HOST:8265") from None
    if parts.username or parts.password:
        raise ArgumentError(f"{where}: holds a password, which every process here could see; use Ray's token")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or not text.isprintable():
        raise ArgumentError(f"{where}: must be the address of the cluster's job server, http://HOST:8265")
    return text.rstrip("/")


class Cluster:
    """A job server that answers."""

    def __init__(self, address: str) -> None:
        """Args: `address`: of `server`.

        Raises:
            MachineError: Nobody answers there, it wants a token, or its Ray does not fit.
        """
        self.address = address
        with self._told(), _without_variables():
            self._client = _client_class()(address)
            answer = self._client._do_request("GET", "/api/version").json()
        self.ray = str(answer.get("ray_version"))
        if not OLDEST <= _release(self.ray) < NEWEST:
            raise MachineError(f"the cluster at {address} runs Ray {self.ray}; uudp needs ray>=2.60,<3 there as here")

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        folder: Path,
        metadata: dict[str, str],
        wait: int,
        gpu_type: str | None = None,
    ) -> None:
        """Uploads a folder, and starts a command in it.

        Args:
            submission_id: A new one.
            entrypoint: The command, which everybody on the cluster sees.
            folder: What it works on.
            metadata: What everybody may know of it.
            wait: Seconds that it may take to end after it was told to stop.
            gpu_type: It begins on a machine with such GPUs, and takes none of them from its workers; None: on the head.

        Raises:
            ArgumentError: There is such a job already.
        """
        # Shown by Ray to everybody: no secret goes in here. The variable is the supervisor's: Ray kills after 3 s else.
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(wait), "RAY_USAGE_STATS_ENABLED": "0"}
        environment = {"working_dir": str(folder), "env_vars": variables}
        with self._told(submission_id):
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env=environment,
                metadata=metadata,
                entrypoint_resources={f"accelerator_type:{gpu_type}": 0.001} if gpu_type else None,
            )

    def info(self, submission_id: str) -> JobInfo:
        """Of one job."""
        with self._told(submission_id):
            return _info(self._client.get_job_info(submission_id))

    def jobs(self) -> list[JobInfo]:
        """All jobs that uudp submitted, the oldest first."""
        with self._told():
            found = [_info(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted((one for one in found if _is_ours(one)), key=lambda one: (one.begun or 0, one.id))

    def stop(self, submission_id: str) -> bool:
        """Asks a job to end, as Ctrl-C does; false where it has ended."""
        with self._told(submission_id):
            return bool(self._client.stop_job(submission_id))

    def forget(self, submission_id: str) -> None:
        """Takes a job that has ended out of the list; what it was sent goes with it."""
        with self._told(submission_id):
            self._client.delete_job(submission_id)

    def logs(self, submission_id: str) -> str:
        """All that a job has printed so far."""
        with self._told(submission_id):
            return str(self._client.get_job_logs(submission_id))

    def tail(self, submission_id: str, told: Callable[[str], None]) -> None:
        """Gives what a job has printed from its first line on, as it comes; returns when the server says no more.

        Also returns where the connection was lost, or nothing came for a while: whoever asks looks after the job.

        Args:
            submission_id: Of the job.
            told: Gets pieces of the text.
        """

        async def follow() -> None:
            pieces = self._client.tail_job_logs(submission_id)
            while True:
                told(await asyncio.wait_for(anext(pieces), QUIET_SECONDS))

        with contextlib.suppress(Exception):
            asyncio.run(follow())

    @contextlib.contextmanager
    def _told(self, submission_id: str = "") -> Iterator[None]:
        """Turns what Ray's client raises into one line."""
        try:
            yield
        except (ArgumentError, MachineError):
            raise
        except Exception as error:
            raise self._error(error, submission_id) from None

    def _error(self, error: Exception, submission_id: str) -> ArgumentError | MachineError:
        text, kind = " ".join(str(error).split()), type(error).__name__
        if kind == "AuthenticationError":
            return MachineError(
                f"the cluster at {self.address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
            )
        if "status code 404" in text and submission_id:
            return ArgumentError(f"there is no job {submission_id} at {self.address}")
        if "already exists" in text and submission_id:
            return ArgumentError(f"there is a job {submission_id} already at {self.address}")
        if isinstance(error, OSError):  # all that `requests` raises, too; its message may quote headers
            what = "took too long to answer" if "Timeout" in kind else "does not answer"
            return MachineError(f"the job server at {self.address} {what}")
        return MachineError(f"the job server at {self.address} refuses: {text[:300]}")


def _client_class() -> Any:
    """Ray's client, whose requests end."""
    from ray.job_submission import JobSubmissionClient

    # Each has a level of its own; importing Ray sets the first one's.
    for name in ("", ".dashboard.modules.job.sdk", ".dashboard.modules.dashboard_sdk"):
        logging.getLogger(f"ray{name}").setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            more.setdefault("timeout", SECONDS)
            return super()._do_request(method, endpoint, **more)

    return Client


@contextlib.contextmanager
def _without_variables() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _is_ours(job: JobInfo) -> bool:
    """Whether uudp submitted it: others on the cluster can say anything of their jobs."""
    run = job.metadata.get("run", "")
    own = bool(RUN_ID.fullmatch(run)) and re.fullmatch(rf"{run}(-r[1-9][0-9]{{0,4}})?", job.id) is not None
    return "uudp" in job.metadata and own


def _release(version: str) -> tuple[int, int]:
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _info(details: Any) -> JobInfo:
    begun = details.start_time
    return JobInfo(
        id=str(details.submission_id),
        status=str(getattr(details.status, "value", details.status)),
        code=details.driver_exit_code,
        begun=None if not begun else begun / 1000,
        metadata={str(k): str(v) for k, v in (details.metadata or {}).items()},
        message=str(details.message or ""),
    )
