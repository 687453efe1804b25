"""The JSON schema of a spec, made from the models: for editors, and for what writes specs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from harness.plugins import Plugin, Registry
from harness.spec.models import Spec
from harness.spec.plugin_blocks import REGISTRIES

_OURS = ("harness.", "policies.")


def json_schema() -> dict[str, Any]:
    """The schema of a spec file; plugin blocks list the built-in plugins with their parameters.

    It says what may be written, not what must: a spec may extend another one, which holds the rest.
    """
    plugins = {block: _builtin(registry) for block, registry in REGISTRIES.items()}
    models: list[type[BaseModel]] = [Spec, *(cls.Parameters for found in plugins.values() for cls in found.values())]
    references, document = models_json_schema([(m, "validation") for m in dict.fromkeys(models)])
    definitions: dict[str, Any] = document["$defs"]
    root = _resolved(references[Spec, "validation"], definitions)
    for block, found in plugins.items():
        owner = root
        for part in block[:-1]:
            owner = _resolved(owner["properties"][part], definitions)
        old = owner["properties"][block[-1]]
        listed = old.get("type") == "array"
        parameters = {n: _resolved(references[cls.Parameters, "validation"], definitions) for n, cls in found.items()}
        for schema in parameters.values():
            _relax(schema)
        if listed:
            old["items"] = _plugin_block(found, parameters, {})
        else:
            owner["properties"][block[-1]] = _plugin_block(found, parameters, old)
    root["properties"]["extends"] = {
        "description": "specs that this one builds on: beside it, or among the packaged ones; later ones win",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    del definitions["Spec"]
    used = _used(root, definitions)
    _relax(root)
    for name in used:
        _relax(definitions[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "uudp spec",
        "$defs": {name: definitions[name] for name in sorted(used)},
    }


def _builtin(registry: Registry[Any]) -> dict[str, type[Plugin]]:
    """The plugins that come with uudp: what others install must not change the file."""
    return {name: registry.get(name) for name, target in sorted(registry.targets().items()) if target.startswith(_OURS)}


def _plugin_block(
    plugins: dict[str, type[Plugin]], parameters: dict[str, dict[str, Any]], old: dict[str, Any]
) -> dict[str, Any]:
    """A block that names one of these plugins, or somebody's own."""
    choices: list[dict[str, Any]] = []
    for name, cls in plugins.items():
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        kind = {"const": name, "description": summary}
        choices.append(
            {
                "type": "object",
                "title": name,
                "description": summary,
                "properties": {"type": kind, **parameters[name].get("properties", {})},
                "additionalProperties": False,
            }
        )
    own = {"type": "string", "pattern": ":", "description": "module:attr of a plugin of your own"}
    choices.append({"type": "object", "properties": {"type": own}, "required": ["type"], "additionalProperties": True})
    return {"anyOf": choices, **{k: old[k] for k in ("description", "default") if k in old}}


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = next((one for one in schema.get("anyOf", ()) if "$ref" in one), schema)  # of an optional block
    found: dict[str, Any] = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _used(schema: Any, definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that `schema` refers to, directly or not."""
    used: set[str] = set()
    todo: list[Any] = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in used:
                used.add(name)
                todo.append(definitions[name])
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return used


def _relax(block: dict[str, Any]) -> None:
    """Requires nothing of a block, and drops titles that only repeat names."""
    block.pop("required", None)
    block.pop("title", None)
    for field in block.get("properties", {}).values():
        field.pop("title", None)
        if field.get("default", "") is None:  # an editor would write `key: null`
            del field["default"]
