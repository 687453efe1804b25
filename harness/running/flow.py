"""The way through a run: prepare → train → finish. Interrupted anywhere, it goes on where it was durable."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.data.corpus import build_corpus, default_cache_dir, describe_bad_records
from harness.data.sources.base import Columns
from harness.data.store import Corpus
from harness.errors import ArgumentError, Interrupted, MachineError, UserError
from harness.files import as_json, write_private, write_released
from harness.planning import Plan
from harness.planning.attackable import check_attacks
from harness.planning.room import look_at_memory
from harness.privacy.randomness import create_key, destroy_key
from harness.reporting.reasons import explained
from harness.running.answers import (
    ask,
    assigned_groups,
    foreign_rules,
    load_groups,
    model_is_used,
    save_groups,
    settled,
)
from harness.running.assessing import write_assessment
from harness.running.examining import examine
from harness.running.folders import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    TRAINED,
    check_promise,
    check_same,
    check_trained,
    create_folder,
    find_unfinished,
    lease,
    released_rows,
    run_parts,
    set_status,
    status_of,
    write_privacy,
)
from harness.running.interrupting import first_interrupt_asks, interrupts_told
from harness.running.metering import metered
from harness.running.planting import plant
from harness.running.preparing import sharding_of
from harness.running.spending import Spending, entered, give_back_unbegun
from harness.running.viewing import views_of
from harness.running.watching import Observer, Watch
from harness.training.job import Failure, Folder, Job, halvings
from harness.training.model import Base
from harness.training.ray import check_shadows


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
    run_id: str | None = None,
    not_private: bool = False,
    observer: Observer | None = None,
    _key: bytes | None = None,
) -> RunResult:
    """Executes a plan.

    Args:
        plan: What to do.
        out: Where runs are kept: the run's folder is ``out/<name>/<run id>``.
        resume: Go on with an unfinished run of this name, which must be the same in everything that matters.
        run_id: Which one; None: the newest one that nobody works on, of the same mechanism if there is one. Of a new
            run: its id; None: one is made.
        not_private: Consent to train without noise, where the plan says so.
        observer: Is told how it goes.
        _key: The run's secret key, for tests alone.

    Returns:
        The finished run.

    Raises:
        ArgumentError: No consent to train without privacy, nothing to resume, or something else was asked than what
            the interrupted run did.
        BudgetError: The ledger has not enough left for it, or gave its reservation back.
        Interrupted: Stopped on request; resumable.
        MachineError: This machine can't run it, or the ledger does not answer.
        UserError: Training failed for a reason given.
    """
    observer = observer or Observer()
    if not plan.mechanism.private and not not_private:
        raise ArgumentError("noise.type: none trains without privacy; say --not-private if that is what you want")
    check_shadows(Path.cwd())
    device_of(plan)
    give_back_unbegun(plan.loaded, Path(out), observer)
    folder = find_unfinished(plan, Path(out), run_id) if resume else create_folder(plan, Path(out), run_id)
    with lease(folder), interrupts_told(plan, folder), entered(plan, folder, resume, observer) as spending:
        if resume and status_of(folder) == TRAINED:
            plan = settled(plan, folder)
            check_promise(plan, folder)
        else:
            plan, job = prepare(plan, folder, observer, resume, spending, _key)
            _train(plan, folder, job, observer, spending)
            set_status(plan, folder, TRAINED)
        return finish(plan, folder, spending, observer)


# --- before training ----------------------------------------------------------------------------------------


def prepare(
    plan: Plan, folder: Folder, observer: Observer, resume: bool, spending: Spending, key: bytes | None
) -> tuple[Plan, Job]:
    """Everything before the first step; returns what is trained, which waits for nothing any more."""
    spec, cache = plan.spec, default_cache_dir()
    plan, base, corpus = opened(plan, folder, observer, resume=resume)
    parts = run_parts(plan, corpus, base)
    if resume:
        check_same(folder, parts)
    else:
        if not plan.asked.pending:  # groups that can't be assigned leave nothing behind
            if foreign_rules(plan):
                spending.touch()
            assign(plan, corpus, base, folder, cache, observer, spending)
        create_key(folder.key, key)
        write_released(folder.root / "spec.yaml", resolved_yaml(plan))
        write_plan(plan, base, folder)
    set_status(settled(plan, folder), folder, RUNNING, parts)
    if plan.asked.pending:
        spending.touch()
        plan = _ask(plan, corpus, base, folder, cache, observer, spending)
    write_assessment(plan, corpus, load_groups(folder), folder)
    held = plan.holdout_users if plan.mechanism.holdout is not None else None
    job = Job(spec, plan.mechanism, plan.curve, corpus.folder, base.folder, device_of(plan), held)
    check_trained(folder, plan.mechanism)
    plant(plan, base, folder)
    automatic = plan.spec.compute.microbatch_tokens == "auto"
    if automatic and plan.memory is not None and not folder.microbatch.exists():
        # Kept by whoever resumes, on whatever machine: another size would round differently.
        write_private(folder.microbatch, as_json({"tokens": plan.memory.tokens}).encode())
    job.save(folder.root)
    return plan, job


def opened(plan: Plan, folder: Folder, observer: Observer, *, resume: bool) -> tuple[Plan, Base, Corpus]:
    """The plan with the memory that it needs, the base model and the users' examples; each is made once per machine."""
    from harness.training import model
    from harness.training.tokenizer import Facts, LazyTokenizer, check_fits

    spec, cache = plan.spec, default_cache_dir()
    observer.note(f"model: {spec.model.base}")
    base = model.find_base(spec.model.base, plan.loaded.base_dir, cache)
    observer.note(f"  from {base.origin}")
    check_attacks(spec, plan.loaded.base_dir, base.folder)
    plan = fitted(plan, base, resume=resume)
    observer.note(f"data: {spec.data.name}")
    facts = Facts.of(base)
    check_fits(facts, spec.data.max_tokens)
    corpus = build_corpus(
        plan.source,
        Columns.of(spec.data),
        tokenizer=LazyTokenizer(base, facts),
        tokenizer_digest=base.tokenizer_digest,
        data=spec.data,
        cache_dir=cache,
        private_dir=folder.private,
        sharding=sharding_of(spec.compute.prepare, plan.source),
        store=spec.compute.prepare.store,
    )
    if skipped := describe_bad_records(corpus, spec.data.visibility):
        observer.note(f"  {skipped}")
    return plan, base, corpus


