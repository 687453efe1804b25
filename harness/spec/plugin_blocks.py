"""Blocks that name a plugin: found through its registry, validated by its own model."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from harness.packages import name_of
from harness.plugins import (
    Plugin,
    PluginError,
    PluginParameters,
    Registry,
    noise,
    segmentation,
    sensitivity,
    source,
    suggest,
)
from harness.spec.merging import PLUGIN_BLOCKS, Merged
from harness.spec.messages import findings
from harness.spec.problems import KeyPath, one_line

REGISTRIES: dict[KeyPath, Registry[Any]] = {
    ("data", "source"): source,
    ("segmentation",): segmentation,
    ("sensitivity", "scores"): sensitivity,
    ("noise",): noise,
    ("sweep", "proxy", "source"): source,
}
_DEFAULTS: dict[KeyPath, str] = {("segmentation",): "none", ("noise",): "uniform"}


def registry_of(block: KeyPath) -> Registry[Any]:
    """Where the plugin of a block is looked up."""
    return REGISTRIES[block[:-1] if isinstance(block[-1], int) else block]


def names_plugin(path: KeyPath, name: str) -> bool:
    """Whether a plugin of this name could stand at `path`."""
    registry = REGISTRIES.get(path[:-1] if isinstance(path[-1], int) else path)
    try:
        return registry is not None and name in registry.targets()
    except PluginError:
        return False


def blocks_in(data: Any) -> list[KeyPath]:
    """The paths of all blocks that name a plugin: fixed ones, one for each item of a list of them, and a proxy's."""
    listed = data.get("sensitivity") if isinstance(data, dict) else None
    scores = listed.get("scores") if isinstance(listed, dict) else None
    count = len(scores) if isinstance(scores, list) else 0
    sweep = data.get("sweep") if isinstance(data, dict) else None
    proxy: list[KeyPath] = []
    if isinstance(sweep, dict) and isinstance(sweep.get("proxy"), dict):
        proxy = [("sweep", "proxy", "source")]
    return [*PLUGIN_BLOCKS, *(("sensitivity", "scores", i) for i in range(count)), *proxy]


def check_plugin(block: KeyPath, merged: Merged) -> Plugin | None:
    """The plugin that a block names, built; None if the block is wrong, which `merged` is then told."""
    data: Any = merged.data
    for part in block:
        inside = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int))
        data = (data.get(part) if isinstance(data, dict) else data[part]) if inside else None
    if data is None and block in _DEFAULTS:
        data = {"type": _DEFAULTS[block]}
    if not isinstance(data, dict) or not isinstance(data.get("type"), str) or merged.is_broken((*block, "type")):
        return None  # reported by the block's own model
    name = data["type"]
    try:
        cls: type[Plugin] = registry_of(block).get(name)
    except PluginError as error:
        add_plugin_error(error, block, merged, name)
        return None
    given = {k: v for k, v in data.items() if k != "type" and not _means_default(cls.Parameters, k, v)}
    return _build(cls, name, given, block, merged)


def _build(cls: type[Plugin], name: str, given: dict[str, Any], block: KeyPath, merged: Merged) -> Plugin | None:
    """The plugin with these parameters; None if they don't fit, which `merged` is then told."""
    try:
        plugin = cls.of(cls.Parameters.model_validate_json(json.dumps(given), strict=True))
        plugin.parameters.model_dump(mode="json")  # what the resolved spec will hold
        return plugin
    except ValidationError as error:
        found = findings(error, cls.Parameters, given, noun=f"parameter of {name}")
        for one in found:
            if one.missing:
                merged.add_missing((*block, *one.path), one.message)
            else:
                merged.add((*block, *one.path), one.message, one.suggestion, at_key=one.unknown)
        unknown = {one.path[0] for one in found if one.unknown and len(one.path) == 1}
        if unknown and len(unknown) == len(found):  # what the model says of the rest shows only without these
            _build(cls, name, {k: v for k, v in given.items() if k not in unknown}, block, merged)
    except PluginError as error:
        add_plugin_error(error, block, merged, name)
    except Exception as error:  # somebody's constructor may raise anything
        merged.add(block, one_line(f"{name_of(cls)} fails ({type(error).__name__}: {error})"), at_key=True)
    return None


def add_plugin_error(error: PluginError, block: KeyPath, merged: Merged, name: str | None = None) -> None:
    """Notes what a plugin, or the registry, refuses: at the parameter that it names."""
    wrong = str(error.key[-1]) if error.key else ""
    near = suggest(name if error.key == ("type",) and name else wrong, error.candidates)
    merged.add((*block, *error.key), error.message, near, at_key=error.key != ("type",))


def _means_default(model: type[PluginParameters], key: str, value: Any) -> bool:
    field = model.model_fields.get(key)
    return value is None and field is not None and not field.is_required()
