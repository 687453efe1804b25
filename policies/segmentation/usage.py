"""Segments by how much a user wrote."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.plugins import OwnRecordsSegmenter, Page, UserRecords
from policies.segmentation.edges import EdgesParameters, stretch_of, stretches


class UsageParameters(EdgesParameters):
    """Parameters of `usage`."""

    measure: Literal["records", "examples", "tokens"] = Field(
        default="examples", description="what is counted of the user's own: records, packed examples or tokens"
    )


class Usage(OwnRecordsSegmenter):
    """One segment per stretch of usage, between edges that are constants of the spec.

    Use it where those who wrote more have more at stake. The edges are public; which segment a user falls into
    depends on their records and is private. Costs no privacy.
    """

    Parameters = UsageParameters
    parameters: UsageParameters
    page = Page(
        sees="How many records, examples or tokens the user has; no text.",
        when="Who wrote much has more at stake than who wrote little.",
        costs=(
            "No privacy. Which group a user is in becomes private, and weights of the groups must be given or noisy."
        ),
        example="{type: usage, edges: [6, 24], names: [few, some, many]}",
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """From the least usage to the most."""
        return stretches(self.parameters)

    def assign(self, user: UserRecords) -> str:
        """The segment whose stretch holds the user's count."""
        count = {
            "records": len(user.texts),
            "examples": user.examples,
            "tokens": sum(user.token_counts),
        }[self.parameters.measure]
        return stretch_of(self.parameters, count)
