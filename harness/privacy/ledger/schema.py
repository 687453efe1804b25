"""The tables of a ledger, and how they came to be: a list of steps, each of which makes one version of the next.

Entries are only appended; triggers of the database refuse everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, update

from harness.errors import MachineError

metadata = MetaData()
entries = Table(
    "ledger_entries",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("data_set", Text, nullable=False, index=True),
    Column("run", Text, index=True),
    Column("epsilon", Text),
    Column("delta", Text),
    Column("renyi_order", Text),
    Column("rdp", Text),
    Column("details", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
head = Table(
    "ledger_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("entries", Integer, nullable=False),
    Column("hash", Text, nullable=False),
)
version = Table(
    "ledger_schema",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)
GENESIS = "0" * 64
"""What the first entry has in place of the hash of one before it."""

KEPT = "entries of the ledger are only appended"
_TRIGGERS = {
    "sqlite": (
        f"CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger_entries BEGIN SELECT RAISE(ABORT, '{KEPT}'); END",
        f"CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger_entries BEGIN SELECT RAISE(ABORT, '{KEPT}'); END",
        # INSERT OR REPLACE deletes without telling the trigger above.
        "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger_entries "
        "WHEN EXISTS (SELECT 1 FROM ledger_entries WHERE sequence = NEW.sequence) "
        f"BEGIN SELECT RAISE(ABORT, '{KEPT}'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$body$ BEGIN RAISE EXCEPTION '{KEPT}'; END $body$",
        "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger_entries "
        "FOR EACH ROW EXECUTE FUNCTION ledger_refuse()",
        "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()",
    ),
}


def _tables(connection: Connection) -> None:
    metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(head).values(id=1, entries=0, hash=GENESIS))
    connection.execute(insert(version).values(id=1, version=0))


def _triggers(connection: Connection) -> None:
    for statement in _TRIGGERS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


Step = Callable[[Connection], None]
MIGRATIONS: tuple[Step, ...] = (_tables, _triggers)
"""The step at index k makes version k + 1 of version k. A step that was released is never changed."""

_TABLE = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{}'",
    "postgresql": "SELECT 1 WHERE to_regclass('{}') IS NOT NULL",
}
DAMAGED = -1
"""In place of a version: there are tables of a ledger, and not what says their version."""


def _has(connection: Connection, table: Table) -> bool:
    return connection.exec_driver_sql(_TABLE[connection.dialect.name].format(table.name)).first() is not None


def version_of(connection: Connection) -> int:
    """The version of the tables; 0 where there are none, `DAMAGED` where they are not whole."""
    there = [_has(connection, table) for table in (version, entries, head)]
    if not any(there):
        return 0
    if not all(there):
        return DAMAGED
    # Typed by nobody: SQLite keeps whatever was written.
    found = connection.exec_driver_sql(f"SELECT version FROM {version.name}").scalars().all()
    return found[0] if len(found) == 1 and type(found[0]) is int and found[0] > 0 else DAMAGED


def check_version(found: int, steps: Sequence[Step], shown: str) -> None:
    """Refuses what a later version of uudp made, and tables that are not whole.

    Raises:
        MachineError: It was, or they are not.
    """
    if found == DAMAGED:
        raise MachineError(f"the ledger {shown} was damaged or edited: its tables are not whole")
    if found > len(steps):
        raise MachineError(
            f"the ledger {shown} has version {found}, made by a newer uudp; this one knows {len(steps)}: update uudp"
        )


def migrate(connection: Connection, shown: str, steps: Sequence[Step] = MIGRATIONS) -> None:
    """Brings the tables to the newest version, in the caller's transaction, which must be the only one that writes.

    Raises:
        MachineError: They are newer than that.
    """
    found = version_of(connection)
    check_version(found, steps, shown)
    for step in steps[found:]:
        step(connection)
    if found < len(steps):
        connection.execute(update(version).values(version=len(steps)))
