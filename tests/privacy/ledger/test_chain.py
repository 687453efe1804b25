"""Entries are only appended, and any edit is found: of every column, of every row, on both databases."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from harness.errors import MachineError
from harness.privacy.ledger import Entry, Ledger, Receipt, Request
from harness.privacy.ledger import schema as tables
from harness.privacy.ledger.chain import entries_where
from tests.privacy.ledger.databases import forged

ENTRIES = 11
Asking = Callable[..., Request]


@pytest.fixture
def filled(ledger: Ledger, asking: Asking) -> Ledger:
    """One entry of each kind, and some more."""
    ledger.set_budget("posts", 5.0, 1e-4)
    ledger.set_budget("mails", 5.0, 1e-5, 8.0)
    for run in "abc":
        ledger.reserve(asking(run, holdout_fraction=0.1), lambda order: 0.5)
    ledger.reserve(asking("d", data_set="mails"), lambda order: 0.5)
    ledger.touch("a")  # and its hold-out
    ledger.finish("a")
    ledger.refund("b")
    ledger.void("c")
    assert ledger.verify() == (ENTRIES, [])
    return ledger


def rows(ledger: Ledger) -> list[Entry]:
    with ledger.store.read() as connection:
        assert connection is not None
        return entries_where(connection)


def kept(ledger: Ledger) -> dict[str, Receipt]:
    return {str(e.run): e.receipt for e in rows(ledger) if e.kind == "reserve"}


def other(value: Any) -> Any:
    """Something else than a value, as little else as can be; of a kind, one that could stand in the same place."""
    if value in ("refund", "void"):
        return "void" if value == "refund" else "refund"
    if value is None:
        return ""
    return value + 1000 if isinstance(value, int) else f"{value} "


def test_every_column_of_every_row(filled: Ledger) -> None:
    """Red when a column is left out of what is sealed, or the hash itself is not compared.

    (All but `sequence` and `previous`: what they say is compared with the entry before as well.)
    """
    original = rows(filled)
    assert {e.kind for e in original} == {"budget", "reserve", "touch", "refund", "finish", "void", "holdout"}
    columns = [field.name for field in dataclasses.fields(Entry)]
    for entry in original:
        for column in columns:
            held = getattr(entry, column)
            change = {column: other(held)}
            with forged(filled.store) as connection:
                at = tables.entries.c.sequence
                connection.execute(update(tables.entries).where(at == entry.sequence).values(**change))
            assert filled.verify()[1], (entry.sequence, column)
            with forged(filled.store) as connection:
                now = change["sequence"] if column == "sequence" else entry.sequence
                connection.execute(update(tables.entries).where(at == now).values(**{column: held}))
            assert filled.verify() == (ENTRIES, []), (entry.sequence, column)


@pytest.mark.parametrize("gone", [{1}, {6}, {ENTRIES}, {ENTRIES - 1, ENTRIES}, set(range(1, ENTRIES + 1))])
def test_deleted_rows(filled: Ledger, asking: Asking, gone: set[int]) -> None:
    """The first, one between, the last, the end, all. Red without the head row: a chain cut at its end is a chain."""
    with forged(filled.store) as connection:
        connection.execute(delete(tables.entries).where(tables.entries.c.sequence.in_(gone)))
    assert filled.verify()[1]
    for call in (lambda: filled.account("posts"), lambda: filled.reserve(asking("new"), lambda order: 0.1)):
        with pytest.raises(MachineError, match="was damaged or edited: see uudp ledger verify"):
            call()


def test_the_head_row(filled: Ledger, asking: Asking) -> None:
    with forged(filled.store) as connection:
        held = connection.execute(select(tables.head)).mappings().one()
    for change in ({"entries": ENTRIES - 1}, {"hash": "0" * 64}):
        with forged(filled.store) as connection:
            connection.execute(update(tables.head).values(**change))
        assert filled.verify()[1]
        with forged(filled.store) as connection:
            connection.execute(update(tables.head).values(**held))
    with forged(filled.store) as connection:
        connection.execute(delete(tables.head))
    assert "the note of the last entry is missing" in filled.verify()[1]
    with pytest.raises(MachineError, match="was damaged or edited"):
        filled.reserve(asking("new"), lambda order: 0.1)


def test_swapped_and_inserted_rows(filled: Ledger) -> None:
    """Red when rows are only counted, or hashes are not chained."""
    third, fourth = rows(filled)[2:4]
    column = tables.entries.c.sequence
    with forged(filled.store) as connection:
        for before, after in ((3, 99), (4, 3), (99, 4)):
            connection.execute(update(tables.entries).where(column == before).values(sequence=after))
    assert filled.verify()[1]
    with forged(filled.store) as connection:
        for before, after in ((3, 99), (4, 3), (99, 4)):
            connection.execute(update(tables.entries).where(column == before).values(sequence=after))
    assert rows(filled)[2:4] == [third, fourth]
    assert filled.verify() == (ENTRIES, [])
    last = rows(filled)[-1]
    draft = dataclasses.replace(last, sequence=ENTRIES + 1, kind="void", run="d", data_set="mails", previous=last.hash)
    more = dataclasses.replace(draft, hash=draft.sealed())
    with forged(filled.store) as connection:
        connection.execute(insert(tables.entries).values(**dataclasses.asdict(more)))
    assert filled.verify()[1] == [f"the ledger should end with entry {ENTRIES} as it was noted, and does not"]


def test_one_row_that_was_sealed_again(filled: Ledger) -> None:
    """Whole by itself, it is not what the next one follows. Red when entries are not compared with their neighbours."""
    third = rows(filled)[2]
    draft = dataclasses.replace(third, epsilon="0.0")
    with forged(filled.store) as connection:
        values = {"epsilon": "0.0", "hash": draft.sealed()}
        connection.execute(update(tables.entries).where(tables.entries.c.sequence == 3).values(**values))
    assert filled.verify()[1] == ["entry 4 does not follow the one before it"]


def rewritten(ledger: Ledger, change: Callable[[Entry], Entry | None]) -> None:
    """What somebody does who knows the format: edits, and seals everything again, the head row too."""
    previous, made = tables.GENESIS, []
    for entry in rows(ledger):
        edited = change(entry)
        if edited is not None:
            draft = dataclasses.replace(edited, sequence=len(made) + 1, previous=previous)
            made.append(dataclasses.replace(draft, hash=draft.sealed()))
            previous = made[-1].hash
    with forged(ledger.store) as connection:
        connection.execute(delete(tables.entries))
        connection.execute(insert(tables.entries), [dataclasses.asdict(entry) for entry in made])
        connection.execute(update(tables.head).values(entries=len(made), hash=previous))


def test_receipts_find_a_chain_that_was_sealed_again(filled: Ledger) -> None:
    """A rewritten chain is whole by itself; what run folders kept gives it away. Red when receipts are not compared."""
    receipts = kept(filled)
    assert filled.verify(receipts) == (ENTRIES, [])
    rewritten(filled, lambda e: None if e.run == "c" else e)
    assert filled.verify()[1] == []
    count, problems = filled.verify(receipts)
    assert count == ENTRIES - 2
    assert any("is not the one that run c has a receipt of" in p for p in problems)


def test_what_never_could_have_been_appended(filled: Ledger) -> None:
    """Sealed again, but against the rules. Red when entries are not added up again."""

    def cheaper(entry: Entry) -> Entry:
        return dataclasses.replace(entry, epsilon="0.5") if entry.sequence == 1 else entry

    rewritten(filled, cheaper)
    assert filled.verify()[1] == [f"entry {n} spends more than its budget had left" for n in (3, 4, 5)]
    rewritten(filled, lambda e: dataclasses.replace(e, kind="budgit") if e.sequence == 1 else e)
    assert "entry 1 is of no known kind" in filled.verify()[1]
    rewritten(filled, lambda e: None if e.kind == "touch" else e)
    assert any("is a finish that could not be" in problem for problem in filled.verify()[1])


def test_an_edited_entry_admits_nothing_more(filled: Ledger, asking: Asking) -> None:
    """Red when only the end of the chain is looked at before a run is admitted."""
    with forged(filled.store) as connection:
        connection.execute(update(tables.entries).where(tables.entries.c.sequence == 1).values(epsilon="500.0"))
    with pytest.raises(MachineError, match="was edited at entry 1: see uudp ledger verify"):
        filled.reserve(asking("new"), lambda order: 0.1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET epsilon = '0.0' WHERE sequence = 3",
        "DELETE FROM ledger_entries WHERE sequence = 11",
        "DELETE FROM ledger_entries",
    ],
)
def test_the_database_refuses_changes(filled: Ledger, statement: str) -> None:
    """Red without the triggers."""
    before = rows(filled)
    with (
        pytest.raises(DBAPIError, match="entries of the ledger are only appended"),
        filled.store.engine.begin() as connection,
    ):
        connection.execute(text(statement))
    assert rows(filled) == before


def test_rows_are_not_replaced(filled: Ledger) -> None:
    """SQLite's REPLACE and PostgreSQL's TRUNCATE go past triggers on DELETE. Red without the triggers for them."""
    columns = {**dataclasses.asdict(rows(filled)[2]), "epsilon": "0.0"}
    replacing: Any = text("TRUNCATE ledger_entries")
    if filled.address.path is not None:
        replacing = insert(tables.entries).prefix_with("OR REPLACE").values(**columns)
    with pytest.raises(DBAPIError, match="only appended"), filled.store.engine.begin() as connection:
        connection.execute(replacing)
    assert filled.verify() == (ENTRIES, [])


def test_what_is_written(filled: Ledger) -> None:
    """Amounts are the shortest decimals; nothing is in there but names, numbers and who did it."""
    entry = rows(filled)[2]
    assert (entry.kind, entry.epsilon, entry.delta, entry.run) == ("reserve", "1.0", "1e-06", "a")
    details = json.loads(entry.details)
    assert set(details) == {"steps", "mechanism", "spec", "who", "holdout_fraction", "holdout_file"}
    assert "@" in details["who"]
