"""What Ctrl-C and errors leave of a run: something to go on with, or nothing at all."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import ArgumentError, Interrupted, UserError
from harness.files import is_unwritable, unwritable
from harness.planning import Plan
from harness.running.answers import foreign_rules, model_is_used, settled
from harness.running.folders import FAILED, FINISHED, INTERRUPTED, RUNNING, remove_unbegun, set_status, status_of
from harness.running.watching import Observer
from harness.training.job import Folder


@contextlib.contextmanager
def interrupts_told(plan: Plan, folder: Folder) -> Iterator[None]:
    """Says what an interrupt leaves: a run to go on with, or, of one that did not begin to train, nothing."""
    try:
        yield
    except KeyboardInterrupt:
        if not _begun(folder):
            shutil.rmtree(folder.root, ignore_errors=True)
            spent = _what_is_charged(plan)
            raise Interrupted(f"stopped before training; {spent}, and nothing is left") from None
        if status_of(folder) == RUNNING:
            set_status(settled(plan, folder), folder, INTERRUPTED)
        raise Interrupted(f"stopped; what was durable is kept ({folder.root})", run_id=folder.root.name) from None
    except Exception as caught:
        error = unwritable(caught, _place_of(caught, folder)) if is_unwritable(caught) else caught
        # Being refused changes nothing of a run that has begun.
        if _begun(folder) and not isinstance(error, ArgumentError) and status_of(folder) not in (FAILED, FINISHED):
            with contextlib.suppress(OSError):  # of a full disk: it says "running", and is gone on with all the same
                if status_of(folder) == RUNNING:
                    set_status(settled(plan, folder), folder, INTERRUPTED)
            if isinstance(error, UserError):
                error.run_id = folder.root.name
        if error is caught:
            raise
        raise error from None


def _what_is_charged(plan: Plan) -> str:
    """Of a run that is stopped before training."""
    if foreign_rules(plan):
        return "what its plugins' code may have read stays charged"
    return "what the base model may have read stays charged" if model_is_used(plan) else "nothing was spent"


def _place_of(error: Exception, folder: Folder) -> Path:
    return Path(getattr(error, "filename", None) or folder.root)


def _begun(folder: Folder) -> bool:
    """Whether a run has begun; one that has not is removed, unless it says why (records or plugins that failed)."""
    if (folder.private / "run.json").exists():
        return True
    remove_unbegun(folder)
    return False


@contextlib.contextmanager
def first_interrupt_asks(folder: Folder, observer: Observer) -> Iterator[Callable[[], None]]:
    """Inside, the first Ctrl-C asks the workers to stop with a checkpoint; the second one interrupts at once.

    SIGTERM, with which schedulers and containers end a process, counts as a Ctrl-C.

    Yields:
        To be called twice a second: interrupts after a second Ctrl-C. Raised in the signal's handler, the interrupt
        could be printed and forgotten in a callback of a library.
    """
    at_once: list[bool] = []

    def check() -> None:
        if at_once:
            raise KeyboardInterrupt

    def stop(*_: object) -> None:
        if folder.stop.exists():
            at_once.append(True)
            if len(at_once) > 1:  # whoever insists does not wait for the next look either
                raise KeyboardInterrupt
            return
        folder.stop.touch(mode=0o600)
        observer.note("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
