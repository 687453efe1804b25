"""A plugin within a plugin's parameters, as a spec writes one: its type, and its parameters beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from harness.plugins import Plugin, PluginError, PluginParameters, Registry, suggest

T = TypeVar("T", bound=Plugin)


class Part(PluginParameters):
    """A plugin of the same kind, as a spec writes one: its type, and its parameters beside it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(min_length=1, max_length=200, description="name of a plugin of this kind that comes with uudp")


def built(registry: Registry[T], wanted: Part, key: tuple[str | int, ...]) -> T:
    """The plugin that a part names.

    Args:
        registry: Where it is looked up.
        wanted: What the spec says.
        key: The path of the part below the plugin's block, for errors.

    Raises:
        PluginError: There is none, it does not come with uudp, or it refuses its parameters.
    """
    given = {name: value for name, value in (wanted.model_extra or {}).items() if value is not None}
    try:
        cls = registry.get(wanted.type)
        # Only what comes with uudp runs beside records in the harness's own process.
        if cls.__module__.partition(".")[0] != "policies":
            raise PluginError(f'"{wanted.type}" does not come with uudp: only such plugins are combined', ("type",))
        return cls.of(cls.Parameters.model_validate_json(json.dumps(given), strict=True))
    except PluginError as error:
        near = suggest(wanted.type, error.candidates) if error.key == ("type",) else None
        message = error.message + (f'; did you mean "{near}"?' if near else "")
        raise PluginError(message, (*key, *error.key), not_built=error.not_built) from None
    except ValidationError as error:
        path, message = _refusal(error, list(cls.Parameters.model_fields))
        raise PluginError(message, (*key, *path)) from None


def _refusal(error: ValidationError, known: Sequence[str]) -> tuple[tuple[str | int, ...], str]:
    """The key path and the message of the first thing that a part's model refuses."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    path: tuple[str | int, ...] = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        near = suggest(str(path[-1]), known)
        return path, "unknown parameter" + (
            f'; did you mean "{near}"?' if near else f" (there are: {', '.join(known)})"
        )
    if first["type"] == "missing":
        return path[:-1], f'the parameter "{path[-1]}" is missing'
    if first["type"] == "value_error":
        name, colon, rest = str(first["ctx"]["error"]).partition(": ")
        return ((*path, name), rest) if colon and name in known else (path, str(first["ctx"]["error"]))
    return path, first["msg"][:1].lower() + first["msg"][1:]
