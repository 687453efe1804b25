"""When a record was written: every source's values become seconds since 1970 (UTC)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

SECONDS_PER_DAY = 86_400
FIRST, LAST = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999, as seconds since 1970; the last is the first that is no more among them."""

_EPOCH = datetime(1970, 1, 1)
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_ISO = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"(?:[Tt ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<part>[0-9]{1,12}))?)?"
    r" ?(?P<zone>[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?)?",
    re.ASCII,
)
_ZONE = re.compile(r"([+-])([0-9]{2}):?([0-9]{2})?", re.ASCII)
_OUTSIDE = "the time lies outside the years 1 to 9999 (numbers are seconds since 1970)"
_UNREADABLE = "the time is neither ISO 8601, as 2026-01-31T12:00:00Z, nor a number of seconds since 1970"


@dataclass(frozen=True)
class Moment:
    """A timestamp or date of an Arrow column, which Python's own types can't always hold. Private.

    Attributes:
        seconds: Since 1970 (UTC); not checked.
    """

    seconds: float


def time_of(value: object) -> tuple[float | None, str]:
    """Reads when a record was written.

    A text is ISO 8601 (without a zone: UTC; a date alone: its first second), or a number; a number is seconds since
    1970, never milliseconds. None, an empty text and NaN, which is how a gap is written among numbers, are no time.

    Returns:
        Seconds since 1970 and "", or None and what is wrong; None and "" where there is no value. What is wrong never
        quotes the value.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None, ""
        if not _NUMBER.fullmatch(text):
            return _written(text)
        value = float(text)
        if math.isinf(value):
            return None, _OUTSIDE
    return _valued(value)


def _valued(value: object) -> tuple[float | None, str]:
    """Reads what is no text."""
    if isinstance(value, Moment):
        value = value.seconds
    if value is None:
        return None, ""
    if isinstance(value, bool):
        return None, _UNREADABLE
    if value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value):
        return None, ""
    if isinstance(value, int | float | Decimal):
        # Compared as it is: what is far too large is no float.
        return (float(value), "") if FIRST <= value < LAST else (None, _OUTSIDE)
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, date):
        return float((value - _EPOCH.date()).days * SECONDS_PER_DAY), ""
    return None, _UNREADABLE


def _moment(value: datetime) -> tuple[float | None, str]:
    if value != value:  # noqa: PLR0124  # pandas' NaT, which is a datetime
        return None, ""
    return _inside((value.replace(tzinfo=None) - _EPOCH - (value.utcoffset() or timedelta())).total_seconds())


def _written(text: str) -> tuple[float | None, str]:
    """Reads ISO 8601: calendar dates in the extended format, by rules that no version of Python changes."""
    found = _ISO.fullmatch(text)
    if found is None:
        return None, _UNREADABLE
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    zone = _zone(found["zone"])
    # A leap second is written as the 60th of its minute; the clock that counts from 1970 has none.
    if hour > 23 or minute > 59 or second > 60 or zone is None:
        return None, _UNREADABLE
    try:
        day = date(int(found["year"]), int(found["month"]), int(found["day"]))
    except ValueError:
        return None, _UNREADABLE
    days = (day - _EPOCH.date()).days
    whole = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + min(second, 59) - zone
    return _inside(float(Decimal(f"{whole}") + Decimal(f"0.{found['part'] or 0}")))


def _zone(text: str | None) -> int | None:
    """Seconds ahead of UTC; None: there is no such zone."""
    if text is None or text in "Zz":
        return 0
    found = _ZONE.fullmatch(text)
    assert found is not None
    hours, minutes = int(found[2]), int(found[3] or 0)
    if hours > 23 or minutes > 59:
        return None
    return (hours * 3600 + minutes * 60) * (-1 if found[1] == "-" else 1)


def _inside(seconds: float) -> tuple[float | None, str]:
    return (seconds, "") if FIRST <= seconds < LAST else (None, _OUTSIDE)
