"""Segments by how much a user wrote."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.plugins import OwnRecordsSegmenter, PluginParameters, UserRecords


class UsageParameters(PluginParameters):
    """Parameters of `usage`."""

    measure: Literal["records", "examples", "tokens"] = Field(
        default="examples", description="what is counted of the user's own: records, packed examples or tokens"
    )
    edges: tuple[Annotated[int, Field(ge=1, le=10**12)], ...] = Field(
        min_length=1, max_length=100, description="rising public edges; a count equal to one lies above it"
    )
    names: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        default=None, description="one name more than edges; left out: made of them"
    )

    @model_validator(mode="after")
    def _fits(self) -> UsageParameters:
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("edges: must rise")
        if self.names is not None and len(self.names) != len(self.edges) + 1:
            raise ValueError(f"names: {len(self.edges)} edges make {len(self.edges) + 1} segments")
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError("names: the same name twice")
        return self


class Usage(OwnRecordsSegmenter):
    """One segment per stretch of usage, between edges that are constants of the spec.

    Use it where those who wrote more have more at stake. The edges are public; which segment a user falls into
    depends on their records and is private. Costs no privacy.
    """

    Parameters = UsageParameters
    parameters: UsageParameters

    @property
    def segments(self) -> tuple[str, ...]:
        """From the least usage to the most."""
        if self.parameters.names is not None:
            return self.parameters.names
        edges = self.parameters.edges
        inner = [f"{a}-{b - 1}" for a, b in pairwise(edges)]
        return (f"under-{edges[0]}", *inner, f"from-{edges[-1]}")

    def assign(self, user: UserRecords) -> str:
        """The segment whose stretch holds the user's count."""
        count = {
            "records": len(user.texts),
            "examples": user.examples,
            "tokens": sum(user.token_counts),
        }[self.parameters.measure]
        return self.segments[bisect_right(self.parameters.edges, count)]
