"""What the entries amount to: budgets, runs and what they spent. Pure: entries in, accounts out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from harness.privacy.ledger.amounts import Budget, Exact, add, converted, exact, rounded
from harness.privacy.ledger.chain import Entry

RESERVED, TOUCHED, FINISHED, REFUNDED, VOIDED = "reserved", "touched", "finished", "refunded", "voided"
_LEADS = {
    "touch": ((RESERVED,), TOUCHED),
    "finish": ((TOUCHED,), FINISHED),
    "refund": ((RESERVED,), REFUNDED),
    "void": ((RESERVED,), VOIDED),
}
"""From which statuses an entry may lead, and to which."""
RETURNED = (REFUNDED, VOIDED)


@dataclass(frozen=True)
class RunRow:
    """One run in the ledger.

    Attributes:
        reservation: Its first entry.
        status: How far it is.
    """

    reservation: Entry
    status: str = RESERVED

    @property
    def counts(self) -> bool:
        """Whether it is charged: all are, but those that were given back untouched."""
        return self.status not in RETURNED


@dataclass(frozen=True)
class Account:
    """One data set's budget and what was spent of it. Public.

    Attributes:
        data_set: Its name.
        budget: The latest; None: runs are recorded without a limit.
        runs: Every run, in the order of their reservations.
        holdout_fraction: The largest fraction of users that a run ever held out publicly.
        holdout_file: Whether users of a file of their own ever were.
    """

    data_set: str
    budget: Budget | None = None
    runs: tuple[RunRow, ...] = ()
    holdout_fraction: float = 0.0
    holdout_file: bool = False

    def _sum(self, name: str) -> Exact:
        return add([exact(getattr(run.reservation, name) or "inf") for run in self.runs if run.counts])

    @property
    def spent_epsilon(self) -> Exact:
        """The sum of the runs' ε."""
        return self._sum("epsilon")

    @property
    def spent_delta(self) -> Exact:
        """The sum of the runs' δ."""
        return self._sum("delta")

    @property
    def spent_rdp(self) -> Exact:
        """The sum of the runs' RDP at the budget's order."""
        return self._sum("rdp")

    def left(self) -> Left | None:
        """What the budget has left; None without a budget."""
        budget = self.budget
        if budget is None:
            return None
        if budget.order is None:
            spare = (exact(repr(budget.epsilon)), exact(repr(budget.delta)))
            return Left(
                max(_less(spare[0], self.spent_epsilon), Fraction(0)),
                max(_less(spare[1], self.spent_delta), Fraction(0)),
            )
        assert budget.capacity is not None
        spent = self.spent_rdp
        used = math.inf if spent == math.inf else converted(float(spent), budget.delta, budget.order)
        epsilon = Fraction(max(budget.epsilon - used, 0.0))
        rest = max(_less(exact(repr(budget.capacity)), spent), Fraction(0))
        return Left(epsilon, exact(repr(budget.delta)), budget.order, rest)

    def document(self) -> dict[str, Any]:
        """Plain data for JSON. What is left is rounded down, what is spent up; an infinite ε is None."""
        left, budget = self.left(), self.budget
        spent_epsilon, spent_delta = rounded(self.spent_epsilon, up=True), rounded(self.spent_delta, up=True)
        return {
            "data_set": self.data_set,
            "budget": None
            if budget is None
            else {"epsilon": budget.epsilon, "delta": budget.delta, "order": budget.order},
            "runs": sum(run.counts for run in self.runs),
            "spent_epsilon": spent_epsilon if math.isfinite(spent_epsilon) else None,
            "spent_delta": spent_delta,
            "spent_without_privacy": not math.isfinite(spent_epsilon),
            "remaining_epsilon": None if left is None else rounded(left.epsilon, up=False),
            "remaining_delta": None if left is None else rounded(left.delta, up=False),
            "remaining_rdp": None if left is None or left.rdp is None else rounded(left.rdp, up=False),
            "largest_public_holdout": self.holdout_fraction,
            "public_holdout_file": self.holdout_file,
        }


def _less(amount: Exact, spent: Exact) -> Exact:
    return Fraction(0) if spent == math.inf else amount - spent


@dataclass(frozen=True)
class Left:
    """What a budget has left; exact.

    Attributes:
        epsilon: ε (with an order: a reading of `rdp`, which is what counts).
        delta: δ that runs may still add (with an order: that of the budget).
        order: The fixed Rényi order, if there is one.
        rdp: RDP that is left at it.
    """

    epsilon: Exact
    delta: Exact
    order: float | None = None
    rdp: Exact | None = None

    def holds(self, epsilon: float, delta: float, rdp: float | None) -> bool:
        """Whether a run of these amounts fits."""
        if self.rdp is not None:
            return rdp is not None and exact(repr(rdp)) <= self.rdp
        return exact(repr(epsilon)) <= self.epsilon and exact(repr(delta)) <= self.delta


@dataclass
class Books:
    """Entries, added up one after the other."""

    runs: dict[str, RunRow] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Books:
        """The books of some entries."""
        books = cls()
        for entry in entries:
            books.apply(entry)
        return books

    def account(self, data_set: str) -> Account:
        """One data set's, with its runs."""
        found = self.accounts.get(data_set, Account(data_set))
        return replace(found, runs=tuple(run for run in self.runs.values() if run.reservation.data_set == data_set))

    def apply(self, entry: Entry) -> str | None:
        """Adds an entry.

        Returns:
            What is wrong with it, if it could not have been appended to those before.
        """
        held = self.accounts.setdefault(entry.data_set, Account(entry.data_set))
        if entry.kind == "budget":
            self.accounts[entry.data_set] = replace(held, budget=budget_of(entry))
        elif entry.kind == "holdout":
            fraction = max(held.holdout_fraction, float(entry.content["fraction"]))
            file = held.holdout_file or bool(entry.content["file"])
            self.accounts[entry.data_set] = replace(held, holdout_fraction=fraction, holdout_file=file)
        elif entry.kind == "reserve":
            problem = "reserves twice" if entry.run in self.runs else self._exceeds(entry)
            self.runs[str(entry.run)] = RunRow(entry)
            return problem
        elif entry.kind in _LEADS:
            run = self.runs.get(str(entry.run))
            before, after = _LEADS[entry.kind]
            if run is None or run.status not in before or run.reservation.data_set != entry.data_set:
                return f"is a {entry.kind} that could not be"
            self.runs[str(entry.run)] = replace(run, status=after)
        else:
            return "is of no known kind"
        return None

    def _exceeds(self, entry: Entry) -> str | None:
        left = self.account(entry.data_set).left()
        rdp = None if entry.rdp is None else float(entry.rdp)
        if left is None or left.holds(float(entry.epsilon or "inf"), float(entry.delta or "inf"), rdp):
            return None
        return "spends more than its budget had left"


def budget_of(entry: Entry) -> Budget:
    """The budget that an entry sets."""
    order = None if entry.renyi_order is None else float(entry.renyi_order)
    capacity = None if entry.rdp is None else float(entry.rdp)
    return Budget(float(entry.epsilon or "nan"), float(entry.delta or "nan"), order, capacity)
