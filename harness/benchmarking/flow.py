"""The way through a suite: each cell a whole run, as many side by side as there is room for.

What a cell is and how far it is lies in its own run's folder, below the suite's: whoever goes on with a suite finds it
there. A cell that can't be trained is noted with its reason, and stops no other.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.benchmarking import results
from harness.benchmarking.cells import Cell
from harness.benchmarking.machine import code, machine
from harness.benchmarking.planning import SuitePlan, most_at_a_time
from harness.errors import Interrupted, MachineError, UserError
from harness.files import is_unwritable, private_folder, unwritable, write_private
from harness.planning import Plan
from harness.running import flow as run_flow
from harness.running.answers import settled
from harness.running.folders import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    TRAINED,
    check_promise,
    create_folder,
    find_unfinished,
    lease,
    set_status,
    status_of,
)
from harness.running.interrupting import first_interrupt_asks, interrupts_told
from harness.running.spending import Spending, entered, give_back_unbegun
from harness.running.watching import Observer
from harness.spec.sweep_block import SelectBlock
from harness.sweeping.tune import How, Part, Searching, search
from harness.training.job import Failure, Folder, halvings
from harness.training.ray import check_shadows

LOG = "bench-error.log"


@dataclass(frozen=True)
class BenchResult:
    """What came of a suite.

    Attributes:
        folder: The suite's, with ``results.jsonl``.
        cells: Those that were asked for, as ``suite.json`` lists them.
        rows: All results there are, in the order in which they were written.
    """

    folder: Path
    cells: list[dict[str, object]]
    rows: list[dict[str, object]]


@dataclass
class _Active:
    """A cell that is being trained."""

    cell: Cell
    plan: Plan
    folder: Folder
    spending: Spending
    guard: Callable[[], None]
    held: contextlib.ExitStack
    began: float | None
    trained: bool


def bench(
    plan: SuitePlan,
    cells: Sequence[Cell],
    *,
    out: Path | str = "runs",
    resume: bool = False,
    observer: Observer | None = None,
) -> BenchResult:
    """Trains the cells of a suite that have not finished yet, and writes a line for each that has.

    Args:
        plan: The suite.
        cells: Of it, those to train now.
        out: Where runs are kept: the suite's folder is ``out/<suite>``, a cell's run ``<cell>/<run id>`` in it.
        resume: Go on with a suite that was begun there.
        observer: Is told how it goes.

    Raises:
        ArgumentError: There is one already, or none to go on with, or it was begun with other cells.
        Interrupted: Stopped on request; resumable.
        MachineError: This machine can't run it.
    """
    observer, folder = observer or Observer(), suite_folder(plan, out)
    check_shadows(Path.cwd())
    most = most_at_a_time(plan, tuple(cells))
    results.check_begun(folder.root, resume=resume)
    private_folder(folder.private)
    with lease(folder):
        title = plan.suite.title or plan.suite.suite
        standing = results.begin(folder.root, plan.suite.suite, title, plan.cells)
        suite = _Suite(plan, cells, folder, standing, observer)
        suite.settle()
        if suite.left:
            _train(suite, most)
        suite.write(everything=True)
        suite.raise_unfinished()
        shutil.rmtree(folder.private / "tune", ignore_errors=True)
    listed = [dict(standing.cells[cell.name]) for cell in cells]
    return BenchResult(folder.root, listed, list(results.repaired(folder.root / results.RESULTS)))


def suite_folder(plan: SuitePlan, out: Path | str) -> Folder:
    """Where a suite's runs and results lie."""
    return Folder((Path(out) / plan.suite.suite).absolute())


def reserved(plan: SuitePlan, cells: Sequence[Cell], out: Path | str) -> set[str]:
    """Names of the cells that have reserved what they cost: they have begun, or finished."""
    root = suite_folder(plan, out).root
    return {cell.name for cell in cells if any((root / cell.name).glob("*/privacy.json"))}


def _train(suite: _Suite, most: int | None) -> None:
    """Ray Tune over the cells that are left."""
    folder, plans = suite.folder, [suite.plan.plans[cell.name] for cell in suite.left.values()]
    folder.stop.unlink(missing_ok=True)
    spec = plans[0].spec
    restarts = max(
        one.spec.compute.retries
        + halvings(one.spec.data.max_tokens if one.memory is None else one.memory.tokens, one.spec.data.max_tokens)
        for one in plans
    )
    concurrent = suite.plan.suite.concurrent
    how = Searching(
        folder,
        suite.where,
        spec.compute,
        run_flow.device_of(plans[0]),
        concurrent if isinstance(concurrent, int) else None,
        restarts,
        SelectBlock(),
        tells=False,
        most=most,
    )
    try:
        with first_interrupt_asks(folder, suite.observer) as check:

            def tick() -> None:
                check()
                suite.tick()

            search(how, [Part(suite)], suite.prepare, suite.ended, tick)
    except KeyboardInterrupt:
        folder.stop.touch(mode=0o600)
    finally:
        suite.let_go()


