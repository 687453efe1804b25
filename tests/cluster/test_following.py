"""Following a job: every line once, whatever becomes of the connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.cluster import following
from harness.cluster.client import JobInfo
from harness.cluster.following import follow, printed
from harness.errors import MachineError

WHOLE = (
    "2026-01-01 10:00:00,123\tINFO job_manager.py:568 -- Runtime env is setting up.\n"
    "Running entrypoint for job x: exec python uudp_job.py\n"
    "private step 0: ε spent 0.000\nprivate step 5: ε spent 1.000\nprivate step 10: ε spent 2.000\nuudp: the end"
)
LINES = [*(f"private step {s}: ε spent {e}" for s, e in ((0, "0.000"), (5, "1.000"), (10, "2.000"))), "uudp: the end"]


class Dropping:
    """A job server that gives one more piece of the log with each connection, always from the first line on."""

    def __init__(self, *, unreachable: int = 0, piece: int = 37) -> None:
        self.size, self.unreachable, self.piece = 0, unreachable, piece

    def tail(self, _: str, told: Callable[[str], None]) -> None:
        self.size = min(len(WHOLE) - 40, self.size + self.piece)
        for start in range(0, self.size, 10):
            told(WHOLE[start : min(start + 10, self.size)])

    def info(self, name: str) -> JobInfo:
        if self.unreachable:
            self.unreachable -= 1
            raise MachineError("the job server at X does not answer")
        return JobInfo(name, "RUNNING" if self.size < len(WHOLE) - 40 else "SUCCEEDED")

    def logs(self, _: str) -> str:
        return WHOLE


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.0)


@pytest.mark.parametrize("piece", [7, 37, 1000])
def test_every_line_once(piece: int) -> None:
    """Break: begin again at each connection; leave out what came after the last one; print half lines."""
    lines: list[str] = []
    notes: list[str] = []
    server: Any = Dropping(unreachable=2, piece=piece)
    assert follow(server, "x", lines.append, notes.append).status == "SUCCEEDED"
    assert lines == LINES
    assert notes == ["the job server at X does not answer; trying again"]


def test_it_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    server: Any = Dropping(unreachable=10**6)
    with pytest.raises(MachineError, match="does not answer"):
        follow(server, "x", print, print)


def test_what_is_there_so_far() -> None:
    lines: list[str] = []
    server: Any = Dropping()
    printed(server, "x", lines.append)
    assert lines == LINES
