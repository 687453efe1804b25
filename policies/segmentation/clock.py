"""What segmentations have in common that look at when a user wrote."""

from __future__ import annotations

import math

from harness.plugins import UserRecords

SECONDS_PER_DAY = 86_400


def known_times(user: UserRecords) -> list[float]:
    """When the user's records were written, in seconds since 1970 (UTC), rising; without those that are not known."""
    return sorted(time for time in user.times if time is not None)


def day_of(time: float) -> int:
    """The number of a moment's day in UTC, counted from 1970."""
    return math.floor(time / SECONDS_PER_DAY)
