"""The way through a sweep: prepare → trials → the winner. Interrupted anywhere, it goes on where it was durable.

The whole search is reserved, once, before the first trial, and charged whole when it begins. A trial that crashed or
was interrupted repeats its own draws; the number of trials and their candidates follow from the sweep's key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import ArgumentError, Interrupted, MachineError, UserError
from harness.files import as_json, write_private, write_released
from harness.planning import Plan
from harness.planning.room import Room
from harness.privacy.randomness import create_key, destroy_key, load_key
from harness.running.answers import settled
from harness.running.flow import RunResult, device_of, finish, opened, resolved_yaml, write_plan
from harness.running.folders import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    SWEEP,
    TRAINED,
    check_same,
    create_folder,
    find_unfinished,
    lease,
    run_parts,
    set_status,
    status_of,
)
from harness.running.interrupting import first_interrupt_asks, interrupts_told
from harness.running.spending import Spending, entered, give_back_unbegun
from harness.running.watching import Observer
from harness.sweeping import trials as trials_of
from harness.sweeping.costing import SweepPlan
from harness.sweeping.document import released_document, shows_trials
from harness.sweeping.fitting import at_a_time, neediest
from harness.sweeping.sources import Again, Drawn, Suggested
from harness.sweeping.space import Candidate
from harness.sweeping.trials import Outcome, Shared
from harness.sweeping.tune import Halting, How, Part, Searching, search
from harness.training.job import Folder, halvings
from harness.training.model import Base
from harness.training.ray import check_shadows

WINNER = "winner.json"
"""In the private folder: the trial that is released; written before anything of it is."""


def sweep(
    plan: SweepPlan,
    *,
    out: Path | str = "runs",
    resume: bool = False,
    run_id: str | None = None,
    observer: Observer | None = None,
    _key: bytes | None = None,
) -> RunResult:
    """Searches, and releases the best trial alone.

    Args:
        plan: Of a search whose trials are trained on the users' data.
        out: Where runs are kept.
        resume: Go on with an unfinished sweep of this name.
        run_id: Which one; of a new sweep: its id.
        observer: Is told how it goes.
        _key: The sweep's secret key, for tests alone.

    Returns:
        The winner, as a finished run whose guarantee is that of the whole search.

    Raises:
        ArgumentError: Nothing to resume, or something else was asked than what the interrupted sweep did.
        BudgetError: The ledger has not enough left, or gave its reservation back.
        Interrupted: Stopped on request; resumable.
        MachineError: This machine can't run it, or the ledger does not answer.
        UserError: No trial could be trained; nothing is released.
    """
    observer, out = observer or Observer(), Path(out)
    check_shadows(Path.cwd())
    device_of(plan.plan)
    give_back_unbegun(plan.plan.loaded, out, observer)
    with _searched(plan, out, resume, run_id, observer, _key) as (shared, folder, spending):
        return _release(shared, folder, spending)


def search_by_proxy(
    plan: SweepPlan, *, out: Path | str = "runs", resume: bool = False, observer: Observer | None = None
) -> tuple[Candidate, list[Outcome]]:
    """Trains all trials on the public data set.

    Args:
        plan: Of a sweep with a proxy.
        out: Where runs are kept; the trials lie in ``out/<name>-proxy/<id>``.
        resume: Go on with the newest unfinished search of this name, or say again what the newest finished one found.
        observer: Is told how it goes.

    Returns:
        The best candidate, and all trials.

    Raises:
        UserError: As `sweep`.
    """
    observer, out = observer or Observer(), Path(out)
    check_shadows(Path.cwd())
    if resume and (found := _found_before(plan, out)) is not None:
        return found
    with _searched(plan, out, resume, None, observer, None) as (_, folder, _):
        winner, outcomes = _written(folder)
        trials_of.clean(folder, outcomes)
        destroy_key(folder.key)
        set_status(plan.plan, folder, FINISHED if winner is not None else FAILED)
    if winner is None:
        raise UserError(f"no trial was trained to its end ({folder.root}; why is in its private folder)")
    return Candidate(tuple(winner.candidate.items())), outcomes


@contextlib.contextmanager
def _searched(
    plan: SweepPlan, out: Path, resume: bool, run_id: str | None, observer: Observer, key: bytes | None
) -> Iterator[tuple[Shared, Folder, Spending]]:
    """All trials, trained and compared, unless they were before; inside, something is made of them.

    Yields:
        What they shared, the sweep's folder, and its reservation.
    """
    folder = find_unfinished(plan.plan, out, run_id, sweep=True) if resume else create_folder(plan.plan, out, run_id)
    with (
        lease(folder),
        interrupts_told(plan.plan, folder),
        entered(plan.plan, folder, resume, observer) as spending,
    ):
        shared = _prepare(plan, folder, observer, resume, spending, key)
        if not (folder.private / WINNER).exists():
            _search(shared, folder, spending)
        yield shared, folder, spending


def _found_before(plan: SweepPlan, out: Path) -> tuple[Candidate, list[Outcome]] | None:
    """What the newest search of this name found, if it ended; None: it did not, or there is none."""
    begun = sorted((out / plan.plan.spec.name).glob("*/private/run.json"), reverse=True)
    if not begun or status_of(folder := Folder(begun[0].parents[1].absolute())) != FINISHED:
        return None
    if json.loads(begun[0].read_text())["parts"]["sweep"] != _digest(plan.untuned):
        raise ArgumentError(f"{folder.root} searched something else; start a new sweep without --resume")
    winner, outcomes = _written(folder)
    assert winner is not None
    return Candidate(tuple(winner.candidate.items())), outcomes


def _written(folder: Folder) -> tuple[Outcome | None, list[Outcome]]:
    """The winner and all trials, as they were written down."""
    written = json.loads((folder.private / WINNER).read_text())
    outcomes = [Outcome(**one) for one in written["outcomes"]]
    return next((one for one in outcomes if one.place == written["place"]), None), outcomes


def _prepare(
    plan: SweepPlan, folder: Folder, observer: Observer, resume: bool, spending: Spending, key: bytes | None
) -> Shared:
    known, base, corpus = opened(plan.plan, folder, observer, resume=resume)
    known = dataclasses.replace(known, memory=_room(plan, base, resume))
    plan = dataclasses.replace(plan, plan=known)
    parts = run_parts(known, corpus, base) | {"sweep": _digest(plan.untuned)}
    if resume:
        check_same(folder, parts, draws=not (folder.private / WINNER).exists())
    else:
        create_key(folder.key, key)
        (folder.private / SWEEP).mkdir(mode=0o700, exist_ok=True)
        write_released(folder.root / "spec.yaml", resolved_yaml(known))
        write_plan(known, base, folder)
    if not resume or status_of(folder) != TRAINED:
        set_status(known, folder, RUNNING, parts)
    return Shared(plan, corpus, base, device_of(known), observer)


def _room(plan: SweepPlan, base: Base, resume: bool) -> Room:
    """Memory for the neediest candidate, now that the base model is here; judged as `fitted` judges a run.

    Raises:
        MachineError: There is less.
    """
    gpu = device_of(plan.plan) == "cuda"
    judged = room = neediest(plan, gpu=gpu, folder=base.folder)
    if resume and room.refusal is not None:
        judged = neediest(plan, gpu=gpu, folder=base.folder, smallest=True)
    if judged.refusal is not None:
        raise MachineError(judged.refusal)
    return room


def _digest(plan: Plan) -> str:
    """Everything that decides what the trials are: the whole spec, but for what changes speed or papers alone."""
    resolved = {key: value for key, value in plan.loaded.resolved.items() if key not in ("compute", "report", "name")}
    resolved["sweep"] = {key: value for key, value in resolved["sweep"].items() if key != "concurrent"}
    resolved["privacy"] = {key: value for key, value in resolved["privacy"].items() if key != "ledger"}
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def _search(shared: Shared, folder: Folder, spending: Spending) -> None:
    """Trains all trials, and writes down which is the best."""
    plan, observer = shared.sweep, shared.observer
    _check_holdout(shared)
    # From here on models read what is private, and the whole search is charged.
    spending.touch()
    folder.stop.unlink(missing_ok=True)
    done = _outcomes(plan, folder)
    randomness = load_key(folder.key)
    again = [o.place for o in done if o.status == "unfinished" and trials_of.crashes(folder, o.place)]
    source: Drawn | Suggested
    if plan.block.search.type == "optuna":
        source = Suggested(plan, randomness, done, folder.private / "suggested.json", again)
    else:
        source = Drawn(plan, randomness, done, again)
    ends: dict[int, How] = {}
    observer.note(f"search: {plan.trials.in_words() if plan.trials else 'on public data, which costs nothing'}")
    with first_interrupt_asks(folder, observer) as check, spending.guarded(folder, observer) as guard:

        def tick() -> None:
            guard()
            check()
            if folder.stop.exists():
                trials_of.stop_all(folder)

        def ended(place: int, how: How) -> None:
            ends[place] = how
            if how == "stopped" and not folder.stop.exists():
                trials_of.note_stopped(folder, place)
            if shows_trials(plan):
                observer.note(trials_of.outcome(folder, place, plan.block.select).in_words())

        search(
            _searching(shared, folder),
            [Part(source), *([Part(Again(source, again), alone=True)] if again else [])],
            lambda place, candidate: trials_of.prepare(shared, folder, place, candidate),
            ended,
            tick,
        )
    if not folder.stop.exists():
        _note_crashes(folder, ends, plan, observer)
    outcomes = _outcomes(plan, folder)
    missing = source.number - len(outcomes)
    if missing or any(one.status == "unfinished" for one in outcomes):
        set_status(plan.plan, folder, INTERRUPTED)
        spending.raise_lost(folder)
        if not folder.stop.exists():
            raise _incomplete(folder)
        raise Interrupted(f"stopped with checkpoints ({folder.root})", run_id=folder.root.name)
    winner = trials_of.best(outcomes, plan.block.select)
    write_private(
        folder.private / WINNER,
        as_json(
            {"outcomes": [dataclasses.asdict(o) for o in outcomes], "place": None if winner is None else winner.place}
        ).encode(),
    )


def _outcomes(plan: SweepPlan, folder: Folder) -> list[Outcome]:
    return [trials_of.outcome(folder, place, plan.block.select) for place in trials_of.places(folder)]


def _note_crashes(folder: Folder, ends: Mapping[int, How], plan: SweepPlan, observer: Observer) -> None:
    """Counts the trials whose training crashed until nothing was left to try.

    One that crashes whenever it is tried has the worst score, as one whose score is no number: else a sweep with it
    would never end. That must follow from its own draws alone. So nothing counts where anything was wrong with the
    machine; and what counts for the last time is a crash of a trial that had the machine to itself.
    """
    if "outage" in ends.values():
        return
    for one in _outcomes(plan, folder):
        if one.status != "unfinished" or one.place not in ends:
            continue
        trials_of.note_crash(folder, one.place)
        now = trials_of.outcome(folder, one.place, plan.block.select)
        if shows_trials(plan) and now.status == "failed":
            observer.note(now.in_words())


def _check_holdout(shared: Shared) -> None:
    """Trials are compared by what hold-out users' texts say: without any, all would be spent on nothing.

    Raises:
        ArgumentError: There are none.
    """
    held = shared.sweep.plan.spec.data.holdout
    if held.visibility == "public" and not len(shared.corpus.holdout_by_order(1)):
        raise ArgumentError(
            "data.holdout: no user is held out, so there is nothing to compare trials by; hold out more"
        )


def _incomplete(folder: Folder) -> MachineError:
    error = MachineError(
        f"the search has not come to its end ({folder.root}; details are in its private folder): nothing is released "
        "yet; what is wrong with the machine is to be mended first, if anything is"
    )
    error.run_id = folder.root.name
    return error


def _searching(shared: Shared, folder: Folder) -> Searching:
    block, spec = shared.sweep.block, shared.sweep.plan.spec
    halting = None
    if block.search.type == "asha":
        evaluations = -(-spec.train.steps // spec.train.checkpoint_every)
        halting = Halting(block.search.grace or 1, block.search.reduction or 3.0, evaluations)
    concurrent = block.concurrent if isinstance(block.concurrent, int) else None
    tells = block.search.type in ("optuna", "asha")
    memory = shared.sweep.plan.memory
    halved = halvings(spec.data.max_tokens if memory is None else memory.tokens, spec.data.max_tokens)
    restarts = spec.compute.retries + halved
    most = at_a_time(memory)

    def where(place: int) -> Folder:
        return trials_of.trial_folder(folder, place)

    return Searching(
        folder, where, spec.compute, shared.device, concurrent, restarts, block.select, tells, halting, most
    )


def _release(shared: Shared, folder: Folder, spending: Spending) -> RunResult:
    """Everything after the last trial. Interrupted anywhere, it can be done again."""
    winner, outcomes = _written(folder)
    if winner is None:
        trials_of.clean(folder, outcomes)
        destroy_key(folder.key)
        spending.finish()
        set_status(shared.sweep.plan, folder, FAILED)
        raise UserError(
            "no trial was trained to its end, so nothing is released; what the search cost stays charged "
            f"({folder.root}; why is in its private folder)"
        )
    if status_of(folder) != TRAINED:
        plan = trials_of.promote(shared, folder, winner)
        plan = dataclasses.replace(plan, ledger=shared.sweep.plan.ledger, memory=shared.sweep.plan.memory)
        write_released(folder.root / "spec.yaml", resolved_yaml(plan))
        write_plan(plan, shared.base, folder)
        write_released(folder.root / "sweep.json", as_json(released_document(shared.sweep, winner, outcomes)))
        set_status(plan, folder, TRAINED)
    else:
        plan = settled(shared.sweep.plan_of(Candidate(tuple(winner.candidate.items()))), folder)
    trials_of.clean(folder, outcomes)
    return finish(plan, folder, spending, shared.observer)
