"""Segments by how much, or how often, a user wrote."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import OwnRecordsSegmenter, Page, UserRecords
from policies.segmentation.clock import day_of, known_times
from policies.segmentation.edges import EdgesParameters, stretch_of, stretches

_USUAL_GAP = 30.0


class UsageParameters(EdgesParameters):
    """Parameters of `usage`."""

    measure: Literal["records", "examples", "tokens", "sessions", "active_days"] = Field(
        default="examples",
        description="what is counted of the user's own: records, packed examples, tokens, sessions or active days "
        "(UTC); the last two need data.time",
    )
    gap: Annotated[FiniteFloat, Field(gt=0, le=10**6)] | None = Field(
        default=None, description="of sessions: a longer pause, in minutes, begins a new one (default 30)"
    )

    @model_validator(mode="after")
    def _of_sessions(self) -> UsageParameters:
        if self.gap is not None and self.measure != "sessions":
            raise ValueError("gap: only sessions have one; add measure: sessions")
        return self


class Usage(OwnRecordsSegmenter):
    """One segment per stretch of usage, between edges that are constants of the spec.

    Use it where those who wrote more, or on more occasions, have more at stake. A session is a run of records with
    pauses of at most `gap` minutes. The edges are public; which segment a user falls into depends on their records and
    is private. Costs no privacy. A user of whom no time is known has no sessions and no active days: the lowest
    segment.
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
    def uses_times(self) -> bool:
        """For sessions and active days."""
        return self.parameters.measure in ("sessions", "active_days")

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
            "sessions": _sessions(user, self.parameters.gap or _USUAL_GAP),
            "active_days": len({day_of(time) for time in known_times(user)}),
        }[self.parameters.measure]
        return stretch_of(self.parameters, count)


def _sessions(user: UserRecords, gap: float) -> int:
    """Runs of records between which no pause is longer than so many minutes."""
    times = known_times(user)
    return (1 if times else 0) + sum(b - a > gap * 60 for a, b in pairwise(times))
