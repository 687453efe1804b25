"""What all blocks of a spec have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from pydantic_core import PydanticCustomError

Column = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[FiniteFloat, Field(gt=0, le=1e6)]


class Block(BaseModel):
    """A block of the spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginBlock(BaseModel):
    """A block that names a plugin; its other keys are that plugin's parameters, checked by the plugin's own model."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str = Field(description="name of a plugin, or module:attr")

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but `type`."""
        return dict(self.model_extra or {})


class TextBlock(Block):
    """Two columns: what is asked, and what is to be learnt."""

    prompt: Column = Field(description="column of the prompt: context only, it has no loss")
    completion: Column = Field(description="column of the completion: the loss is on it alone")


def text_unless_messages(given: dict[str, Any]) -> str | None:
    """The default of `text` beside `messages`."""
    return "text" if given.get("messages") is None else None


def whole(value: Any) -> Any:
    """Refuses what only equals a whole number: `true` and `1.0` equal 1, and would pass for a literal 1."""
    if type(value) is not int:
        raise PydanticCustomError("literal_error", "must be a whole number")
    return value
