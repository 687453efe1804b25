"""Ray Tune over Ray Train: trials side by side, as many as there is room for. The only file of sweeping that knows Ray.

A trial is any folder with a job in it: of a sweep below its private part, of a suite's cell a run of its own.

Trials of one worker are trained in Tune's own processes, which go on from trial to trial; those of several workers in
Ray Train's. A trial's driver takes no core of its own: beside its workers it only waits.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from ray.tune.search import Searcher

from harness.errors import MachineError, UserError
from harness.files import is_unwritable, unwritable, write_private
from harness.spec.compute_block import ComputeBlock
from harness.spec.sweep_block import SelectBlock
from harness.sweeping.worker import DONE, OUTAGE, SCORE, trial
from harness.training.job import Folder

POLL_SECONDS = 0.5
How = Literal["ended", "stopped", "crashed", "outage"]
"""How a trial's training ended. ``stopped``: before its end, by the search or on request; ``crashed``: as often as it
may; ``outage``: by no fault of its own."""
Ended = Callable[[int, How], None]
"""Is told that a trial has ended, and how."""
LOG = "search-error.log"
DRIVER = 0.01
"""Of a core, for the driver of a trial of several workers, which waits for them."""
Where = Callable[[int], Folder]
"""Where a trial lies; asked for after it was prepared."""


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Where trials come from."""

    def next(self) -> tuple[int, T_co] | None:
        """The next trial; None: there are no more."""

    def told(self, place: int, score: float | None) -> None:
        """A trial ended; `score` where the search is told."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """Trials that are searched together, before those of the next part.

    Attributes:
        source: Where they come from.
        alone: Whether each has the machine to itself.
    """

    source: Source[T]
    alone: bool = False


@dataclass(frozen=True)
class Halting:
    """Successive halving (ASHA).

    Attributes:
        grace: Evaluations before any trial stops.
        reduction: Of so many trials one goes on.
        most: Evaluations of a whole trial, without the one before training.
    """

    grace: int
    reduction: float
    most: int


@dataclass(frozen=True)
class Searching:
    """One call of Ray Tune.

    Attributes:
        folder: The sweep's.
        where: The folder of each trial, by its number.
        compute: Of every trial.
        device: ``cpu`` or ``cuda``.
        concurrent: Trials at a time; None: as many as there is room for.
        restarts: How often one trial may be started again.
        select: The score.
        tells: Whether the search is told scores as they come.
        halting: When trials are stopped early.
        most: Trials at a time that memory holds, if nothing else is said; None: unknown.
    """

    folder: Folder
    where: Where
    compute: ComputeBlock
    device: str
    concurrent: int | None
    restarts: int
    select: SelectBlock
    tells: bool
    halting: Halting | None = None
    most: int | None = None


def search(
    what: Searching,
    parts: Sequence[Part[T]],
    prepare: Callable[[int, T], bool],
    ended: Ended,
    tick: Callable[[], None],
) -> None:
    """Runs all trials of all parts and waits for the end.

    Args:
        what: How.
        parts: Give the trials, in their order.
        prepare: Called in a thread of its own with each before it starts; whether there is something to train.
        ended: Called in that thread with each that has ended.
        tick: Called about twice a second in the calling thread; what it raises ends the wait.

    Raises:
        MachineError: Ray did not start, has not got the resources, or was lost, in part or whole.
    """
    from harness.training.ray_session import (
        LOST_SECONDS,
        check_resources,
        end_ray,
        is_lost,
        living_nodes,
        ray_is_gone,
        silent,
        start_ray,
    )

    (what.folder.private / LOG).unlink(missing_ok=True)
    shutil.rmtree(what.folder.private / "tune", ignore_errors=True)  # Tune's record of an earlier try
    started = start_ray()
    failures: list[BaseException] = []
    nodes, lost = living_nodes(), False

    def body() -> None:
        nonlocal lost
        try:
            for number, part in enumerate(parts):
                found = _tuner(what, part, number, prepare, ended).fit()
                # A trial whose machine was lost has not crashed by itself.
                lost = lost or (bool(found.num_errors) and is_lost(nodes))
        except BaseException as error:
            failures.append(error)
            with contextlib.suppress(OSError):  # of a full disk. Its message may hold what is private
                write_private(what.folder.private / LOG, traceback.format_exc().encode())

    # Off the main thread, where Ray would take over Ctrl-C.
    thread = threading.Thread(target=body, name="tune", daemon=True)
    patience = LOST_SECONDS
    with silent(started), _no_prints(), _closed_artifacts(started):
        try:
            check_resources(what.compute, what.device)
            thread.start()
            while thread.is_alive() and patience > 0:
                thread.join(POLL_SECONDS)
                tick()
                patience -= POLL_SECONDS * ray_is_gone()
        finally:
            if started:
                end_ray(thread)
    if patience <= 0 or lost:
        raise MachineError("Ray's own processes have ended; go on later with --resume")
    for error in failures:
        if isinstance(error, UserError):
            raise error
        if is_unwritable(error):
            raise unwritable(error, what.folder.private)
        told = f"details are in {what.folder.private}"
        raise MachineError(f"Ray Tune failed; go on later with --resume ({type(error).__name__}; {told})") from None


def _tuner(what: Searching, part: Part[T], number: int, prepare: Callable[[int, T], bool], ended: Ended) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # nobody reads what they would write
    share, concurrent, threads = _shares(replace(what, concurrent=1) if part.alone else what)
    scheduler = None
    if what.halting is not None:
        scheduler = ASHAScheduler(
            time_attr="training_iteration",
            metric=SCORE,
            mode=what.select.mode,
            grace_period=what.halting.grace,
            reduction_factor=what.halting.reduction,
            # Beyond the last evaluation: whoever gets there is trained to the end.
            max_t=max(what.halting.most, what.halting.grace) + 2,
        )
    told = {
        "stop": str(what.folder.stop),
        "threads": threads,
        "room": 0.95 / concurrent,
        "tells": what.tells,
        "metric": what.select.metric,
        "mode": what.select.mode,
    }
    return tune.Tuner(
        tune.with_resources(trial, share),
        tune_config=tune.TuneConfig(
            search_alg=Places(part.source, prepare, ended, told, what.where, what.folder.stop),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda one: f"trial-{one.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=f"part-{number}",
            storage_path=str(what.folder.private / "tune"),
            failure_config=tune.FailureConfig(max_failures=what.restarts),
            verbose=0,
        ),
    )


def _shares(what: Searching) -> tuple[dict[str, float], int, int]:
    """What one trial's driver takes, how many trials run at a time, and the threads of each."""
    import ray

    from harness.training.ray_session import GPU_TYPE

    held = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cores, workers = int(held.get("CPU", 1)), what.compute.most_workers
    room = int(held.get("GPU", 0)) if what.device == "cuda" else cores
    concurrent = what.concurrent or max(1, min(room // workers, what.most or room))
    threads = max(1, cores // (concurrent * workers))
    if workers > 1:
        # What its driver takes is left free by its workers: they would wait for it for ever.
        return {"CPU": DRIVER}, concurrent, threads
    share = {"CPU": min(1.0, cores / concurrent) if what.device != "cuda" else 0.0}
    if what.device == "cuda":
        share["GPU"] = min(1.0, room / concurrent)
        if what.compute.gpu_type is not None:
            share[f"{GPU_TYPE}{what.compute.gpu_type}"] = 0.001
    return share, concurrent, threads


class Places(Searcher, Generic[T]):
    """Gives Tune the numbers of trials. What they are stays here: Tune writes down whatever it can pickle."""

    def __init__(
        self,
        source: Source[T],
        prepare: Callable[[int, T], bool],
        ended: Ended,
        told: dict[str, Any],
        where: Where,
        stop: Path,
    ) -> None:
        """Args: trials; what is called before and after each; what each is told; where it lies; asks for no more."""
        super().__init__(*((SCORE, told["mode"]) if told["tells"] else ()))
        self._source, self._prepare, self._ended, self._told = source, prepare, ended, told
        self._running: dict[str, int] = {}
        self._where, self._stop = where, stop

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number, or that there are no more."""
        while not self._stop.exists() and (found := self._source.next()) is not None:
            place, candidate = found
            if self._prepare(place, candidate):
                self._running[trial_id] = place
                return {**self._told, "trial": str(self._where(place).root)}
            self._source.told(place, None)  # no plan can be made of it
            self._ended(place, "ended")
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the source."""
        place = self._running.pop(trial_id)
        told = {} if result is None else result
        self._source.told(place, None if error else told.get(SCORE))
        how: How = "stopped" if told.get(DONE) == 0 else "ended"
        self._ended(place, "crashed" if error else "outage" if told.get(OUTAGE) else how)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what a sweep needs to go on lies in its own folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


@contextlib.contextmanager
def _closed_artifacts(ours: bool) -> Iterator[None]:
    """Tune keeps a record of all trials below Ray's own folder, for everybody to read: ours alone, and not for long.

    Of a Ray that others have started, its folder is theirs to close.
    """
    from ray._private import worker as driver

    node = getattr(driver, "_global_node", None)
    if not ours or node is None:
        yield
        return
    folder = Path(node.get_session_dir_path()) / "artifacts"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _no_prints() -> Iterator[None]:
    """Tune prints and logs how many trials there are and how they end, which is private."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
