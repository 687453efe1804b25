"""Segments by how long ago a user last wrote."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import Field

from harness.plugins import OwnRecordsSegmenter, Page, UserRecords
from policies.segmentation.clock import day_of, known_times
from policies.segmentation.edges import EdgesParameters, stretch_of, stretches


class RecencyParameters(EdgesParameters):
    """Parameters of `recency`."""

    as_of: date = Field(
        description="the day up to which is counted, as 2026-01-31: a constant of yours, not the newest day in the "
        "data, which is somebody's record"
    )
    unknown: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default="unknown", description="segment of users of whom no time is known; it may be one of the others"
    )


class Recency(OwnRecordsSegmenter):
    """One segment per stretch of days between a user's last record and a public day, `as_of`, both in UTC.

    Use it where what you promise depends on whether somebody is still there, such as more protection for those who
    left. A last record on `as_of` itself, or later, is 0 days ago. Edges and `as_of` are public; which segment a user
    falls into depends on their records and is private. Costs no privacy. A user of whom no time is known is in the
    segment `unknown`. Needs data.time.
    """

    Parameters = RecencyParameters
    parameters: RecencyParameters
    page = Page(
        formula="days = ⌊as_of − the day of the user's last record⌋, at least 0",
        sees="When the user's own records were written (data.time); no text.",
        when="What you promise depends on whether somebody is still there, such as more protection for those who left.",
        costs=(
            "No privacy. Which group a user is in becomes private, and weights of the groups must be given or noisy."
        ),
        example=("type: recency\nas_of: 2026-01-31\nedges: [30, 180]\nnames: [active, quiet, gone]\nunknown: gone"),
    )

    @property
    def uses_times(self) -> bool:
        """Always."""
        return True

    @property
    def segments(self) -> tuple[str, ...]:
        """From the most recent to the longest ago, then those who are not known."""
        return tuple(dict.fromkeys([*stretches(self.parameters), self.parameters.unknown]))

    def assign(self, user: UserRecords) -> str:
        """The segment whose stretch holds the days since the user's last record."""
        times = known_times(user)
        if not times:
            return self.parameters.unknown
        today = self.parameters.as_of.toordinal() - date(1970, 1, 1).toordinal()
        return stretch_of(self.parameters, max(0, today - day_of(times[-1])))
