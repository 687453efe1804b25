"""What a Ray Tune trial runs: one trial of a sweep, or one cell of a suite, from its folder, in a process that goes on
with the next one. Tune is told a path. What a trial is and how it did lies in private folders; Tune's own files,
which lie there too, are told a score only where the search needs it while it goes on.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import is_unwritable, write_private
from harness.spec.sweep_block import SelectBlock
from harness.sweeping.trials import check_prepared, score_of
from harness.training.job import Failure, Folder, Job

SCORE, DONE, OUTAGE = "score", "done_", "outage"
"""What Tune is told. Of an outage: the trial could not be trained now, by no fault of its own."""


def trial(config: Mapping[str, Any]) -> None:
    """Trains one trial to its end, from its newest checkpoint if there is one.

    Args:
        config: ``trial``: its folder; ``stop``: the file that asks all trials to stop; ``threads``: of this process;
            ``room``: the part of all cores that its workers may take; ``tells``: whether the search is told scores as
            they come, and by which metric (``metric``, ``mode``).
    """
    from ray import tune

    folder = Folder(Path(config["trial"]))
    if Path(config["stop"]).exists():
        tune.report({DONE: 0, **_told(folder, config)})
        return
    try:
        failure = _train(folder, config)
    except SystemExit:  # so Tune stops a trial early, out of what it is told
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a full disk
            write_private(folder.private / "worker-error.log", traceback.format_exc().encode())
        if isinstance(error, UserError) or is_unwritable(error):  # what checks this process, or a full disk
            tune.report({DONE: 0, OUTAGE: 1, **_told(folder, config)})
            return
        # Raised on as a bare name: the message and the frames may hold private values, and Ray logs both.
        raise RuntimeError(f"{type(error).__name__} in a trial; details are in its private folder") from None
    if failure is not None and failure.of_the_machine:
        tune.report({DONE: 0, OUTAGE: 1, **_told(folder, config)})
        return
    tune.report({DONE: 1, **_told(folder, config)})


def _told(folder: Folder, config: Mapping[str, Any]) -> dict[str, float]:
    """The score, where the search is told."""
    if not config["tells"]:
        return {}
    from harness.running.folders import released_rows

    select = SelectBlock(metric=config["metric"], mode=config["mode"])
    found = score_of([row for row in released_rows(folder.metrics) if row["series"] == "private"], select)
    worst = float("inf") if select.mode == "min" else float("-inf")
    return {SCORE: worst if found is None else found}


def _train(folder: Folder, config: Mapping[str, Any]) -> Failure | None:
    from harness.training.ray import check_worker
    from harness.training.ray import trainer as distributed

    check_prepared(folder)
    check_worker()
    folder.failure.unlink(missing_ok=True)
    folder.stop.unlink(missing_ok=True)
    job = Job.load(folder.root)
    compute = job.spec.compute
    if compute.most_workers == 1:
        return _train_here(folder, config)
    told = distributed(folder.root, compute, job.device, compute.retries, config["room"]).fit().return_value
    failure = Failure(**told) if told else None
    if failure is not None:
        failure.save(folder.root)
    return failure


def _train_here(folder: Folder, config: Mapping[str, Any]) -> Failure | None:
    """In this process, and not in one of Ray Train's own, so that the next trial finds everything imported."""
    from ray import tune

    from harness.training.process import prepare_process, release_memory

    prepare_process(int(config["threads"]), alone=True)
    from harness.training.loop import train

    def release(row: Mapping[str, Any]) -> None:
        value = row.get(config["metric"])
        if config["tells"] and value is not None and row["step"] > 0:  # before training, all trials are alike
            tune.report({DONE: 0, SCORE: float(value), "step": int(row["step"])})

    try:
        return train(folder.root, release)
    finally:
        release_memory()
