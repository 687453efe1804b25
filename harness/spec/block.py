"""What all blocks of a spec have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Positive = Annotated[FiniteFloat, Field(gt=0, le=1e6)]


class Block(BaseModel):
    """A block of the spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
