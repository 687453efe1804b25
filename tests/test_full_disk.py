"""A disk that takes no more in the middle of a run: one sentence, exit code 4, nothing lost, nothing released twice.

The system itself refuses: the running processes' largest file is limited from outside, which needs no privilege.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import launching
from tests.launching import KEY, Process, Run, Workplace, read_json, released_step
from tests.test_kills import assert_undisturbed, workers_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.ray]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    workplace = launching.secret_run(tmp_path / "place")
    yield workplace
    workplace.clean()


def limit(process: psutil.Process, size: int) -> None:
    """From now on no file of this process may grow beyond `size` bytes."""
    process.rlimit(psutil.RLIMIT_FSIZE, (size, process.rlimit(psutil.RLIMIT_FSIZE)[1]))


def assert_stopped(place: Workplace, process: Process) -> None:
    assert process.wait() == 4, process.err
    said, how = process.err.splitlines()[-2:]
    assert said.startswith("uudp: "), process.err
    assert "--resume" in how
    assert "Traceback" not in process.err


def test_a_full_disk(secret_run: Run, place: Workplace) -> None:
    """First the workers can write no checkpoint, then the driver no report; then there is room again."""
    process = place.start_with_key(KEY)
    process.worker()
    process.until(lambda: released_step(place) >= 2, "a step was released")
    for worker in workers_of(process):
        limit(worker, 16)
    assert_stopped(place, process)
    assert "could not be written: " in process.err
    assert "File too large" in process.err
    folder = place.run_folder()
    assert released_step(place) < 16
    assert read_json(folder / "privacy.json")["status"] == "interrupted"
    before = (folder / "metrics.jsonl").read_bytes()

    resumed = place.start_with_key(KEY, "--resume")
    resumed.worker()
    limit(resumed.process, 12_000)  # its own stderr is a file too, and must still take the sentence
    assert_stopped(place, resumed)
    assert (folder / "metrics.jsonl").read_bytes().startswith(before)

    last = place.start_with_key(KEY, "--resume")
    assert last.wait() == 0, last.err
    assert_undisturbed(place, folder, secret_run.folder)
