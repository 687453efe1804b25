"""A real PostgreSQL server of the tests' own, from the system's packages."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection

from harness.privacy.ledger.store import Store
from tests.conftest import require


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class Server:
    """A server on a socket in a folder of its own. Commits are not flushed: a test that needs that says so."""

    def __init__(self) -> None:
        programs = _programs()
        require(programs and (programs / "initdb").exists(), "PostgreSQL was not found (initdb)")
        assert programs is not None
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="uudp-pg-"))  # a socket's path is short
        self.owner: Sequence[str] = ()
        if os.getuid() == 0:  # which PostgreSQL refuses
            name = next((n for n in ("postgres", "nobody") if _user(n)), None)
            require(name, "PostgreSQL does not run as root, and there is no other user")
            user = pwd.getpwnam(str(name))
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.owner = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
        self.data, self.databases = self.folder / "data", 0
        self._call("initdb", "-D", str(self.data), "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self.owner, str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=60"
        log = str(self.folder / "log")
        self._call("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._call("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        self.databases += 1
        name = f"books{self.databases}"
        with psycopg.connect(host=str(self.folder), user="tester", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://tester@/{name}?host={self.folder}"

    def remove(self) -> None:
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@contextlib.contextmanager
def forged(store: Store) -> Iterator[Connection]:
    """A transaction of somebody who has taken the triggers away."""
    with store.write() as connection:
        if connection.dialect.name == "sqlite":
            for name in ("ledger_no_update", "ledger_no_delete", "ledger_no_replace"):
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        else:
            for name in ("ledger_no_change", "ledger_no_truncate"):
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON ledger_entries")
        yield connection
