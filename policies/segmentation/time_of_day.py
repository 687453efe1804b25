"""Segments by the hours at which a user writes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated

from pydantic import Field, FiniteFloat, field_validator, model_validator

from harness.plugins import OwnRecordsSegmenter, Page, PluginParameters, UserRecords
from policies.segmentation.clock import known_times

Hour = Annotated[int, Field(ge=0, le=24)]
SegmentName = Annotated[str, Field(min_length=1, max_length=200)]
_HOURS = 24
_LARGEST_OFFSET = 14.0


class TimeOfDayParameters(PluginParameters):
    """Parameters of `time_of_day`."""

    parts: dict[SegmentName, tuple[Hour, Hour]] = Field(
        min_length=1,
        max_length=_HOURS,
        description="each part's name, its first hour and the hour at which it is over, as in {night: [22, 6]}; "
        "no hour in two of them",
    )
    share: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="so large a share of the user's records in a part is enough, the first such part in the spec's "
        "order counts; left out: the part that holds most of them",
    )
    utc_offset: Annotated[FiniteFloat, Field(ge=-_LARGEST_OFFSET, le=_LARGEST_OFFSET)] = Field(
        default=0.0, description="hours by which the clock is ahead of UTC, the same for all users and all the year"
    )
    otherwise: SegmentName = Field(default="other", description="segment of users for whom no part counts")
    unknown: SegmentName = Field(default="unknown", description="segment of users of whom no time is known")

    @field_validator("parts")
    @classmethod
    def _apart(cls, parts: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        taken: dict[int, str] = {}
        for name, (begin, end) in parts.items():
            if begin in (end, _HOURS) or end == 0:
                raise ValueError(f'"{name}" must begin at an hour from 0 to 23 and end at another, from 1 to 24')
            for hour in _hours(begin, end):
                if hour in taken:
                    raise ValueError(f'the hour {hour} is in "{taken[hour]}" and in "{name}"')
                taken[hour] = name
        return parts

    @model_validator(mode="after")
    def _whole_minutes(self) -> TimeOfDayParameters:
        if self.utc_offset * 4 != round(self.utc_offset * 4):
            raise ValueError("utc_offset: must be a whole number of quarters of an hour, as 5.5 or -3.75")
        return self


class TimeOfDay(OwnRecordsSegmenter):
    """One segment per part of the day: that in which a user mostly writes, on a clock that is the same for all.

    Use it where hours say something of a person, such as night work or a condition that keeps them awake. With
    `share`, a part counts from that share of the user's records on; without, the part with most of them does (of two
    alike, the first in the spec), records at hours of no part counting for `otherwise`. Parts, share and clock are
    public; which segment a user falls into depends on their records and is private. Costs no privacy. Records of
    which no time is known are left out; a user without any other is in the segment `unknown`. Needs data.time.
    """

    Parameters = TimeOfDayParameters
    parameters: TimeOfDayParameters
    page = Page(
        sees="When the user's own records were written (data.time); no text.",
        when="Hours say something of a person: night work, or a condition that keeps them awake.",
        costs=(
            "No privacy. Which group a user is in becomes private, and weights of the groups must be given or noisy."
        ),
        example=("type: time_of_day\nparts: {night: [22, 6]}\nshare: 0.5\notherwise: day\nunknown: day"),
    )

    @property
    def uses_times(self) -> bool:
        """Always."""
        return True

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts, what is left of the day or of the users, and those who are not known."""
        p = self.parameters
        covered = sum(len(_hours(*part)) for part in p.parts.values()) == _HOURS
        left = () if covered and p.share is None else (p.otherwise,)
        return tuple(dict.fromkeys([*p.parts, *left, p.unknown]))

    def assign(self, user: UserRecords) -> str:
        """The part of the day that counts for the user."""
        p, times = self.parameters, known_times(user)
        if not times:
            return p.unknown
        part_of = {hour: name for name, part in p.parts.items() for hour in _hours(*part)}
        counts = Counter(part_of.get(_hour(time, p.utc_offset)) for time in times)
        if p.share is not None:
            return next((name for name in p.parts if counts[name] / len(times) >= p.share), p.otherwise)
        return max((*p.parts, None), key=lambda name: counts[name]) or p.otherwise


def _hours(begin: int, end: int) -> list[int]:
    """The hours of a part, which may go on beyond midnight."""
    return [hour % _HOURS for hour in range(begin, end if begin < end else end + _HOURS)]


def _hour(time: float, offset: float) -> int:
    """The hour that a clock shows, from 0 to 23."""
    return math.floor((time + offset * 3600) / 3600) % _HOURS
