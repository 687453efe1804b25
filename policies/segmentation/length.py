"""Segments by how long a user's texts are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from harness.plugins import OwnRecordsSegmenter, Page, UserRecords
from policies.segmentation.edges import EdgesParameters, stretch_of, stretches

_STATISTICS: Mapping[str, Callable[[list[int]], float]] = {
    "median": statistics.median,
    "mean": lambda lengths: sum(lengths) / len(lengths),
    "max": max,
}


class LengthParameters(EdgesParameters):
    """Parameters of `length`."""

    measure: Literal["characters", "words"] = Field(
        default="characters",
        description="what a record's length is counted in: characters (Unicode code points) or words between spaces",
    )
    statistic: Literal["median", "mean", "max"] = Field(
        default="median", description="which of the lengths of the user's own records counts"
    )


class Length(OwnRecordsSegmenter):
    """One segment per stretch of text length, between edges that are constants of the spec.

    Use it where long texts say more of a person than short ones, however many there are. Edges and statistic are
    public; which segment a user falls into depends on their records and is private. Costs no privacy. A user without
    records has length 0.
    """

    Parameters = LengthParameters
    parameters: LengthParameters
    page = Page(
        sees="The lengths of the user's own texts.",
        when="Long texts say more of a person than short ones, however many there are.",
        costs=(
            "No privacy. Which group a user is in becomes private, and weights of the groups must be given or noisy."
        ),
        example="{type: length, measure: words, edges: [20, 100]}",
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """From the shortest texts to the longest."""
        return stretches(self.parameters)

    def assign(self, user: UserRecords) -> str:
        """The segment whose stretch holds the statistic of this user's lengths."""
        words = self.parameters.measure == "words"
        lengths = [len(text.split()) if words else len(text) for text in user.texts]
        return stretch_of(self.parameters, _STATISTICS[self.parameters.statistic](lengths) if lengths else 0)
