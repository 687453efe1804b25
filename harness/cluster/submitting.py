"""Packs a spec or a suite, checks what can be checked here, and hands it to the cluster's job server."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.cluster.bundle import SCRIPT, Bundle
from harness.cluster.checking import ask_ledger, check_cells, check_ledger, epsilon_of, is_shared, plan_here, storage_of
from harness.cluster.client import Cluster, JobInfo
from harness.errors import ArgumentError, MachineError
from harness.spec import LoadedSpec
from harness.spec.ledger_url import DEFAULT_LEDGER
from harness.training.job import RUN_ID, new_run_id

if TYPE_CHECKING:
    from harness.planning import Plan

STOP_SECONDS = 3600
"""So long a job may take to reach its next checkpoint after it was told to stop."""


@dataclass(frozen=True)
class Submission:
    """What is to be submitted.

    Attributes:
        verb: ``run``, ``sweep`` or ``bench``.
        specs: Valid specs by their places in the bundle; of a run and a sweep, ``spec.yaml`` alone.
        cells: Of a suite: the specs of its policies, whose plugins are sent too.
        overrides: That they were loaded with.
        texts: Files that are made here, by their places.
        main: The place of what the verb is given.
        name: Of the runs, or of the suite.
        resume: The run or job to go on with; None: a new one.
        options: Further ones of the verb, as ``--not-private``.
        python: The cluster's interpreter.
    """

    verb: str
    specs: Mapping[str, LoadedSpec]
    overrides: Sequence[str]
    name: str
    main: str = "spec.yaml"
    texts: Mapping[str, str] = field(default_factory=dict)
    cells: Sequence[LoadedSpec] = ()
    resume: str | None = None
    options: Sequence[str] = ()
    python: str = "python"

    def __post_init__(self) -> None:
        if self.resume is not None and not RUN_ID.fullmatch(self.resume):
            raise ArgumentError("--resume: must be a job's id, as uudp jobs shows it: 20260101-100000-a1b2c3")
        entrypoint(self.python)

    @property
    def loaded(self) -> LoadedSpec:
        """The spec, or the first of a suite's."""
        return next(iter(self.specs.values()))


@dataclass(frozen=True)
class Checked:
    """A submission that nothing speaks against so far.

    Attributes:
        submission: What is to be sent.
        storage: Where its runs live on the cluster.
        plan: What will be spent; None: that is known on the cluster alone.
        notes: Where things lie, what is sent, where it is charged; for people.
        private: Files with private records that are sent.
    """

    submission: Submission
    storage: Path
    plan: Plan | None
    notes: tuple[str, ...]
    private: tuple[str, ...] = ()


def check(submission: Submission, *, send_data: bool) -> Checked:
    """Looks at all that can be seen here.

    Args:
        submission: What is to be sent.
        send_data: Consent to send private records.

    Raises:
        ArgumentError: Something is missing, too large, or private and without consent.
        BudgetError: The budget refuses.
    """
    storage = storage_of(submission.loaded)
    if any(storage_of(loaded) != storage for loaded in (*submission.specs.values(), *submission.cells)):
        raise ArgumentError("compute.storage: must be the same in all specs of a suite")
    check_cells(submission.cells, list(submission.specs.values()))
    if submission.verb == "sweep" and submission.loaded.spec.sweep is None:
        raise ArgumentError("sweep: the spec has no sweep block")
    with tempfile.TemporaryDirectory(prefix="uudp-submit-") as folder:
        bundle = _bundle(submission, Path(folder), storage)
        bundle.finish("", ())
    if bundle.private and not send_data:
        raise ArgumentError(
            f"{bundle.private[0]} holds private records: copy it to the cluster and give its path there, or say "
            "--send-data (it passes through Ray's package store, and then lies in compute.storage, for you alone)"
        )
    charged = dict.fromkeys(check_ledger(loaded, storage) for loaded in (*submission.specs.values(), *submission.cells))
    notes, plan = [*bundle.notes, *charged], None
    if submission.verb != "bench" and not bundle.remote:
        try:
            plan = plan_here(submission.loaded)
            plan = plan if submission.resume else ask_ledger(submission.loaded, plan)
            if is_shared(submission.loaded) and plan.ledger is None and submission.resume is None:
                notes.append("ledger: not reached from here; the cluster asks it before it spends")
        except MachineError as error:
            notes.append(f"not planned here: {error}")
    elif bundle.remote:
        notes.append("not planned here: the data are on the cluster, which plans before it spends")
    return Checked(submission, storage, plan, tuple(notes), tuple(bundle.private))


