"""The URL of a ledger: what one may look like, said without importing a database library."""

from __future__ import annotations

import unicodedata
from urllib.parse import parse_qsl, urlsplit

DEFAULT_LEDGER = "default"
"""In a spec: the ledger that ``UUDP_LEDGER`` names, else the SQLite file below."""
DEFAULT_FILE = "sqlite:///~/.uudp/ledger.db"
DRIVERS = {"sqlite": ("", "pysqlite"), "postgresql": ("", "psycopg")}
"""Which databases a ledger can lie in, and which of SQLAlchemy's drivers speak to them."""
SHAPES = "sqlite:///FILE or postgresql://HOST/DATABASE"


def ledger_problem(url: str) -> str | None:
    """What is wrong with a ledger's URL, if anything. Never quotes it: it may hold a password.

    Args:
        url: As somebody gave it; `DEFAULT_LEDGER` is none.
    """
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in url) or url != url.strip():
        return "holds blanks at an end, or control characters"
    scheme, mark, rest = url.partition("://")
    dialect, _, driver = scheme.partition("+")
    if not mark:
        return f"must be a URL, {SHAPES}"
    if dialect not in DRIVERS:
        near = '; did you mean "postgresql"?' if dialect == "postgres" else ""
        return f"must be {SHAPES}{near}"
    if driver not in DRIVERS[dialect]:
        return f"only the driver {DRIVERS[dialect][1]} is known for {dialect}; leave it out"
    return _sqlite_problem(rest) if dialect == "sqlite" else _postgresql_problem(url)


def _sqlite_problem(rest: str) -> str | None:
    if not rest.startswith("/"):
        return "has three slashes before a file: sqlite:///FILE (four, where the file's path begins with one)"
    path = rest[1:].partition("?")[0]
    if not path or path == ":memory:" or path.startswith("file:") or path.endswith("/"):
        return "must name a file, which is kept"
    return "takes no parameters" if "?" in rest else None


def _postgresql_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        found = parts.port
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        return f"can't be read as a URL, {SHAPES}"
    return "has no such port" if found == 0 else None


def holds_password(url: str) -> bool:
    """Whether a ledger's URL (one without a problem) holds a password."""
    parts = urlsplit(url)
    return bool(parts.password) or any("password" in key for key, _ in parse_qsl(parts.query))