def fitted(plan: Plan, base: Base, *, resume: bool) -> Plan:
    """The plan with the memory that this base model needs, now that it is here.

    How small a micro-batch has become by now says something about who was drawn. So a resumed run does not look: it is
    refused where not even the smallest would fit, whatever its own is, and its plan says what it would have said.

    Raises:
        MachineError: There is less.
    """
    gpu = device_of(plan) == "cuda"
    judged = room = look_at_memory(plan.loaded, gpu=gpu, folder=base.folder)
    if resume and room.refusal is not None:
        judged = look_at_memory(plan.loaded, gpu=gpu, folder=base.folder, smallest=True)
    if judged.refusal is not None:
        raise MachineError(judged.refusal)
    return dataclasses.replace(plan, memory=room)


def assign(
    plan: Plan, corpus: Corpus, base: Base, folder: Folder, cache: Path, observer: Observer, spending: Spending
) -> None:
    """Finds every user's group, and keeps it for the workers."""
    views = None
    if model_is_used(plan):
        views = views_of(plan, corpus, base, folder, device_of(plan), observer, spending.touch)
    save_groups(assigned_groups(plan, corpus, folder, cache, views), folder)


def _ask(
    plan: Plan, corpus: Corpus, base: Base, folder: Folder, cache: Path, observer: Observer, spending: Spending
) -> Plan:
    """The private session, if it was not held before; what it says is noisy, and may be shown."""
    observer.note("session: asking for noisy answers, which are charged")
    if not folder.members.exists():  # a resumed run keeps its groups, whatever became of the rule
        assign(plan, corpus, base, folder, cache, observer, spending)
    found = ask(plan, corpus, load_groups(folder), folder, cache)
    write_plan(found, base, folder)
    set_status(found, folder, RUNNING)
    return found


