"""What a job prints, line by line, each once: a dropped connection is taken up where it was lost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from harness.cluster.client import Cluster, JobInfo
from harness.errors import MachineError

PATIENCE = 600.0
"""Seconds without an answer after which it is given up."""
AGAIN_SECONDS = 2.0
_RAYS_OWN = re.compile(
    r"Running entrypoint for job |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO (job_manager|packaging)\.py"
)


class Lines:
    """Text in pieces → whole lines, without Ray's own.

    Attributes:
        seen: Characters so far, of whole lines and not.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told, self._rest, self.seen = told, "", 0

    def add(self, text: str) -> None:
        """The next piece."""
        self.seen += len(text)
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if not _RAYS_OWN.match(line):
                self._told(line)

    def end(self) -> None:
        """No more will come."""
        if self._rest:
            self.add("\n")


def printed(cluster: Cluster, submission_id: str, told: Callable[[str], None]) -> None:
    """All lines so far."""
    lines = Lines(told)
    lines.add(cluster.logs(submission_id))
    lines.end()


def follow(cluster: Cluster, submission_id: str, told: Callable[[str], None], note: Callable[[str], None]) -> JobInfo:
    """Follows a job to its end.

    Args:
        cluster: Its job server.
        submission_id: The job.
        told: Gets every line, once.
        note: Is told of a lost connection.

    Returns:
        The job, which has ended.

    Raises:
        MachineError: The job server did not answer for long.
    """
    lines, lost = Lines(told), 0.0
    while True:
        left = lines.seen  # a new connection begins with the first line

        def take(text: str) -> None:
            nonlocal left
            skipped, left = min(left, len(text)), max(0, left - len(text))
            lines.add(text[skipped:])

        cluster.tail(submission_id, take)
        try:
            info = cluster.info(submission_id)
            if info.ended:
                lines.add(cluster.logs(submission_id)[lines.seen :])
                lines.end()
                return info
        except MachineError as error:
            if not lost:
                lost = time.monotonic()
                note(f"{error}; trying again")
            if time.monotonic() - lost > PATIENCE:
                raise
        else:
            lost = 0.0
        time.sleep(AGAIN_SECONDS)
