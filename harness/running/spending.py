"""A run and the ledger: reserve before anything private is read, touch before a model reads it, finish at the end.

While training goes on, the ledger is looked at: a run whose ledger is gone stops with a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ArgumentError, BudgetError, MachineError, UserError
from harness.files import hold
from harness.planning import Plan
from harness.planning.fitting import needs, open_ledger, rdp_of, refusal_of
from harness.privacy.guarantee import Entered
from harness.running.folders import LEASE_SECONDS, entry_of, remove_unbegun, save_entry
from harness.running.watching import Observer
from harness.spec.loading import LoadedSpec
from harness.training.job import Folder

if TYPE_CHECKING:
    from harness.privacy.ledger import Ledger, Receipt

LOOK_SECONDS = 10.0
"""Between two looks at the ledger while training goes on."""
RETRY_SECONDS = 2.0
"""After a look that failed; a second one in a row counts."""
LOOK_PATIENCE = 5.0


class Spending:
    """A run's reservation. Of a run without a ledger, nothing here does anything."""

    def __init__(self, ledger: Ledger | None, entry: Entered | None, quick: Ledger | None = None) -> None:
        """Args: `ledger`; `entry` in it; `quick`: the same ledger, that does not wait long for an answer."""
        self.ledger, self.entry, self.quick = ledger, entry, quick
        self.lost: UserError | None = None

    def touch(self) -> None:
        """To be called right before the first private byte is read by a model or a session: charges the run whole.

        Raises:
            ArgumentError: The reservation was given back.
            MachineError: The ledger does not answer.
        """
        if self.ledger is not None and self.entry is not None:
            self.ledger.touch(self.entry.run)

    def finish(self) -> None:
        """Notes that the run has ended as planned.

        Raises:
            MachineError: The ledger does not answer; the run can be finished later.
        """
        if self.ledger is not None and self.entry is not None:
            self.ledger.finish(self.entry.run)

    @contextlib.contextmanager
    def guarded(self, folder: Folder, observer: Observer) -> Iterator[Callable[[], None]]:
        """Inside, the ledger is looked at; where it is lost, the workers are asked to stop with a checkpoint.

        Yields:
            To be called now and then in the calling thread.
        """
        ended = threading.Event()
        if self.quick is not None and self.entry is not None:
            # Beside the caller, who must stay free for a Ctrl-C while a database does not answer.
            threading.Thread(target=self._look, args=(ended,), name="ledger", daemon=True).start()
        asked = False

        def check() -> None:
            nonlocal asked
            if self.lost is not None and not asked:
                asked = True
                folder.stop.touch(mode=0o600)
                observer.note(f"{self.lost}; stopping after this step, with a checkpoint")

        try:
            yield check
        finally:
            ended.set()

    def _look(self, ended: threading.Event) -> None:
        failed, wait = 0, LOOK_SECONDS
        while self.lost is None and not ended.wait(wait):
            problem = self._problem()
            failed = failed + 1 if isinstance(problem, MachineError) else 0
            wait = RETRY_SECONDS if failed else LOOK_SECONDS
            if problem is not None and failed != 1:
                self.lost = problem

    def _problem(self) -> UserError | None:
        assert self.quick is not None
        assert self.entry is not None
        try:
            self.quick.standing(self.entry.run, _receipt(self.entry))
        except ArgumentError as error:  # a ledger without this run is not the one it reserved in
            return MachineError(str(error))
        except UserError as error:
            return error
        except Exception as error:
            return MachineError(f"the ledger {self.entry.url} can't be looked at ({type(error).__name__})")
        return None

    def raise_lost(self, folder: Folder) -> None:
        """Ends a run that was stopped because its ledger was lost.

        Raises:
            MachineError: The ledger does not answer.
            BudgetError: The reservation was given back.
        """
        if self.lost is not None:
            kind = BudgetError if isinstance(self.lost, BudgetError) else MachineError
            stopped = kind(f"{self.lost}; stopped with a checkpoint ({folder.root})")
            stopped.run_id = folder.root.name
            raise stopped


