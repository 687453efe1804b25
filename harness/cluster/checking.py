"""What is looked at on the laptop before anything is sent: the ledger, the plan, who sees the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ArgumentError, BudgetError, MachineError
from harness.spec import LoadedSpec
from harness.spec.ledger_url import DEFAULT_LEDGER

if TYPE_CHECKING:
    from harness.planning import Plan


def storage_of(loaded: LoadedSpec) -> Path:
    """Where a spec's runs live on the cluster.

    Raises:
        ArgumentError: It does not say so.
    """
    if loaded.spec.compute.storage is None:
        raise ArgumentError(
            "compute.storage: must name a folder that all machines of the cluster see, and that outlives it: runs, "
            "caches and ledgers lie there (compute.storage=/mnt/shared/uudp)"
        )
    return Path(loaded.spec.compute.storage)


def check_cells(cells: Sequence[LoadedSpec], specs: Sequence[LoadedSpec]) -> None:
    """Files are sent as the specs of a suite name them, not as its policies might.

    Raises:
        ArgumentError: A policy reads other files.
    """

    def files(loaded: LoadedSpec) -> tuple[object, ...]:
        data = loaded.resolved["data"]
        return data["source"], data["holdout"]["file"], loaded.resolved["model"]["base"]

    known = [files(loaded) for loaded in specs]
    for cell in cells:
        if files(cell) not in known:
            raise ArgumentError(
                f"{cell.spec.name}: a policy of a submitted suite can't change data.source, data.holdout.file or "
                "model.base; name another spec in `specs`"
            )


def check_ledger(loaded: LoadedSpec, storage: Path) -> str:
    """Where the run will be charged, in words.

    Raises:
        ArgumentError: In a file that would not outlive the job, or elsewhere than the data set was charged so far.
    """
    url = loaded.spec.privacy.ledger
    if url is None:
        return "ledger: none"
    if url == DEFAULT_LEDGER:
        _check_unknown_here(loaded)
        return f"ledger: what UUDP_LEDGER names on the cluster, else {storage}/ledger.db there; not this machine's"
    if url.startswith("sqlite"):
        file = Path(url.partition("://")[2][1:])
        if not file.is_relative_to(storage) or ".." in file.parts:
            raise ArgumentError(
                f"privacy.ledger: an sqlite: ledger of a submitted run must lie in compute.storage, where it is kept: "
                f"sqlite:///{storage}/ledger.db"
            )
        return f"ledger: {file}, on the cluster"
    return "ledger: the database that privacy.ledger names, by the cluster"


def _check_unknown_here(loaded: LoadedSpec) -> None:
    """A data set with two ledgers would have its budget twice."""
    from harness.privacy.ledger import Ledger, locate

    name = loaded.spec.data.name
    try:
        if locate(None).missing:
            return
        ledger = Ledger(None, patience=3.0)
        known = any(account.data_set == name for account in ledger.accounts())
    except MachineError:
        return  # one that can't be asked here charges nothing here either
    if known:
        raise ArgumentError(
            f'privacy.ledger: the ledger here ({ledger.shown}) keeps the budget of "{name}", and the cluster has '
            "another one by default; give the URL of the one that is to be charged"
        )


def is_shared(loaded: LoadedSpec) -> bool:
    """Whether the ledger is a database that laptop and cluster may both reach."""
    return (loaded.spec.privacy.ledger or "").startswith("postgresql")


def plan_here(loaded: LoadedSpec) -> Plan:
    """The plan as far as the laptop can make it: all but what this machine's memory and ledger say.

    Raises:
        ArgumentError: The data that the spec names are wrong.
        BudgetError: The budget can't be kept.
        MachineError: What it takes is not installed here.
    """
    from harness.planning.completing import complete
    from harness.planning.making import begin, count_publicly

    return complete(*begin(loaded, None, count_publicly))


def ask_ledger(loaded: LoadedSpec, plan: Plan) -> Plan:
    """The plan with what a ledger that both sides reach says of it; without, where it is not reached from here.

    Raises:
        BudgetError: It has not enough left.
    """
    from harness.planning.fitting import look

    if not is_shared(loaded):
        return plan
    try:
        view = look(loaded, plan.guarantee)
    except (ArgumentError, MachineError):
        return plan
    if view is not None and view.refusal is not None:
        raise BudgetError(view.refusal)
    return replace(plan, ledger=view)


def epsilon_of(loaded: LoadedSpec, plan: Plan | None) -> str:
    """What will be reserved, for a list of jobs: of a search or an unplanned run, the most that it may be."""
    if plan is None or loaded.spec.sweep is not None:
        return f"≤ {loaded.spec.privacy.epsilon:g}"
    total = plan.guarantee.total
    return "NONE" if total is None or math.isinf(total) else f"{total:.4g}"