def write_plan(plan: Plan, base: Base, folder: Folder) -> None:
    """Writes the plan's document into a run's folder."""
    document = explained(plan.document())
    document["model"] = {**document["model"], "origin": base.origin}
    write_released(folder.root / "plan.json", as_json(document))


def device_of(plan: Plan) -> str:
    """``cuda`` or ``cpu``, as the spec wants it and this machine has it.

    Raises:
        MachineError: The spec wants a GPU, and there is none.
    """
    import torch

    wanted = plan.spec.compute.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("compute.accelerator: cuda, but torch sees no GPU here")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def resolved_yaml(plan: Plan) -> str:
    """The spec with every default, as it is written into a run's folder."""
    return yaml.safe_dump(plan.loaded.resolved, sort_keys=False, allow_unicode=True)


# --- training -----------------------------------------------------------------------------------------------


def _train(plan: Plan, folder: Folder, job: Job, observer: Observer, spending: Spending) -> None:
    from harness.training import ray

    # From here on a model reads what is private, and the run is charged whole.
    spending.touch()

    folder.stop.unlink(missing_ok=True)
    folder.progress.unlink(missing_ok=True)
    watch = Watch(folder, job, metered(observer, plan.spec.name, folder.root.name))
    compute = plan.spec.compute
    fewest, most = compute.fewest_workers, compute.most_workers
    workers = f"{most}" if fewest == most else f"{fewest} to {most}"
    observer.note(f"training: {workers} worker(s), ZeRO {compute.deepspeed.stage}, {job.device}")
    try:
        with first_interrupt_asks(folder, observer) as check, spending.guarded(folder, observer) as guard:

            def tick() -> None:
                watch.look()
                guard()
                check()

            tokens = plan.memory.tokens if plan.memory is not None else job.spec.data.max_tokens
            halved = halvings(tokens, job.spec.data.max_tokens)
            ray.fit(folder.root, compute, job.device, tick, observer.note, halved)
    except UserError as error:
        if Failure.load(folder.root) is not None and error.exit_code != MachineError.exit_code:
            give_up(plan, folder)
        raise
    watch.look()
    if not complete(plan, folder):
        set_status(plan, folder, INTERRUPTED)
        spending.raise_lost(folder)
        raise Interrupted(f"stopped with a checkpoint ({folder.root})", run_id=folder.root.name)


def give_up(plan: Plan, folder: Folder) -> None:
    """Of a run that would fail again in the same way: there is nothing to go on with, and no use for its draws."""
    set_status(plan, folder, FAILED)
    destroy_key(folder.key)


def complete(plan: Plan, folder: Folder) -> bool:
    """Whether a run is trained to its end."""
    done = {(r["series"], r["step"]) for r in released_rows(folder.metrics)}
    last = plan.mechanism.steps
    ordinary = plan.spec.evaluation.ordinary and plan.mechanism.private
    made = folder.trained(plan.spec.model.adapter.type)
    return made.exists() and ("private", last) in done and (not ordinary or ("ordinary", last) in done)


# --- after training -----------------------------------------------------------------------------------------


def finish(plan: Plan, folder: Folder, spending: Spending, observer: Observer) -> RunResult:
    """Everything after training. Interrupted anywhere, it can be done again.

    Raises:
        UserError: An attack measured more than the guarantee says.
    """
    from harness.reporting.model_card import write_card
    from harness.reporting.report import write_report
    from harness.reporting.summary import summarize

    # The key goes first: from here on nothing can draw again, and all that is left is bookkeeping.
    destroy_key(folder.key)
    shutil.rmtree(folder.private / "checkpoints", ignore_errors=True)
    shutil.rmtree(folder.private / "ray", ignore_errors=True)
    shutil.rmtree(folder.views, ignore_errors=True)
    spending.finish()
    write_privacy(plan, folder, FINISHED)
    violated = examine(plan, folder, observer)
    summary = summarize(folder.root)
    write_card(folder.root)
    report = write_report(folder.root) if plan.spec.report.html else None
    set_status(plan, folder, FINISHED if violated is None else FAILED)
    if violated is not None:
        raise UserError(f"AUDIT FAILED: {violated} ({folder.root}): the mechanism is not what was accounted")
    return RunResult(folder.root, summary, report)
