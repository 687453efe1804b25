"""Transactions on a ledger's database: one writer at a time, whole or not at all; every failure is one line."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from harness.errors import MachineError
from harness.privacy.ledger.address import Address
from harness.privacy.ledger.schema import MIGRATIONS, Step, check_version, migrate, version_of

LOCK = 7_593_021_404_152_001
"""PostgreSQL's advisory lock of all ledgers in one database."""
PATIENCE = 30.0
"""Seconds that a write waits for others to finish theirs."""


class Store:
    """A ledger's database. Connections last for one transaction: a file that was moved away is noticed."""

    def __init__(
        self, address: Address, *, patience: float = PATIENCE, migrations: tuple[Step, ...] = MIGRATIONS
    ) -> None:
        self.address, self.patience, self.migrations = address, patience, migrations
        self.engine = self._engine()

    @contextlib.contextmanager
    def write(self, *, create: bool = False) -> Iterator[Connection]:
        """One transaction that is alone in writing; committed at the end, or not at all.

        Args:
            create: Whether it may make the ledger where there is none.

        Raises:
            MachineError: The database can't be reached, or refuses.
        """
        if create:
            self.address.create_file()
        with self._explained(), self.engine.connect() as connection:
            self._begin(connection, alone=True)
            if not create and version_of(connection) == 0:
                raise MachineError(f"the ledger {self.address.shown} is no longer there")
            migrate(connection, self.address.shown, self.migrations)
            yield connection
            connection.commit()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection | None]:
        """One consistent look.

        Yields:
            The connection; None where no ledger was made yet. It is not made for a look.

        Raises:
            MachineError: The database can't be reached.
        """
        if self.address.missing:
            yield None
            return
        with self._explained(), self.engine.connect() as connection:
            self._begin(connection, alone=False)
            found = version_of(connection)
            check_version(found, self.migrations, self.address.shown)
            yield connection if found else None
            connection.rollback()

    def _engine(self) -> Engine:
        address = self.address
        if address.path is None:
            wait = {"connect_timeout": 10} if "connect_timeout" not in address.url.query else {}
            try:
                return create_engine(address.url, poolclass=NullPool, connect_args={**wait}, hide_parameters=True)
            except ImportError:
                raise MachineError(
                    'a ledger in PostgreSQL needs the package psycopg: pip install "uudp[postgres]"'
                ) from None
        # Never made here: only `create_file` does, readable by the owner alone.
        uri = f"file:{quote(str(address.path))}?mode=rw"

        def connect() -> Any:
            return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=self.patience)

        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)

        @event.listens_for(engine, "connect")
        def durable(connection: sqlite3.Connection, _: object) -> None:
            # A rollback journal: one file, safe on a kill and on network file systems that have locks.
            connection.execute("PRAGMA synchronous = EXTRA")

        return engine

    def _begin(self, connection: Connection, *, alone: bool) -> None:
        if self.address.path is not None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if alone else "BEGIN")
        elif alone:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(self.patience * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the database says into one line without a password."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise MachineError(f"the ledger {self.address.shown} {self._why(error)}") from None

    def _why(self, error: Exception) -> str:
        said = str(getattr(error, "orig", None) or error).strip()
        known = {
            "unable to open database file": "can't be opened, or is no longer there",
            "is not a database": "is damaged, or no SQLite database",
            "malformed": "is damaged",
            "database is locked": "is locked by another process",
            "lock timeout": "is locked by another process",
            "readonly database": "can't be written",
            "disk is full": "can't be written: the disk is full",
        }
        for part, meaning in known.items():
            if part in said:
                return meaning
        line = " ".join(said.splitlines()[0].split()) if said else type(error).__name__
        password = self.address.url.password
        return f"does not answer: {line.replace(str(password), '***') if password else line}"
