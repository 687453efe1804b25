"""What a console sees of a run: it follows the run's folder, and is told nothing private."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from harness.running.folders import released_rows
from harness.training.job import Folder, Job


@dataclass(frozen=True)
class Progress:
    """How far a run is; steps are public, and nothing else is in here.

    Attributes:
        series: ``private`` or ``ordinary``.
        step: Steps taken in it.
        steps: Steps to take.
        epsilon: ε spent by then, from the public curve; None where there is none.
    """

    series: str
    step: int
    steps: int
    epsilon: float | None = None


class Observer:
    """What a console shows of a run. This one shows nothing; nothing that it is told is private."""

    def note(self, text: str) -> None:
        """A line about what happens now."""

    def progress(self, progress: Progress) -> None:
        """Training went on."""

    def released(self, row: dict[str, Any]) -> None:
        """A row of metrics was released."""


class Watch:
    """Follows a run through its folder and tells the observer what is new."""

    def __init__(self, folder: Folder, job: Job, observer: Observer) -> None:
        self.folder, self.job, self.observer = folder, job, observer
        self.seen = {(r["series"], int(r["step"])) for r in released_rows(folder.metrics)}
        self.last: Progress | None = None

    def look(self) -> None:
        """Tells what has happened since the last look."""
        for row in released_rows(self.folder.metrics):
            place = (row["series"], int(row["step"]))
            if place not in self.seen:
                self.seen.add(place)
                self.observer.released(row)
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self.folder.progress.read_text())
            series, step = document["series"], document["step"]
            epsilon = self.job.epsilon_after(step) if series == "private" else None
            progress = Progress(series, step, document["steps"], epsilon)
            if progress != self.last:
                self.last = progress
                self.observer.progress(progress)
