"""When a made user writes: sittings of a few records, on the days and at the hours that are the user's own."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

from harness.data.synthetic.draws import Draws, Stream
from harness.data.synthetic.parameters import TimesParameters

_DAY, _HOUR = 86_400, 3600
_NIGHT, _MORNING = 22, 6
_SITTING = 2 * _HOUR
"""Seconds that a sitting takes at most: one that begins early enough ends before its day, or the night, is over."""


class Habits(NamedTuple):
    """When a user writes at all.

    Attributes:
        night: At night, between 22 and 6 o'clock; else by day.
        lapsed: Not in the second half of the days.
    """

    night: bool
    lapsed: bool


def habits_of(draws: Draws, parameters: TimesParameters, i: int) -> Habits:
    """The habits of user i."""
    night = draws.fraction("writes at night", i) < parameters.night
    return Habits(night, draws.fraction("lapsed", i) < parameters.lapsed)


def moments(draws: Draws, parameters: TimesParameters, i: int, records: int) -> list[int]:
    """When user i writes so many records: seconds since 1970, rising."""
    habits, stream = habits_of(draws, parameters, i), draws.stream("times", i)
    end = (parameters.until - date(1970, 1, 1)).days + 1
    first = end - parameters.days
    # Of one day there is no half: those who lapsed write in it.
    last = first + max(1, parameters.days // 2) if habits.lapsed else end
    found: list[int] = []
    while len(found) < records:
        begin = (first + stream.below(last - first)) * _DAY + _clock(stream, habits)
        found += _sitting(stream, parameters.session, begin, records - len(found))
    return sorted(found)


def _clock(stream: Stream, habits: Habits) -> int:
    """When of the day a sitting begins, in seconds; a night lies on the day's two ends."""
    if not habits.night:
        return _MORNING * _HOUR + stream.below((_NIGHT - _MORNING) * _HOUR - _SITTING)
    hours = 24 - _NIGHT + _MORNING
    place = _NIGHT * _HOUR + stream.below(hours * _HOUR - _SITTING)
    return place % _DAY if place % _DAY + _SITTING <= _DAY else (_DAY - _SITTING)


def _sitting(stream: Stream, mean: float, begin: int, most: int) -> list[int]:
    """The records of one sitting."""
    found = [begin]
    while len(found) < most and stream.chance(1 - 1 / mean):
        following = found[-1] + 60 + stream.below(9 * 60)
        if following - begin > _SITTING:
            break
        found.append(following)
    return found
