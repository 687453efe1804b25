"""One trial of a sweep: prepared in a folder of its own, below the sweep's private one, and read back.

A trial is a run without a ledger entry and without a release: the same job, key, checkpoints and loop.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from harness.data.store import Corpus
from harness.errors import MachineError, UserError
from harness.files import as_json, private_folder, release_folder, write_private, write_released
from harness.planning import Plan
from harness.privacy.randomness import create_key, destroy_key, load_key
from harness.running.answers import SETTLED, ask, assigned_groups, load_groups, model_is_used, save_groups, settled
from harness.running.folders import SWEEP, released_rows
from harness.running.planting import plant
from harness.running.viewing import views_of
from harness.running.watching import Observer
from harness.spec.sweep_block import SelectBlock
from harness.sweeping.costing import SweepPlan
from harness.sweeping.space import Candidate
from harness.training.job import Failure, Folder, Job
from harness.training.model import Base

PRIVATE = "private"
STOPPED = "stopped"
"""In a trial's private folder: the search has stopped it early, for good."""
CRASHED = "crashed.json"
"""In a trial's private folder: in how many invocations its training crashed until nothing was left to try."""
MOST_CRASHES = 2
"""After so many invocations it is a failed trial. Beyond the first one it has the machine to itself."""
Status = Literal["finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. Private, but for the winner's.

    Attributes:
        place: Which trial, from 0; of equal scores the first one wins.
        candidate: Its values by dotted key.
        status: ``finished``; ``stopped`` early by the search; ``failed``: it can't be trained, or its score is none;
            ``unfinished``: it was interrupted, or crashed but once.
        score: By which trials are compared; None where there is none.
        reason: Why it failed.
    """

    place: int
    candidate: dict[str, Any]
    status: Status
    score: float | None = None
    reason: str = ""

    def in_words(self) -> str:
        """For a console, where it may be shown."""
        values = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in self.candidate.items()
        )
        score = "" if self.score is None else f", {self.score:.4f}"
        return f"trial {self.place + 1}: {self.status}{score} ({values})" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Shared:
    """What all trials share: loaded once.

    Attributes:
        sweep: The plan.
        corpus: The users' examples.
        base: The base model.
        device: ``cpu`` or ``cuda``.
        observer: Is told what may be told.
    """

    sweep: SweepPlan
    corpus: Corpus
    base: Base
    device: str
    observer: Observer


def trial_folder(sweep: Folder, place: int) -> Folder:
    """Where a trial lies."""
    return Folder(sweep.private / SWEEP / f"{place:06d}")


def prepare(shared: Shared, sweep: Folder, place: int, candidate: Candidate) -> bool:
    """Writes a trial's job, once; what is there already stays as it is.

    Returns:
        Whether there is something to train. A candidate that no plan can be made of is a failed trial.
    """
    folder = trial_folder(sweep, place)
    if (folder.private / "candidate.json").exists():
        return _again(shared, folder)
    shutil.rmtree(folder.root, ignore_errors=True)
    private_folder(folder.root.parent)
    private_folder(folder.root)
    private_folder(folder.private)
    create_key(folder.key, load_key(sweep.key).key_for("trial", place))
    try:
        plan = _with_groups(shared.sweep.plan_of(candidate), shared, folder)
        plant(plan, shared.base, folder)
        _job_of(plan, shared).save(folder.root)
    except MachineError:
        raise
    except UserError as error:
        Failure(str(error), error.exit_code).save(folder.root)
    # The last file: with it, the trial is as it will be whoever goes on with it.
    write_private(folder.private / "candidate.json", as_json(candidate.document()).encode())
    return (folder.private / "job.json").exists()


def _again(shared: Shared, folder: Folder) -> bool:
    """A trial that was prepared before: as it was, on whatever workers there are now."""
    if not (folder.private / "job.json").exists():
        return False
    job, compute = Job.load(folder.root), shared.sweep.plan.spec.compute
    spec = job.spec.model_copy(update={"compute": compute})
    places = {"corpus": shared.corpus.folder, "base": shared.base.folder, "device": shared.device}
    now = replace(job, spec=spec, **places)  # type: ignore[arg-type]
    if now != job:
        now.save(folder.root)
    return True


def _with_groups(plan: Plan, shared: Shared, folder: Folder) -> Plan:
    """Assigns users to groups and asks what the plan asks; everything was reserved and touched before.

    Every trial asks for itself: an answer that another one was given would make one depend on the other. And nothing is
    said of it, since that would tell how many trials there are.
    """
    views = None
    if model_is_used(plan):
        views = views_of(plan, shared.corpus, shared.base, folder, shared.device, Observer(), lambda: None)
    answers = private_folder(folder.private / "answers")
    save_groups(assigned_groups(plan, shared.corpus, folder, answers, views), folder)
    if plan.asked.pending:
        plan = ask(plan, shared.corpus, load_groups(folder), folder, answers)
    return plan


def _job_of(plan: Plan, shared: Shared) -> Job:
    held = plan.holdout_users if plan.mechanism.holdout is not None else None
    return Job(plan.spec, plan.mechanism, plan.curve, shared.corpus.folder, shared.base.folder, shared.device, held)


def outcome(sweep: Folder, place: int, select: SelectBlock) -> Outcome:
    """What became of a trial, as far as its folder says."""
    folder = trial_folder(sweep, place)
    candidate = json.loads((folder.private / "candidate.json").read_text())
    failure = Failure.load(folder.root)
    if failure is not None and failure.exit_code != MachineError.exit_code:
        return Outcome(place, candidate, "failed", reason=failure.message)
    job = Job.load(folder.root)
    rows = [row for row in released_rows(folder.metrics) if row["series"] == PRIVATE]
    last = max((row["step"] for row in rows), default=-1)
    score = score_of(rows, select)
    if last < job.mechanism.steps or not folder.trained(job.spec.model.adapter.type).exists():
        if (folder.private / STOPPED).exists():
            return Outcome(place, candidate, "stopped", score)
        if crashes(sweep, place) >= MOST_CRASHES:
            return Outcome(place, candidate, "failed", reason="its training crashes whenever it is tried")
        return Outcome(place, candidate, "unfinished", score)
    if score is None:
        return Outcome(place, candidate, "failed", reason=f"its {select.metric} is no finite number")
    return Outcome(place, candidate, "finished", score)


def score_of(rows: list[dict[str, Any]], select: SelectBlock) -> float | None:
    """The metric of the last evaluation; None where it is not there or not finite."""
    if not rows:
        return None
    value = max(rows, key=lambda row: int(row["step"])).get(select.metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def best(outcomes: list[Outcome], select: SelectBlock) -> Outcome | None:
    """The winner: of equal scores the first trial; None where none was trained to its end."""
    sign = 1.0 if select.mode == "min" else -1.0
    finished = [one for one in outcomes if one.status == "finished" and one.score is not None]
    return min(finished, key=lambda one: (sign * (one.score or 0.0), one.place), default=None)


def promote(shared: Shared, sweep: Folder, winner: Outcome) -> Plan:
    """Releases the winner: its trained weights and metrics become the sweep's. Can be done again after a kill.

    Returns:
        Its plan, with the answers that it was given.
    """
    folder = trial_folder(sweep, winner.place)
    candidate = Candidate(tuple(winner.candidate.items()))
    plan = settled(shared.sweep.plan_of(candidate), folder)
    if plan.mechanism.digest != Job.load(folder.root).mechanism.digest:
        raise MachineError(f"{folder.root} was trained with another mechanism than its plan has now: not released")
    trained = folder.trained(plan.spec.model.adapter.type)
    target = sweep.root / trained.name
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # Without the times of its files, which say when it was made.
        shutil.copytree(trained, partial, copy_function=shutil.copyfile)
        release_folder(partial, target)
    write_released(sweep.metrics, folder.metrics.read_text())
    # With what it was and what it was told: whoever finishes the sweep, or audits it later, needs no trial's folder.
    planted = (folder.canaries.name, folder.observed.name)
    for name in ("job.json", folder.members.name, "diagnostics.jsonl", SETTLED, *planted):
        with contextlib.suppress(FileNotFoundError):
            write_private(sweep.private / name, (folder.private / name).read_bytes())
    return plan


def clean(sweep: Folder, outcomes: list[Outcome]) -> None:
    """Destroys the keys of all trials and what they trained; how they did stays, in the sweep's private folder."""
    write_private(
        sweep.private / "trials.json",
        as_json({"trials": [asdict(one) for one in outcomes]}).encode(),
    )
    for one in outcomes:
        destroy_key(trial_folder(sweep, one.place).key)
    shutil.rmtree(sweep.private / SWEEP, ignore_errors=True)
    shutil.rmtree(sweep.private / "tune", ignore_errors=True)


def places(sweep: Folder) -> list[int]:
    """Trials that have been prepared, in their order."""
    root = sweep.private / SWEEP
    if not root.exists():
        return []
    return sorted(int(p.parents[1].name) for p in root.glob("*/private/candidate.json"))


def note_stopped(sweep: Folder, place: int) -> None:
    """Notes that the search has stopped a trial early, for good."""
    write_private(trial_folder(sweep, place).private / STOPPED, b"")


def note_crash(sweep: Folder, place: int) -> None:
    """Notes that in this invocation a trial's training crashed as often as it may, and the machine was well."""
    count = {"invocations": crashes(sweep, place) + 1}
    write_private(trial_folder(sweep, place).private / CRASHED, as_json(count).encode())


def crashes(sweep: Folder, place: int) -> int:
    """In how many invocations that was noted."""
    path = trial_folder(sweep, place).private / CRASHED
    return int(json.loads(path.read_text())["invocations"]) if path.exists() else 0


def stop_all(sweep: Folder) -> None:
    """Asks every trial that is being trained to stop at its next step, with a checkpoint."""
    for place in places(sweep):
        folder = trial_folder(sweep, place)
        with contextlib.suppress(OSError):
            folder.stop.touch(mode=0o600)


def check_prepared(folder: Folder) -> None:
    """Of a trial that is about to be trained.

    Raises:
        MachineError: Its folder is not there: workers don't see the storage that the driver writes to.
    """
    if not os.path.exists(folder.private / "job.json"):
        raise MachineError(f"{folder.root} is not there: all workers must see the folder of runs (--out)")
