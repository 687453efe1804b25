"""Where a ledger lies: its URL as it is used, and as it may be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError as WrongUrl

from harness.errors import ArgumentError, MachineError
from harness.files import private_folder
from harness.spec.ledger_url import DEFAULT_FILE, DEFAULT_LEDGER, SHAPES, ledger_problem

VARIABLE = "UUDP_LEDGER"


@dataclass(frozen=True)
class Address:
    """Where a ledger lies.

    Attributes:
        url: What SQLAlchemy connects to; may hold a password, and is never shown.
        path: The file of an SQLite ledger, absolute; None for PostgreSQL.
        shown: The URL without its password, and with ``~`` for the home folder.
    """

    url: URL
    path: Path | None
    shown: str

    def __repr__(self) -> str:
        return f"Address({self.shown})"

    @property
    def missing(self) -> bool:
        """Whether this is a file that is not there.

        Raises:
            MachineError: That can't be seen.
        """
        try:
            return self.path is not None and not self.path.exists()
        except OSError as error:  # of a folder that is closed to us, or a name that is too long
            raise MachineError(f"the ledger {self.shown} can't be opened: {error.strerror}") from None

    def create_file(self) -> None:
        """Makes the file of an SQLite ledger (0600, in a folder of 0700) unless it is there.

        Raises:
            MachineError: It can't be made.
        """
        if self.path is None or not self.missing:
            return
        try:
            private_folder(self.path.parent)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise MachineError(f"the ledger {self.shown} can't be made: {error.strerror}") from None


def locate(url: str | None, base: Path | None = None) -> Address:
    """The ledger that a URL means.

    Args:
        url: From a spec or a command line; None or ``default``: what ``UUDP_LEDGER`` says, else the SQLite file in
            the home folder.
        base: Folder of the spec, to which an SQLite file is relative; None: the current one.

    Raises:
        ArgumentError: It is no URL of a ledger. The message does not quote it.
    """
    where = "the ledger's URL"
    if url is None or url == DEFAULT_LEDGER:
        given, base = os.environ.get(VARIABLE), None
        where, url = (VARIABLE, given) if given else (where, DEFAULT_FILE)
    if problem := ledger_problem(url):
        raise ArgumentError(f"{where} {problem}" if problem.startswith("has") else f"{where}: {problem}")
    try:
        parsed = make_url(url)
    except (WrongUrl, ValueError):
        raise ArgumentError(f"{where}: can't be read as a URL, {SHAPES}") from None
    if parsed.drivername.startswith("postgresql"):
        return Address(parsed.set(drivername="postgresql+psycopg"), None, _shown(parsed))
    assert parsed.database is not None
    try:
        path = Path(parsed.database).expanduser()
    except RuntimeError:
        raise ArgumentError(f"{where}: no such home folder") from None
    path = Path(os.path.abspath((base or Path.cwd()) / path))
    return Address(URL.create("sqlite", database=str(path)), path, f"sqlite:///{_below_home(path)}")


def _shown(url: URL) -> str:
    query = {key: "***" if "password" in key else value for key, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def _below_home(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)
