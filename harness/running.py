"""One run, from a plan to a report: prepare → train → evaluate → report. Lose nothing, release nothing twice.

The run's folder is the whole truth about it: what was asked, what was computed, what was released, and, in
`private/`, what a resumed run needs to repeat the very same draws.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from harness.data.corpus import build_corpus, default_cache_dir, describe_bad_records
from harness.data.groups import assign_groups
from harness.data.sources.base import Columns
from harness.data.store import Corpus
from harness.data.tiers import assign_tiers
from harness.errors import ArgumentError, Interrupted, MachineError, UserError
from harness.files import as_json, locked, write_private, write_released
from harness.planning import Plan
from harness.privacy.randomness import create_key, destroy_key
from harness.training.job import Failure, Folder, Job
from harness.training.model import Base
from harness.training.ray import check_shadows

FINISHED, TRAINED, RUNNING, INTERRUPTED, FAILED = "finished", "trained", "running", "interrupted", "failed"


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


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: Its folder.
        summary: Losses on hold-out users, by series and group, as the report shows them.
        report: The HTML report, if the spec asks for one.
    """

    folder: Path
    summary: dict[str, Any]
    report: Path | None


def run(
    plan: Plan,
    *,
    out: Path | str = "runs",
    resume: bool = False,
    not_private: bool = False,
    observer: Observer | None = None,
    _key: bytes | None = None,
) -> RunResult:
    """Executes a plan.

    Args:
        plan: What to do.
        out: Where runs are kept: the run's folder is ``out/<name>/<run id>``.
        resume: Go on with the newest unfinished run of this name, which must be the same in everything that matters.
        not_private: Consent to train without noise, where the plan says so.
        observer: Is told how it goes.
        _key: The run's secret key, for tests alone.

    Returns:
        The finished run.

    Raises:
        ArgumentError: No consent to train without privacy, nothing to resume, or something else was asked than what
            the interrupted run did.
        Interrupted: Stopped on request; resumable.
        MachineError: This machine can't run it.
        UserError: Training failed for a reason given.
    """
    observer = observer or Observer()
    if not plan.mechanism.private and not not_private:
        raise ArgumentError("noise.type: none trains without privacy; say --not-private if that is what you want")
    check_shadows(Path.cwd())
    folder = _find(plan, Path(out)) if resume else _create(plan, Path(out))
    with _lease(folder), _interrupts_told(plan, folder):
        if resume and _status(folder) == TRAINED:
            _check_promise(plan, folder)
        else:
            job = _prepare(plan, folder, observer, resume, _key)
            _train(plan, folder, job, observer)
            _set_status(plan, folder, TRAINED)
        return _finish(plan, folder)


# --- the folder ---------------------------------------------------------------------------------------------


def _create(plan: Plan, out: Path) -> Folder:
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    folder = Folder((out / plan.spec.name / run_id).absolute())
    try:
        folder.private.mkdir(parents=True, mode=0o700)
        os.chmod(folder.private, 0o700)
    except OSError as error:
        raise MachineError(f"can't make the run's folder {folder.root}: {error.strerror}") from None
    return folder


def _find(plan: Plan, out: Path) -> Folder:
    candidates = sorted((out / plan.spec.name).glob("*/private/run.json"), reverse=True)
    for path in candidates:
        folder = Folder(path.parent.parent.absolute())
        if _status(folder) not in (FINISHED, FAILED):
            return folder
    raise ArgumentError(f"there is no unfinished run of {plan.spec.name} in {out}")


@contextlib.contextmanager
def _lease(folder: Folder) -> Iterator[None]:
    """One process at a time works on a run; the lease ends with the process, however it ends."""
    with locked(folder.private / "lease", wait=False) as held:
        if not held:
            raise ArgumentError(f"another process is working on {folder.root}")
        yield


