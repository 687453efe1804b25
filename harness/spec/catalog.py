"""The registries, told to a person: what there is, where it comes from, and what its parameters mean."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic_core import PydanticUndefined

from harness.plugins import (
    NoisePolicy,
    Plugin,
    PluginError,
    Registry,
    Segmenter,
    noise,
    segmentation,
    sensitivity,
    source,
    suggest,
)
from harness.spec.messages import expectation

KINDS: dict[str, Registry[Any]] = {r.kind: r for r in (source, segmentation, sensitivity, noise)}


def listing() -> list[dict[str, Any]]:
    """One entry per plugin: kind, name, summary, origin, access and target.

    One that can't be used is listed with the reason in place of a summary.
    """
    return [_entry(registry, name) for registry in KINDS.values() for name in registry]


def details(name: str) -> list[dict[str, Any]]:
    """Everything about the plugins of this name: ``NAME``, ``KIND/NAME`` or ``module:attr``.

    Raises:
        PluginError: There is none, or it can't be imported.
    """
    kind, slash, rest = name.partition("/")
    registries = [KINDS[kind]] if slash and kind in KINDS else list(KINDS.values())
    wanted = rest if slash and kind in KINDS else name
    if ":" in wanted:
        found = [r for r in registries if _fits(r, wanted)] or registries[:1]
    else:
        found = [r for r in registries if wanted in r.targets()]
    if not found:
        for registry in registries:
            if why := registry.refusal(wanted):
                raise PluginError(why)
        names = sorted({n for r in KINDS.values() for n in r})
        near = suggest(wanted, names)
        raise PluginError(f'there is no plugin "{wanted}"' + (f'; did you mean "{near}"?' if near else ""))
    return [_entry(r, wanted) | _detail(r.get(wanted)) for r in found]


def _fits(registry: Registry[Any], target: str) -> bool:
    try:
        registry.get(target)
    except PluginError:
        return False
    return True


def _entry(registry: Registry[Any], name: str) -> dict[str, Any]:
    entry = {"kind": registry.kind, "name": name, "origin": registry.origin(name)}
    entry["target"] = registry.targets().get(name, name)
    try:
        cls = registry.get(name)
    except PluginError as error:
        return entry | {"summary": f"can't be used: {error.message}", "access": None}
    return entry | {"summary": (inspect.getdoc(cls) or "").partition("\n")[0], "access": _access(cls)}


def _access(cls: type[Plugin]) -> str:
    access = getattr(cls, "access", None)
    if access is not None:
        return str(access.value)
    if issubclass(cls, Segmenter):  # its parameters decide
        return " or ".join(_access(tier) for tier in cls.__subclasses__())
    return "names and weights of groups" if issubclass(cls, NoisePolicy) else "the records, which it reads"


def _detail(cls: type[Plugin]) -> dict[str, Any]:
    schema = cls.Parameters.model_json_schema()
    parameters = []
    for name, field in cls.Parameters.model_fields.items():
        one = {"name": name, "type": expectation(schema, (name,)), "required": field.is_required()}
        default = None if field.default is PydanticUndefined else field.get_default(call_default_factory=True)
        parameters.append(one | {"default": default, "description": field.description or ""})
    try:
        place = f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        place = cls.__module__
    return {"docstring": inspect.getdoc(cls) or "", "parameters": parameters, "defined": place}
