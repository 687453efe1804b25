"""What a run asks of the ledger, and the sentence that refuses it."""

from __future__ import annotations

import getpass
import math
import socket
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.errors import ArgumentError, BudgetError
from harness.privacy.ledger.amounts import rounded, text_of
from harness.privacy.ledger.books import Account, RunRow

RdpAt = Callable[[float], float]
"""RDP (nats) of a run's whole event at one order: the maximum over its groups."""


@dataclass(frozen=True)
class Request:
    """What a run reserves: its whole event, the maximum over its groups. Public.

    Attributes:
        run: Id of the run.
        data_set: Name of the data set.
        epsilon: ε; infinity for a run without noise.
        delta: δ; 0 without noise.
        steps: Number of noisy steps.
        mechanism: Digest of the mechanism.
        spec: Name of the spec.
        holdout_fraction: Fraction of users whose texts' statistics are published.
        holdout_file: Whether those of a file of their own are.
    """

    run: str
    data_set: str
    epsilon: float
    delta: float
    steps: int
    mechanism: str
    spec: str
    holdout_fraction: float = 0.0
    holdout_file: bool = False


class Overspent(BudgetError):
    """A run that does not fit into what its budget has left.

    Attributes:
        account: The data set's account at that moment.
    """

    def __init__(self, message: str, account: Account) -> None:
        super().__init__(message)
        self.account = account


def refusal(account: Account, epsilon: float, delta: float, rdp: float | None) -> str:
    """The sentence that refuses a run: what is left, and what it needs.

    Args:
        account: Of the data set, which has a budget.
        epsilon: ε that the run needs.
        delta: δ that it needs.
        rdp: With a fixed order: what it needs there.
    """
    left = account.left()
    assert left is not None
    of = f'of the budget of "{account.data_set}"'
    if not math.isfinite(epsilon):
        return f'a run without noise spends an infinite ε: it never fits a budget, and "{account.data_set}" has one'
    if left.rdp is not None and rdp is not None:
        has = f"RDP {_number(left.rdp)} at order {left.order:g}"
        return f"{has} is left {of}, and this run needs {rounded(rdp, up=True):g}"
    has = f"ε = {_number(left.epsilon)} and δ = {_number(left.delta)}"
    return f"{has} are left {of}, and this run needs ε = {rounded(epsilon, up=True):g} and δ = {delta:g}"


def _number(amount: Any) -> str:
    return f"{rounded(amount, up=False):g}"


def reservation(request: Request, order: float | None, rdp: float | None) -> dict[str, Any]:
    """The fields of the entry that a request becomes."""
    return {
        "kind": "reserve",
        "data_set": request.data_set,
        "run": request.run,
        "epsilon": text_of(request.epsilon),
        "delta": text_of(request.delta),
        "renyi_order": None if order is None else text_of(order),
        "rdp": None if rdp is None else text_of(rdp),
        "details": {
            "steps": request.steps,
            "mechanism": request.mechanism,
            "spec": request.spec,
            "who": who(),
            "holdout_fraction": text_of(request.holdout_fraction),
            "holdout_file": request.holdout_file,
        },
    }


def check_repeated(known: RunRow, request: Request) -> None:
    """A run that reserves again must be the same run.

    Raises:
        ArgumentError: It is not, or its reservation was given back.
    """
    held, asked = known.reservation, reservation(request, None, None)
    same = all(getattr(held, name) == asked[name] for name in ("data_set", "run", "epsilon", "delta"))
    if not same or {**held.content, "who": ""} != {**asked["details"], "who": ""}:
        raise ArgumentError(f"run {request.run} reserved something else before: start a new run")
    if not known.counts:
        raise ArgumentError(f"the reservation of run {request.run} was {known.status}; start a new run")


def check_name(data_set: str) -> None:
    """Refuses what is no name of a data set.

    Raises:
        ArgumentError: It is none.
    """
    if not data_set or len(data_set) > 200 or any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in data_set):
        raise ArgumentError("a data set's name has from 1 to 200 characters, none of them a control character")


def who() -> str:
    """Who writes an entry: user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"