@contextlib.contextmanager
def _interrupts_told(plan: Plan, folder: Folder) -> Iterator[None]:
    """Says what an interrupt leaves: a run to go on with, or, of one that did not begin to train, nothing."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder.private / "run.json").exists():
            if _status(folder) == RUNNING:
                _set_status(plan, folder, INTERRUPTED)
            raise Interrupted(f"stopped; what was durable is kept ({folder.root})") from None
        shutil.rmtree(folder.root, ignore_errors=True)
        raise Interrupted("stopped before training; nothing was spent, and nothing is left", resumable=False) from None


# --- before training ----------------------------------------------------------------------------------------


def _prepare(plan: Plan, folder: Folder, observer: Observer, resume: bool, key: bytes | None) -> Job:
    from harness.training import model

    spec = plan.spec
    cache = default_cache_dir()
    observer.note(f"model: {spec.model.base}")
    base = model.find_base(spec.model.base, plan.loaded.base_dir, cache)
    observer.note(f"  from {base.origin}")
    observer.note(f"data: {spec.data.name}")
    corpus = build_corpus(
        plan.source,
        Columns.of(spec.data),
        tokenizer=model.load_tokenizer(base),
        tokenizer_digest=base.tokenizer_digest,
        data=spec.data,
        cache_dir=cache,
        private_dir=folder.private,
    )
    if skipped := describe_bad_records(corpus, spec.data.visibility):
        observer.note(f"  {skipped}")
    digest = run_digest(plan, corpus, base)
    if resume:
        _check_same(folder, digest)
    job = Job(spec, plan.mechanism, plan.curve, corpus.folder, base.folder, _device(plan))
    job.save(folder.root)
    if not resume:
        _save_groups(plan, corpus, folder)
        create_key(folder.key, key)
        document = {**plan.document(), "model": {**plan.document()["model"], "origin": base.origin}}
        write_released(folder.root / "spec.yaml", _yaml(plan))
        write_released(folder.root / "plan.json", as_json(document))
    _set_status(plan, folder, RUNNING, digest)
    return job


def run_digest(plan: Plan, corpus: Corpus, base: Base) -> str:
    """Identifies everything that decides a run's releases: a resumed run must have the same.

    Workers and ZeRO stage are not in it; they may change. It is keyed through the corpus's fingerprint.
    """
    spec = plan.spec
    parts = {
        "mechanism": plan.mechanism.digest,
        "guarantee": plan.guarantee.document("", 0),
        "data": corpus.fingerprint,
        "segmentation": spec.segmentation.model_dump(mode="json"),
        "sensitivity": spec.sensitivity.model_dump(mode="json") if spec.sensitivity else None,
        "model": base.digest,
        "tokenizer": base.tokenizer_digest,
        "adapter": spec.model.model_dump(mode="json"),
        "optimizer": spec.train.optimizer.model_dump(mode="json"),
        "checkpoint_every": spec.train.checkpoint_every,
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "seed": spec.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_same(folder: Folder, digest: str) -> None:
    before = json.loads((folder.private / "run.json").read_text())["run_digest"]
    if before != digest:
        raise ArgumentError(
            f"{folder.root} was begun with another mechanism, data, model, optimizer or seed: it can't be resumed with "
            "this spec (a draw is never used on different data); start a new run without --resume"
        )
    if not folder.key.exists():
        raise ArgumentError(f"the key of {folder.root} is gone: it can't be resumed")


def _check_promise(plan: Plan, folder: Folder) -> None:
    """What is left of a trained run is to state its guarantee: it must be the one it was trained under."""
    stated = json.loads((folder.root / "privacy.json").read_text())
    planned = plan.guarantee.document(stated["status"], stated["steps_completed"])
    if stated != json.loads(json.dumps(planned)):
        raise ArgumentError(f"{folder.root} was trained under another guarantee: it can't be finished with this spec")


def _save_groups(plan: Plan, corpus: Corpus, folder: Folder) -> None:
    """Writes each user's group, as an index into the mechanism's; -1 for groups without training users. Private."""
    import numpy as np

    segments = plan.segmenter.segments or ()
    assigned = assign_groups(corpus, plan.segmenter, segments, private_dir=folder.private)
    tiers = plan.sensitivity.names if plan.sensitivity is not None else (None,)
    if plan.sensitivity is not None:
        assigned = assigned.astype(np.int64) * len(tiers) + assign_tiers(
            corpus, plan.sensitivity, private_dir=folder.private
        )
    index = {(g.segment, g.tier): i for i, g in enumerate(plan.groups)}
    places = np.array([index.get((s, t), -1) for s in segments for t in tiers], dtype=np.int16)
    content = io.BytesIO()
    np.save(content, places[assigned], allow_pickle=False)
    write_private(folder.members, content.getvalue())


def _device(plan: Plan) -> str:
    import torch

    wanted = plan.spec.compute.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("compute.accelerator: cuda, but torch sees no GPU here")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _yaml(plan: Plan) -> str:
    return yaml.safe_dump(plan.loaded.resolved, sort_keys=False, allow_unicode=True)


def _status(folder: Folder) -> str:
    return str(json.loads((folder.private / "run.json").read_text())["status"])


def _set_status(plan: Plan, folder: Folder, status: str, digest: str | None = None) -> None:
    path = folder.private / "run.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update({"status": status} | ({"run_digest": digest} if digest else {}))
    write_private(path, as_json(known).encode())
    _write_privacy(plan, folder, status)


def _write_privacy(plan: Plan, folder: Folder, status: str) -> None:
    steps = plan.mechanism.steps if status in (TRAINED, FINISHED) else _released_steps(folder)
    write_released(folder.root / "privacy.json", as_json(plan.guarantee.document(status, steps)))


def _released_steps(folder: Folder) -> int:
    rows = _rows(folder.metrics)
    return max((int(r["step"]) for r in rows if r["series"] == "private"), default=0)


# --- training -----------------------------------------------------------------------------------------------


def _train(plan: Plan, folder: Folder, job: Job, observer: Observer) -> None:
    from harness.training import ray

    folder.stop.unlink(missing_ok=True)
    folder.progress.unlink(missing_ok=True)
    watch = _Watch(folder, job, observer)
    compute = plan.spec.compute
    observer.note(f"training: {compute.workers} worker(s), ZeRO {compute.deepspeed.stage}, {job.device}")
    try:
        with _first_interrupt_asks(folder, observer):
            ray.fit(folder.root, compute, job.device, watch.look)
    except UserError as error:
        if Failure.load(folder.root) is not None and error.exit_code != MachineError.exit_code:
            # It would fail again in the same way: there is nothing to go on with, and no use for its draws.
            _set_status(plan, folder, FAILED)
            destroy_key(folder.key)
        raise
    watch.look()
    if not _complete(plan, folder):
        _set_status(plan, folder, INTERRUPTED)
        raise Interrupted(f"stopped with a checkpoint ({folder.root})")


def _complete(plan: Plan, folder: Folder) -> bool:
    done = {(r["series"], r["step"]) for r in _rows(folder.metrics)}
    last = plan.mechanism.steps
    ordinary = plan.spec.evaluation.ordinary and plan.mechanism.private
    return folder.adapter.exists() and ("private", last) in done and (not ordinary or ("ordinary", last) in done)


@contextlib.contextmanager
def _first_interrupt_asks(folder: Folder, observer: Observer) -> Iterator[None]:
    """Inside, the first Ctrl-C asks the workers to stop with a checkpoint; the second one interrupts at once.

    SIGTERM, with which schedulers and containers end a process, counts as a Ctrl-C.
    """

    def stop(*_: object) -> None:
        if folder.stop.exists():
            raise KeyboardInterrupt
        folder.stop.touch(mode=0o600)
        observer.note("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Watch:
    """Follows a run through its folder and tells the observer what is new."""

    def __init__(self, folder: Folder, job: Job, observer: Observer) -> None:
        self.folder, self.job, self.observer = folder, job, observer
        self.seen = {(r["series"], int(r["step"])) for r in _rows(folder.metrics)}
        self.last: Progress | None = None

    def look(self) -> None:
        for row in _rows(self.folder.metrics):
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


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


# --- after training -----------------------------------------------------------------------------------------


def _finish(plan: Plan, folder: Folder) -> RunResult:
    """Everything after training. Interrupted anywhere, it can be done again."""
    from harness.reporting.model_card import model_card
    from harness.reporting.report import write_report
    from harness.reporting.summary import summarize

    # The key goes first: from here on nothing can draw again, and all that is left is bookkeeping.
    destroy_key(folder.key)
    shutil.rmtree(folder.private / "checkpoints", ignore_errors=True)
    shutil.rmtree(folder.private / "ray", ignore_errors=True)
    _write_privacy(plan, folder, FINISHED)
    summary = summarize(folder.root)
    write_released(folder.adapter / "README.md", model_card(folder.root))
    report = write_report(folder.root) if plan.spec.report.html else None
    _set_status(plan, folder, FINISHED)
    return RunResult(folder.root, summary, report)