@contextlib.contextmanager
def entered(plan: Plan, folder: Folder, resume: bool, observer: Observer) -> Iterator[Spending]:
    """Reserves a new run's whole event, and gives it back if the run ends before it has begun.

    Args:
        plan: The run.
        folder: Its folder, whose name is its id.
        resume: It has reserved before: checks that the reservation still stands.
        observer: Is told if nothing could be given back.

    Raises:
        ArgumentError: It was begun with another ledger.
        BudgetError: Not enough is left for it, or its reservation was given back.
        MachineError: The ledger does not answer.
    """
    ledger = open_ledger(plan.loaded)
    if resume:
        yield _resumed(ledger, folder, open_ledger(plan.loaded, LOOK_PATIENCE))
        return
    if ledger is None:
        yield Spending(None, None)
        return
    entry = None
    try:
        entry = _reserve(plan, folder, ledger)
        yield Spending(ledger, entry, open_ledger(plan.loaded, LOOK_PATIENCE))
    except BaseException:
        # Once it has begun it can go on: then its reservation stands.
        if not (folder.private / "run.json").exists():
            _refund(ledger, folder, observer if entry is not None else Observer())
        raise


def _resumed(ledger: Ledger | None, folder: Folder, quick: Ledger | None) -> Spending:
    entry = entry_of(folder)
    if entry is None and ledger is None:
        return Spending(None, None)
    if entry is None or ledger is None:
        ask = "privacy.ledger=null" if entry is None else f"that ledger ({entry.url})"
        without = "out" if entry is None else ""
        raise ArgumentError(f"{folder.root} was begun with{without} a ledger: go on with {ask}")
    ledger.standing(entry.run, _receipt(entry))
    return Spending(ledger, entry, quick)


def _reserve(plan: Plan, folder: Folder, ledger: Ledger) -> Entered:
    from harness.privacy.ledger import Overspent, Request
    from harness.privacy.ledger.amounts import rounded

    guarantee, holdout = plan.guarantee, plan.spec.data.holdout
    epsilon, delta = needs(guarantee)
    public = holdout.visibility == "public"
    request = Request(
        folder.root.name,
        guarantee.data_name,
        epsilon,
        delta,
        plan.mechanism.steps,
        plan.mechanism.digest,
        plan.spec.name,
        holdout.users if public else 0.0,
        public and holdout.file is not None,
    )
    try:
        receipt, account = ledger.reserve(request, lambda order: rdp_of(guarantee, order))
    except Overspent as error:  # another run was quicker than this one's plan
        raise BudgetError(refusal_of(error.account, guarantee) or str(error)) from None
    spent = rounded(account.spent_epsilon, up=True)
    entry = Entered(
        ledger.shown,
        request.data_set,
        request.run,
        receipt.sequence,
        receipt.hash,
        spent if math.isfinite(spent) else None,
        rounded(account.spent_delta, up=True),
        account.holdout_fraction,
        account.holdout_file,
    )
    save_entry(folder, entry)
    return entry


def _receipt(entry: Entered) -> Receipt:
    from harness.privacy.ledger import Receipt

    return Receipt(entry.sequence, entry.hash)


def _refund(ledger: Ledger, folder: Folder, observer: Observer) -> None:
    """Gives an untouched reservation back; where that fails, it stands, and a person can do it."""
    run = folder.root.name
    try:
        ledger.refund(run)
    except ArgumentError:
        return  # nothing was reserved
    except UserError as error:
        observer.note(f"its reservation still stands ({error}); give it back with: uudp ledger void {run}")


def give_back_unbegun(loaded: LoadedSpec, out: Path, observer: Observer) -> None:
    """Gives back what earlier runs of this name reserved that were killed before they began: no model read anything.

    What they left is removed, unless it says why records or plugins failed. A run that is being worked on stays, and
    the ledger gives back nothing that was touched.

    Args:
        loaded: The spec of the run that is about to begin.
        out: Where runs are kept.
        observer: Is told what was given back.

    Raises:
        MachineError: The ledger does not answer.
    """
    for private in sorted((out / loaded.spec.name).glob("*/private")):
        folder = Folder(private.parent.absolute())
        # One that begins at this moment has made its folder or its lease, and may not hold it yet.
        if (private / "run.json").exists() or time.time() - private.stat().st_mtime < LEASE_SECONDS:
            continue
        if not folder.lease.exists():
            with contextlib.suppress(OSError):  # killed in its first moment, or something is in there to be read
                private.rmdir()
                folder.root.rmdir()
            continue
        with hold(folder.lease, seconds=0) as held:
            if held and not (private / "run.json").exists():
                _give_back(loaded, folder, observer)
                remove_unbegun(folder)


def _give_back(loaded: LoadedSpec, folder: Folder, observer: Observer) -> None:
    ledger = open_ledger(loaded)
    with contextlib.suppress(ArgumentError):  # it had reserved nothing
        if ledger is not None and ledger.refund(folder.root.name):
            observer.note(f"{folder.root.name} was killed before it began: what it reserved is given back")
