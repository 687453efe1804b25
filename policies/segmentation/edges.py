"""What segmentations have in common that cut a number of each user at public edges."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from harness.plugins import PluginParameters


class EdgesParameters(PluginParameters):
    """Public edges, and a name for every stretch between them."""

    edges: tuple[Annotated[int, Field(ge=1, le=10**12)], ...] = Field(
        min_length=1, max_length=100, description="rising public edges; a number equal to one lies above it"
    )
    names: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = Field(
        default=None, description="one name more than edges; left out: made of them"
    )

    @model_validator(mode="after")
    def _fits(self) -> EdgesParameters:
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("edges: must rise")
        if self.names is not None and len(self.names) != len(self.edges) + 1:
            raise ValueError(f"names: {len(self.edges)} edges make {len(self.edges) + 1} segments")
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError("names: the same name twice")
        return self


def stretches(parameters: EdgesParameters) -> tuple[str, ...]:
    """The names of all stretches, from the lowest: the given ones, or made of the edges."""
    if parameters.names is not None:
        return parameters.names
    edges = parameters.edges
    inner = [f"{a}-{b - 1}" for a, b in pairwise(edges)]
    return (f"under-{edges[0]}", *inner, f"from-{edges[-1]}")


def stretch_of(parameters: EdgesParameters, number: float) -> str:
    """The name of the stretch that holds `number`."""
    return stretches(parameters)[bisect_right(parameters.edges, number)]
