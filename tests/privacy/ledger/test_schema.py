"""Tables that many processes make and migrate at once; versions that are known and that are not."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, inspect, text, update

from harness.errors import MachineError
from harness.privacy.ledger import Ledger, Request
from harness.privacy.ledger import schema as tables
from harness.privacy.ledger.store import Store

Asking = Callable[..., Request]
SPAWN = multiprocessing.get_context("spawn")


def first(url: str, run: str, start: Any) -> None:
    """The first call of a process: makes or migrates the tables, and reserves."""
    start.wait()
    Ledger(url).reserve(Request(run, "posts", 1.0, 1e-6, 1, "d", "tiny"), lambda order: 1.0)


def at_once(url: str, processes: int) -> None:
    start = SPAWN.Barrier(processes)
    started = [SPAWN.Process(target=first, args=(url, f"r{n}", start)) for n in range(processes)]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    assert [one.exitcode for one in started] == [0] * processes


def old(url: str) -> Ledger:
    """A ledger of version 1, which had no triggers."""
    ledger = Ledger(url)
    ledger.store = Store(ledger.address, migrations=tables.MIGRATIONS[:1])
    return ledger


def test_made_by_eight_at_once(url: str) -> None:
    """Red when the tables are looked for outside the transaction that makes them."""
    at_once(url, 8)
    assert Ledger(url).verify() == (8, [])


def test_migrated_by_eight_at_once(url: str, asking: Asking) -> None:
    """Version 1 → 2: entries stay as they are, and can't be changed any more. Red when a step runs twice or never."""
    before = old(url)
    before.set_budget("posts", 9.0, 1e-4)
    before.reserve(asking("old"), lambda order: 1.0)
    with before.store.engine.begin() as connection:
        assert tables.version_of(connection) == 1
        connection.execute(update(tables.entries).where(tables.entries.c.sequence == 99).values(kind="x"))
    assert Ledger(url).account("posts").spent_epsilon == 1  # a look migrates nothing
    at_once(url, 8)
    now = Ledger(url)
    assert now.verify() == (10, [])
    with now.store.engine.connect() as connection:
        assert tables.version_of(connection) == 2
    with pytest.raises(Exception, match="only appended"), now.store.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_entries SET kind = 'x'"))


def test_a_migration_that_fails_leaves_the_old_version(url: str, asking: Asking) -> None:
    """Red when a step is committed by itself."""
    ledger = old(url)
    ledger.reserve(asking("a"), lambda order: 1.0)

    def half(connection: Any) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")

    def failing(connection: Any) -> None:
        connection.exec_driver_sql("SELECT nonsense FROM nowhere")

    newer = Ledger(url)
    newer.store = Store(newer.address, migrations=(*tables.MIGRATIONS[:1], half, failing))
    with pytest.raises(MachineError):
        newer.reserve(asking("b"), lambda order: 1.0)
    with ledger.store.engine.connect() as connection:
        assert tables.version_of(connection) == 1
        assert "half" not in inspect(connection).get_table_names()
    ledger.reserve(asking("b"), lambda order: 1.0)
    assert ledger.verify() == (2, [])


def test_a_newer_ledger_is_refused(url: str, asking: Asking) -> None:
    ledger = Ledger(url)
    ledger.reserve(asking("a"), lambda order: 1.0)
    with ledger.store.engine.begin() as connection:
        connection.execute(update(tables.version).values(version=3))
    for call in (lambda: ledger.account("posts"), lambda: ledger.touch("a"), ledger.verify):
        with pytest.raises(MachineError, match="has version 3, made by a newer uudp; this one knows 2: update uudp"):
            call()


def test_another_programs_file_keeps_its_tables(tmp_path: Path, asking: Asking) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    ledger = Ledger(f"sqlite:///{path}")
    assert ledger.account("posts").runs == ()
    ledger.reserve(asking("a"), lambda order: 1.0)
    assert ledger.verify() == (1, [])
    assert sqlite3.connect(path).execute("SELECT * FROM theirs").fetchall() == []


# --- kill -9 between any two statements ---------------------------------------------------------------------


def killed(url: str, call: str, run: str, statement: int) -> None:
    """One call, in a process that is killed right before its n-th statement; a later number kills after the last."""
    ledger, seen = Ledger(url), 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(ledger.store.engine, "before_cursor_execute", count)
    event.listen(ledger.store.engine, "commit", count)
    if call == "reserve":
        ledger.reserve(Request(run, "posts", 1.0, 1e-6, 1, "d", "tiny", 0.1), lambda order: 1.0)
    else:
        getattr(ledger, call)(run)
    os._exit(7)


@pytest.mark.parametrize("call", ["reserve", "touch", "refund"])
def test_a_kill_between_any_two_statements(url: str, call: str) -> None:
    """All of a transaction happened or nothing of it, and what was reserved stands. Red when a call commits twice."""
    ledger, fork = Ledger(url), multiprocessing.get_context("fork")
    ledger.set_budget("posts", 100.0, 1e-2)
    statement, codes, stood = 0, [], []
    while not codes or codes[-1] != 7:
        statement += 1
        run = f"r{statement}"
        if call != "reserve":
            ledger.reserve(Request(run, "posts", 1.0, 1e-6, 1, "d", "tiny", 0.1), lambda order: 1.0)
        child = fork.Process(target=killed, args=(url, call, run, statement))
        child.start()
        child.join(60)
        codes.append(child.exitcode)
        assert ledger.verify()[1] == []
        found = [r.status for r in ledger.account("posts").runs if r.reservation.run == run]
        stood.append(found[0] if found else None)
    assert len(codes) > 5
    assert set(codes[:-1]) == {-signal.SIGKILL}
    before, after = {
        "reserve": (None, "reserved"),
        "touch": ("reserved", "touched"),
        "refund": ("reserved", "refunded"),
    }[call]
    assert stood == [before] * (len(codes) - 1) + [after]


@pytest.mark.parametrize(
    "edit",
    [
        "DROP TABLE ledger_schema",
        "DROP TABLE ledger_head",
        "DROP TABLE ledger_entries",
        "DELETE FROM ledger_schema",
        "UPDATE ledger_schema SET version = 'abc'",
        "UPDATE ledger_head SET entries = 'x'",
    ],
)
def test_tables_that_are_not_whole(tmp_path: Path, edit: str) -> None:
    """Never "intact", and no traceback. Red when the absence of `ledger_schema` alone says that there is no ledger."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    ledger.set_budget("posts", 9.0, 1e-4)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute(edit)
    with pytest.raises(MachineError, match="damaged or edited"):
        ledger.account("posts")
    with pytest.raises(MachineError, match="damaged or edited"):
        ledger.set_budget("posts", 99.0, 1e-4)
    with contextlib.suppress(MachineError):
        assert ledger.verify()[1]


def test_spending_moved_to_another_name(tmp_path: Path, asking: Asking) -> None:
    """Nothing is admitted beside it. Red when only the entries of the asked data set are looked at."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.set_budget("posts", 9.0, 1e-4)
    ledger.reserve(asking("first"), lambda order: 1.0)
    ledger.set_budget("other", 9.0, 1e-4)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DROP TRIGGER ledger_no_update")
        database.execute("UPDATE ledger_entries SET data_set = 'third' WHERE kind = 'reserve'")
    with pytest.raises(MachineError, match="was edited at entry 2"):
        ledger.reserve(asking("second"), lambda order: 1.0)
