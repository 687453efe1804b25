"""Guesses which column says when a record was written, for ``uudp init``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.times import time_of

_TELLING = {"time", "timestamp", "ts", "datetime", "date", "created", "written", "posted", "sent", "published"}
_OTHERS = {"birth", "born"}
_RECENT = (631_152_000.0, 4_102_444_800.0)
"""The years 1990 to 2099: a number that is the time of somebody's record lies there."""


def time_column(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], user: str) -> str | None:
    """The column that is plainly the time of a record, and not one of the user; None: there is none.

    Args:
        rows: The first ones.
        columns: Those that it may be.
        user: The column of the user.
    """
    likely = [column for column in columns if _holds_times(rows, column) and _is_of_records(rows, column, user)]
    return next((column for column in likely if _telling(column)), likely[0] if likely else None)


def _telling(column: str) -> bool:
    words = set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower().replace("-", "_").split("_"))
    return bool(words & _TELLING) and not words & _OTHERS


def _holds_times(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether all values are times; numbers are only where the column is called so."""
    given = [(value, *time_of(value)) for row in rows if (value := row.get(column)) is not None]
    values = [value for value, time, problem in given if time is not None or problem]
    found = [time for _, time, problem in given if time is not None or problem]
    if 2 * len(values) < len(rows) or None in found:
        return False
    numbers = any(isinstance(v, int | float) or (isinstance(v, str) and "-" not in v[1:]) for v in values)
    recent = all(time is not None and _RECENT[0] <= time < _RECENT[1] for time in found)
    return not numbers or (recent and _telling(column))


def _is_of_records(rows: Sequence[Mapping[str, Any]], column: str, user: str) -> bool:
    """Whether it differs between records of one user; where nobody has two, its name alone must tell."""
    of_user: dict[str, set[str]] = {}
    for row in rows:
        of_user.setdefault(str(row.get(user)), set()).add(str(row.get(column)))
    if len(of_user) == len(rows):
        return _telling(column)
    return any(len(values) > 1 for values in of_user.values())
