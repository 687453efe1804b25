"""What all blocks of a spec have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from pydantic_core import PydanticCustomError

Positive = Annotated[FiniteFloat, Field(gt=0, le=1e6)]


class Block(BaseModel):
    """A block of the spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def whole(value: Any) -> Any:
    """Refuses what only equals a whole number: `true` and `1.0` equal 1, and would pass for a literal 1."""
    if type(value) is not int:
        raise PydanticCustomError("literal_error", "must be a whole number")
    return value