class _Suite:
    """The cells of a suite on their way. Called by Tune's thread, but for `tick`, which looks on."""

    def __init__(
        self, plan: SuitePlan, cells: Sequence[Cell], folder: Folder, standing: results.Standing, observer: Observer
    ) -> None:
        self.plan, self.cells, self.folder = plan, list(cells), folder
        self.standing, self.observer = standing, observer
        self.active: dict[int, _Active] = {}
        self.left: dict[int, Cell] = {}
        self.seconds: dict[str, float] = {}
        self.lost: UserError | None = None
        self._places: Iterator[int] = iter(())
        self._begun: set[str] = set()
        self._told: set[str] = set()
        self._written = {row["cell"] for row in results.repaired(folder.root / results.RESULTS)}

    def settle(self) -> None:
        """Looks how far every cell is, as its own folder says; what is left goes on."""
        for place, cell in enumerate(self.cells):
            runs = sorted((self.folder.root / cell.name).glob("*/privacy.json"), reverse=True)
            states = [(path.parent, _status(path.parent)) for path in runs]
            finished = next((run for run, status in states if status == FINISHED), None)
            if finished is not None:
                self.standing.note(cell.name, results.FINISHED, run=finished)
            elif states and states[0][1] == FAILED:
                run = states[0][0]
                self.standing.note(cell.name, results.FAILED, reason=results.why_failed(run), run=run)
            else:
                self.left[place] = cell
                # Of a run whose private part is gone, nothing can go on.
                if any((run / "private" / "run.json").exists() for run, _ in states):
                    self._begun.add(cell.name)
                self.standing.note(cell.name, results.OPEN)
        self._places = iter(list(self.left))
        self.write()

    # --- what Ray Tune asks -----------------------------------------------------------------------------------

    def next(self) -> tuple[int, Cell] | None:
        """The next cell."""
        place = None if self.lost is not None else next(self._places, None)
        return None if place is None else (place, self.cells[place])

    def told(self, place: int, score: float | None) -> None:
        """Nothing: cells do not depend on each other."""

    def where(self, place: int) -> Folder:
        """The folder of a cell's run."""
        return self.active[place].folder

    def prepare(self, place: int, cell: Cell) -> bool:
        """Begins a cell, or goes on with it; whether there is something to train."""
        plan = self.plan.plans[cell.name]
        if plan.ledger is not None:  # the suite was checked whole; the ledger itself refuses what it can't hold
            plan = replace(plan, ledger=replace(plan.ledger, refusal=None))
        resumed = cell.name in self._begun
        if self.folder.stop.exists():
            return False
        began = None if resumed else time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                give_back_unbegun(cell.loaded, self.folder.root, self.observer)
                make = find_unfinished if resumed else create_folder
                folder = make(plan, self.folder.root)
                stack.enter_context(lease(folder))
                stack.enter_context(interrupts_told(plan, folder))
                observer = self._observer(cell)
                spending = stack.enter_context(entered(plan, folder, resumed, observer))
                trained = resumed and status_of(folder) == TRAINED
                if trained:
                    plan = settled(plan, folder)
                    check_promise(plan, folder)
                else:
                    plan, _ = run_flow.prepare(plan, folder, observer, resumed, spending, None)
                    spending.touch()
                    for left in (folder.stop, folder.progress, folder.failure):
                        left.unlink(missing_ok=True)
                guard = stack.enter_context(spending.guarded(folder, observer))
                self.active[place] = _Active(cell, plan, folder, spending, guard, stack.pop_all(), began, trained)
        except UserError as error:
            self._failed(cell, error)
            return False
        except Exception as error:
            self._unexpected(cell, error)
            return False
        self.observer.note(f"{cell.name}: {'goes on' if resumed else 'begins'}")
        return not trained

    def ended(self, place: int, how: How) -> None:
        """A cell was trained, or stopped, or could not be."""
        active = self.active.get(place)
        if active is None:  # it could not even begin
            return
        try:
            self._end(active)
        except UserError as error:
            self._failed(active.cell, error, active.folder.root)
        except Exception as error:
            self._unexpected(active.cell, error, active.folder.root)
        finally:
            active.held.close()
            del self.active[place]
            self.write()

    def _end(self, active: _Active) -> None:
        cell, plan, folder = active.cell, active.plan, active.folder
        failure = Failure.load(folder.root)
        if not active.trained and not run_flow.complete(plan, folder):
            if failure is not None and failure.exit_code != MachineError.exit_code:
                run_flow.give_up(plan, folder)
                self.standing.note(cell.name, results.FAILED, reason=failure.message, run=folder.root)
                self.observer.note(f"{cell.name}: failed: {failure.message}")
                return
            set_status(plan, folder, INTERRUPTED)
            if active.spending.lost is not None:
                self.lost = self.lost or active.spending.lost
            elif not folder.stop.exists() and not self.folder.stop.exists():
                raise UserError(results.UNKNOWN if failure is None else failure.message)
            self.standing.note(cell.name, results.OPEN, run=folder.root)
            return
        set_status(plan, folder, TRAINED)
        summary = run_flow.finish(plan, folder, active.spending, self.observer).summary
        if active.began is not None:
            self.seconds[cell.name] = time.monotonic() - active.began
        self.standing.note(cell.name, results.FINISHED, run=folder.root)
        loss = summary["trained_loss"]
        left = sum(self.standing.cells[one.name]["status"] == results.OPEN for one in self.cells)
        after = "" if loss is None else f", hold-out loss {summary['base_loss']:.4f} → {loss:.4f}"
        self.observer.note(f"{cell.name}: finished{after}; {left} of {len(self.cells)} left")

    def tick(self) -> None:
        """Looks at the ledger of each cell that is being trained, and passes on that all are to stop."""
        for active in list(self.active.values()):
            active.guard()
            if self.folder.stop.exists():
                with contextlib.suppress(OSError):
                    active.folder.stop.touch(mode=0o600)

    def let_go(self) -> None:
        """Of cells that were under way when the end came: what is durable is kept."""
        for place, active in list(self.active.items()):
            with contextlib.suppress(OSError):
                if status_of(active.folder) == RUNNING:
                    set_status(active.plan, active.folder, INTERRUPTED)
            with contextlib.suppress(UserError):
                active.held.close()
            del self.active[place]

    # --- what is written ----------------------------------------------------------------------------------------

    def write(self, *, everything: bool = False) -> None:
        """Writes the lines of finished cells, in the order of the suite: those that wait for none before them, or all.

        In what order cells ended says how long their steps took.
        """
        path = self.folder.root / results.RESULTS
        for cell in self.cells:
            known = self.standing.cells[cell.name]
            if known["status"] == results.OPEN and not everything:
                return
            if known["status"] != results.FINISHED or cell.name in self._written:
                continue
            run = self.folder.root / known["run"]
            made = {"code": code(), "machine": machine(run_flow.device_of(self.plan.plans[cell.name]))}
            seconds = self.seconds.get(cell.name)
            row = results.result_of(self.standing.suite, cell.document(), self.folder.root, run, made, seconds)
            results.append(path, row)
            self._written.add(cell.name)

    def raise_unfinished(self) -> None:
        """Ends a suite that was stopped.

        Raises:
            Interrupted: On request.
            MachineError: For a reason of this machine's, or the ledger's.
        """
        left = [cell.name for cell in self.cells if self.standing.cells[cell.name]["status"] == results.OPEN]
        if not left:
            return
        words = f"{len(left)} of {len(self.cells)} cells are left ({self.folder.root})"
        error: UserError
        if self.lost is not None:
            error = MachineError(f"{self.lost}; {words}")
            error.run_id = self.standing.suite
        elif self.folder.stop.exists():
            error = Interrupted(f"stopped with checkpoints; {words}", run_id=self.standing.suite)
        else:
            error = MachineError(f"Ray ended before its work was done; {words}")
            error.run_id = self.standing.suite
        raise error

    def _failed(self, cell: Cell, error: UserError, run: Path | None = None) -> None:
        # Where this machine keeps its files is nobody's business who reads the results.
        reason = str(error).replace(f"{self.folder.root}/", "")
        self.standing.note(cell.name, results.FAILED, reason=reason, run=run)
        self.observer.note(f"{cell.name}: failed: {reason}")

    def _unexpected(self, cell: Cell, error: Exception, run: Path | None = None) -> None:
        """Something of ours, or of a disk. Its message may hold what is private."""
        if is_unwritable(error):
            raise unwritable(error, self.folder.root)
        write_private(self.folder.private / LOG, traceback.format_exc().encode())
        told = f"unexpected {type(error).__name__}; details are in the suite's private folder"
        self._failed(cell, UserError(told), run)

    def _observer(self, cell: Cell) -> Observer:
        """What there is to say of a data set and its model is said once."""
        data = cell.variant.data
        if data in self._told:
            return Observer()
        self._told.add(data)
        return self.observer


def _status(run: Path) -> str:
    """How far a run is: as its private part says, or, where that was taken away, its released files."""
    import json

    for path in (run / "private" / "run.json", run / "privacy.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(path.read_text())["status"])
    return INTERRUPTED