def submit(checked: Checked, cluster: Cluster) -> JobInfo:
    """Sends it.

    Returns:
        The job.

    Raises:
        ArgumentError: The run to go on with is being worked on.
        MachineError: The job server refuses.
    """
    submission = checked.submission
    run = submission.resume or new_run_id()
    job = run if submission.resume is None else _next(run, cluster.jobs())
    metadata = metadata_of(checked, run)
    with tempfile.TemporaryDirectory(prefix="uudp-submit-") as place:
        pack(checked, job, run, Path(place))
        cluster.submit(
            job,
            entrypoint(submission.python),
            Path(place),
            metadata,
            STOP_SECONDS,
            gpu_type=submission.loaded.spec.compute.gpu_type,
        )
    return JobInfo(job, "PENDING", metadata=metadata)


def metadata_of(checked: Checked, run: str) -> dict[str, str]:
    """What a job says of itself, to everybody."""
    submission = checked.submission
    return {
        "uudp": __version__, "verb": submission.verb, "name": submission.name, "run": run,
        "storage": str(checked.storage), "folder": _folder(submission, run),
        "results": submission.loaded.spec.compute.results or "", "python": submission.python,
        "epsilon": epsilon_of(submission.loaded, checked.plan) if submission.verb != "bench" else "",
    }  # fmt: skip


def pack(checked: Checked, job: str, run: str, folder: Path) -> None:
    """Puts all that a job needs into an empty folder."""
    submission = checked.submission
    all_specs = (*submission.specs.values(), *submission.cells)
    _bundle(submission, folder, checked.storage).finish(
        job,
        _arguments(submission, run, checked.storage),
        default_ledger=any(loaded.spec.privacy.ledger == DEFAULT_LEDGER for loaded in all_specs),
        named_python="/" in submission.python,
    )


def entrypoint(python: str) -> str:
    """The command of every job: what it does is in the bundle.

    Raises:
        ArgumentError: That is no interpreter.
    """
    if not re.fullmatch(r"[A-Za-z0-9_./+][A-Za-z0-9_./+-]*", python):
        raise ArgumentError("--python: must be the name or path of an interpreter on the cluster")
    return f"exec {python} {SCRIPT}"  # without a shell in between, which would die of the signal that stops the job


def _bundle(submission: Submission, folder: Path, storage: Path) -> Bundle:
    bundle = Bundle(folder, storage)
    for name, loaded in submission.specs.items():
        bundle.add_spec(name, loaded, submission.overrides)
    for loaded in submission.cells:
        bundle.add_plugins(loaded)
    for name, text in submission.texts.items():
        bundle.add_text(name, text)
    return bundle


def _arguments(submission: Submission, run: str, storage: Path) -> list[str]:
    words = [submission.verb, submission.main, "--yes", "--out", f"{storage}/runs", *submission.options]
    if submission.verb == "bench":
        words += ["--resume"] * (submission.resume is not None)
    else:
        words += ["--resume", "--run", run] if submission.resume else ["--id", run]
    results = submission.loaded.spec.compute.results
    if results is None:
        return ["harness", *words]
    return ["harness.cli.submitted", results, str(storage), _folder(submission, run), *words]


def _folder(submission: Submission, run: str) -> str:
    """Where runs lie below the storage."""
    return f"runs/{submission.name}" if submission.verb == "bench" else f"runs/{submission.name}/{run}"


def _next(run: str, jobs: Sequence[JobInfo]) -> str:
    """The id of the job that goes on with a run: Ray has each id once."""
    own = [job for job in jobs if job.metadata.get("run") == run]
    if any(not job.ended for job in own):
        raise ArgumentError(f"--resume: {run} is still running")
    taken = {job.id for job in own}
    return next(name for n in range(1, 100_000) if (name := f"{run}-r{n}") not in taken)


def find(jobs: Sequence[JobInfo], given: str) -> JobInfo:
    """The job that a user means by an id or its beginning: of a run that was gone on with, the newest.

    Raises:
        ArgumentError: There is none, or there are several runs.
    """
    exact = [job for job in jobs if job.id == given and "-r" in given]
    hits = exact or [job for job in jobs if job.metadata.get("run", "").startswith(given)]
    runs = sorted({job.metadata["run"] for job in hits})
    if len(runs) > 1:
        raise ArgumentError(f'several jobs begin with "{given}": {", ".join(runs)}')
    if not hits or not given:
        raise ArgumentError(f'there is no job "{given}"; uudp jobs lists them')
    return max(hits, key=_number)


def _number(job: JobInfo) -> int:
    return int(job.id.rpartition("-r")[2]) if "-r" in job.id else 0
