"""The ledger: what each data set may spend, and what every run on it reserved, touched and kept.

A run reserves its whole event before anything private is read by a model. What is reserved stays reserved, whatever
happens to the run; only a run that touched nothing gets it back. Runs are chosen adaptively, so their ε and δ add up,
or, under a budget with one fixed Rényi order, their RDP at that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, or_

from harness.errors import ArgumentError, BudgetError, MachineError
from harness.plugins import suggest
from harness.privacy.ledger import schema
from harness.privacy.ledger.address import locate
from harness.privacy.ledger.amounts import Budget, text_of
from harness.privacy.ledger.books import RETURNED, TOUCHED, VOIDED, Account, Books, RunRow
from harness.privacy.ledger.chain import (
    Entry,
    Receipt,
    append,
    chain_problems,
    check_end,
    check_seals,
    entries_where,
    head_of,
)
from harness.privacy.ledger.request import (
    Overspent,
    RdpAt,
    Request,
    check_name,
    check_repeated,
    refusal,
    reservation,
    who,
)
from harness.privacy.ledger.store import PATIENCE, Store


class Ledger:
    """A ledger. Every call is one transaction; `reserve`, `touch` and `finish` can be repeated."""

    def __init__(self, url: str | None = None, *, base: Path | None = None, patience: float = PATIENCE) -> None:
        """Args: `url`, `base`: as for `locate`; `patience`: seconds that a call waits for others."""
        self.address = locate(url, base)
        self.store = Store(self.address, patience=patience)
        self._checked = 0  # so many entries of other data sets were found intact

    @property
    def shown(self) -> str:
        """Its URL, without the password."""
        return self.address.shown

    # --- budgets --------------------------------------------------------------------------------------------

    def set_budget(self, data_set: str, epsilon: float, delta: float, order: float | None = None) -> Receipt:
        """Gives a data set a budget, or another one: the latest counts.

        Args:
            data_set: Its name.
            epsilon: ε of all runs together.
            delta: δ of all runs together.
            order: One fixed Rényi order at which the RDP of runs adds, in place of their ε and δ.

        Raises:
            ArgumentError: A number is out of range, or there are runs whose RDP at this order is not known.
            MachineError: The ledger can't be written.
        """
        check_name(data_set)
        budget = Budget.of(epsilon, delta, order)
        with self.store.write(create=True) as connection:
            account = self._account(connection, data_set)
            wanted = None if order is None else text_of(order)
            if wanted and any(run.counts and run.reservation.renyi_order != wanted for run in account.runs):
                raise ArgumentError(
                    f'--order: "{data_set}" has runs whose RDP at order {order:g} is not known; '
                    "an order can only be given before the first run"
                )
            entry = append(
                connection,
                self.shown,
                kind="budget",
                data_set=data_set,
                epsilon=text_of(budget.epsilon),
                delta=text_of(budget.delta),
                renyi_order=wanted,
                rdp=None if budget.capacity is None else text_of(budget.capacity),
                details={"who": who()},
            )
        return entry.receipt

    # --- a run ----------------------------------------------------------------------------------------------

    def reserve(self, request: Request, rdp_at: RdpAt) -> tuple[Receipt, Account]:
        """Reserves a run's whole event. Repeated, it reserves nothing more.

        Args:
            request: What the run needs.
            rdp_at: Its RDP at an order, asked for where the budget has one.

        Returns:
            The receipt, and the data set's account without this run.

        Raises:
            Overspent: It does not fit.
            ArgumentError: This run reserved something else before, or was given back.
            MachineError: The ledger can't be written.
        """
        check_name(request.data_set)
        with self.store.write(create=True) as connection:
            # Of all entries: one whose data set was edited would otherwise just not be found. Once is enough for us.
            unseen = entries_where(connection, schema.entries.c.sequence > self._checked)
            check_seals(unseen, self.shown)
            self._checked = max((entry.sequence for entry in unseen), default=self._checked)
            books = self._books(connection, request.data_set, request.run)
            known = books.runs.pop(request.run, None)
            account = books.account(request.data_set)
            if known is not None:
                check_repeated(known, request)
                return known.reservation.receipt, account
            budget = account.budget
            order = None if budget is None else budget.order
            rdp = None if order is None else rdp_at(order)
            left = account.left()
            if left is not None and not left.holds(request.epsilon, request.delta, rdp):
                raise Overspent(refusal(account, request.epsilon, request.delta, rdp), account)
            entry = append(connection, self.shown, **reservation(request, order, rdp))
        return entry.receipt, account

    def touch(self, run: str) -> Receipt:
        """Says that a model is about to read something private: from here on the run is charged whole.

        Raises:
            ArgumentError: There is no such reservation, or it was given back.
            MachineError: The ledger can't be written.
        """
        with self.store.write() as connection:
            found = self._run(connection, run)
            if found.status in RETURNED:
                raise ArgumentError(f"the reservation of run {run} was {found.status}; start a new run")
            if found.status != "reserved":
                return found.reservation.receipt
            entry = self._lead(connection, found, "touch")
            asked, account = found.reservation.content, self._account(connection, entry.data_set)
            fraction, file = float(asked["holdout_fraction"]), bool(asked["holdout_file"])
            if fraction > account.holdout_fraction or (file and not account.holdout_file):
                details = {"fraction": text_of(fraction), "file": file}
                append(connection, self.shown, kind="holdout", data_set=entry.data_set, run=run, details=details)
        return entry.receipt

    def finish(self, run: str) -> Receipt:
        """Says that a run has ended as planned.

        Raises:
            ArgumentError: It never touched anything, or is not there.
            MachineError: The ledger can't be written.
        """
        with self.store.write() as connection:
            found = self._run(connection, run)
            if found.status == "finished":
                return found.reservation.receipt
            if found.status != TOUCHED:
                raise ArgumentError(f"run {run} is {found.status}: it can't be finished")
            return self._lead(connection, found, "finish").receipt

    def refund(self, run: str) -> Receipt:
        """Gives an untouched run's reservation back.

        Raises:
            ArgumentError: It is not there, or was touched.
            MachineError: The ledger can't be written.
        """
        return self._give_back(run, "refund")

    def void(self, run: str) -> Receipt:
        """What a person does about a reservation that a crash left: gives it back, if nothing was touched.

        Raises:
            ArgumentError: It is not there, or was touched.
            MachineError: The ledger can't be written.
        """
        return self._give_back(run, "void")

    def _give_back(self, run: str, kind: str) -> Receipt:
        with self.store.write() as connection:
            found = self._run(connection, run)
            if found.status in RETURNED:
                if kind == "void":
                    raise ArgumentError(f"the reservation of run {run} was {found.status} already")
                return found.reservation.receipt
            if found.status != "reserved":
                raise ArgumentError(
                    f"run {run} is {found.status}: a model has read private data, so all of it stays charged"
                )
            return self._lead(connection, found, kind).receipt

    def standing(self, run: str, receipt: Receipt) -> RunRow:
        """A run's reservation, which must be the one of this receipt and must not have been given back.

        Raises:
            ArgumentError: It is another one, or none.
            BudgetError: It was given back.
            MachineError: The ledger does not answer, or was edited.
        """
        with self.store.read() as connection:
            if connection is None:
                raise MachineError(f"the ledger {self.shown} is no longer there")
            found = self._books(connection, None, run).runs.get(run)
        if found is None or found.reservation.receipt != receipt:
            raise ArgumentError(f"the ledger {self.shown} does not hold the reservation of run {run}")
        if found.status in RETURNED:
            who = "by a person (uudp ledger void)" if found.status == VOIDED else "before anything private was read"
            raise BudgetError(f"the reservation of run {run} was given back {who}: start a new run")
        return found

    # --- looks ----------------------------------------------------------------------------------------------

    def account(self, data_set: str) -> Account:
        """One data set's account; an empty one where nothing is known of it. Makes nothing.

        Raises:
            MachineError: The ledger does not answer, or was edited.
        """
        with self.store.read() as connection:
            return Account(data_set) if connection is None else self._account(connection, data_set)

    def accounts(self) -> list[Account]:
        """All of them, by name. Makes nothing."""
        with self.store.read() as connection:
            if connection is None:
                return []
            check_end(connection, self.shown)
            found = entries_where(connection)
        check_seals(found, self.shown)
        books = Books.of(found)
        return [books.account(name) for name in sorted(books.accounts)]

    def holdout(self, data_set: str) -> tuple[float, bool]:
        """The largest fraction of users that a run ever held out publicly, and whether those of a file were."""
        account = self.account(data_set)
        return account.holdout_fraction, account.holdout_file

    def verify(self, receipts: Mapping[str, Receipt] | None = None) -> tuple[int, list[str]]:
        """Recomputes everything: every hash, every admission, every receipt.

        Args:
            receipts: What run folders kept, by run id.

        Returns:
            Number of entries, and everything that is wrong; empty for nothing.

        Raises:
            MachineError: The ledger does not answer.
        """
        with self.store.read() as connection:
            found = [] if connection is None else entries_where(connection)
            noted = Receipt(0, schema.GENESIS) if connection is None else head_of(connection)
        problems = chain_problems(found, noted)
        if not problems:  # of what was edited, nothing is worth adding up
            books = Books()
            problems += [f"entry {e.sequence} {wrong}" for e in found if (wrong := books.apply(e)) is not None]
        by_number = {entry.sequence: entry for entry in found}
        for run, receipt in (receipts or {}).items():
            entry = by_number.get(receipt.sequence)
            if entry is None or (entry.run, entry.hash) != (run, receipt.hash):
                problems.append(f"entry {receipt.sequence} is not the one that run {run} has a receipt of")
        return len(found), problems

    # --- inside a transaction -------------------------------------------------------------------------------

    def _books(self, connection: Connection, data_set: str | None, run: str | None = None) -> Books:
        check_end(connection, self.shown)
        column = schema.entries.c
        wanted: list[Any] = [] if data_set is None else [column.data_set == data_set]
        wanted += [] if run is None else [column.run == run]
        found = entries_where(connection, or_(*wanted))
        check_seals(found, self.shown)
        return Books.of(found)

    def _account(self, connection: Connection, data_set: str) -> Account:
        return self._books(connection, data_set).account(data_set)

    def _run(self, connection: Connection, run: str) -> RunRow:
        found = self._books(connection, None, run).runs.get(run)
        if found is None:
            known = [str(e.run) for e in entries_where(connection, schema.entries.c.kind == "reserve")]
            near = suggest(run, known)
            raise ArgumentError(
                f'the ledger {self.shown} has no run "{run}"' + (f'; did you mean "{near}"?' if near else "")
            )
        return found

    def _lead(self, connection: Connection, run: RunRow, kind: str) -> Entry:
        held = run.reservation
        details = {"who": who()}
        return append(connection, self.shown, kind=kind, data_set=held.data_set, run=held.run, details=details)
