"""A spec file → a validated `Spec`, or every problem that it has."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.plugins import NoisePolicy, suggest
from harness.spec.block import PluginBlock
from harness.spec.checks import check
from harness.spec.draft import Draft
from harness.spec.interpolation import interpolate
from harness.spec.merging import SPACE, Merged, find_spec, merge, merge_layers
from harness.spec.messages import Finding, findings
from harness.spec.models import Spec
from harness.spec.places import only_place
from harness.spec.plugin_blocks import blocks_in, check_plugin, names_plugin
from harness.spec.problems import COMMAND_LINE, KeyPath, Problem, SpecErrors, dotted
from harness.spec.refused import take_refused
from harness.spec.sweep_checks import check_sweep
from harness.spec.sweep_tries import Attempt
from harness.spec.unbuilt import near_key, near_value, take_unbuilt

# What stands in for a required value that is missing or wrong, so that the rest can still be checked.
STAND_IN: dict[str, Any] = {
    "version": 1,
    "name": "unnamed",
    "data": {"name": "unnamed", "source": {"type": "none"}, "holdout": {"users": 0.1, "visibility": "public"}},
    "model": {"base": "none"},
    "segmentation": {"type": "none"},
    "sensitivity": {"scores": [{"type": "volume"}], "tiers": {"edges": [0.5], "names": ["low", "high"]}},
    "noise": {"type": "uniform"},
    "sampling": {"expected": 1},
    "train": {"steps": 1},
    "sweep": {"space": {}},
}
# Blocks whose parts must fit each other: with one part wrong, nothing is concluded from the others.
WHOLE: tuple[KeyPath, ...] = (("sensitivity",), ("data", "text"), ("sweep", "search"), ("sweep", "proxy"))


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec and where its values come from.

    Attributes:
        spec: The validated spec; plugin blocks hold all their parameters.
        path: The file.
        origins: For every leaf of `resolved` (lists are leaves), by dotted key: ``file:LINE:COL``,
            ``<command line>`` or ``default``.
        resolved: The whole spec as plain data, every default filled in; loads again as a spec.
        base_dir: Folder of the file.
    """

    spec: Spec
    path: Path
    origins: Mapping[str, str]
    resolved: dict[str, Any]
    base_dir: Path


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Reads, merges and validates a spec. Touches no data.

    Args:
        path: The spec file, or the name of a packaged one (``quickstart``); a local file comes first.
        overrides: ``key=value`` with dotted keys and YAML values; they win over every file.

    Raises:
        SpecErrors: The spec has problems; it holds all of them.
    """
    path = find_spec(path)
    merged = merge(path, overrides)
    if not merged.layers[-2].readable:
        raise SpecErrors(merged.problems)
    draft = _read(merged)
    if draft is not None and draft.spec.sweep is not None:
        check_sweep(draft, lambda more: _attempt(merged, [*overrides, *more]))
    if merged.problems or draft is None:
        raise SpecErrors(sorted(merged.problems, key=lambda p: _order(p, merged)))
    spec = _filled(draft)
    resolved = spec.model_dump(mode="json")
    origins = {dotted(leaf): merged.origin(leaf) for leaf in _leaves(resolved, ())}
    return LoadedSpec(spec, path, MappingProxyType(origins), resolved, path.parent)


def _read(merged: Merged) -> Draft | None:
    """Validates and checks what was merged, which is told every problem but a sweep's own.

    Returns:
        The draft; None where not even stand-ins make a spec of it.
    """
    interpolate(merged)
    for key, message, by_value in [*take_unbuilt(merged.data), *take_refused(merged.data)]:
        merged.add(key, message, at_key=not by_value)
        merged.broken.add(key)
    _drop_nulls(merged.data, Spec)
    spec, broken = _validate(merged)
    plugins = {block: check_plugin(block, merged) for block in blocks_in(merged.data)}
    if spec is None:
        return None
    draft = Draft(spec, merged, frozenset(broken), plugins)
    check(draft)
    return draft


def _attempt(merged: Merged, overrides: Sequence[str]) -> Attempt:
    """The same files once more, with other overrides; they are not read again."""
    again = merge_layers(merged.layers[:-1], merged.main, overrides)
    draft = _read(again)
    if again.problems or draft is None:
        return Attempt(tuple(dict.fromkeys(again.problems)), None, private=True)
    policy = draft.plugins[("noise",)]
    private = not isinstance(policy, NoisePolicy) or policy.private
    return Attempt((), _filled(draft).model_dump(mode="json"), private=private)


def _filled(draft: Draft) -> Spec:
    """The spec with all parameters of its plugins."""
    spec = draft.spec
    for block, plugin in draft.plugins.items():
        if plugin is not None:
            spec = _with_parameters(spec, block, plugin.parameters)
    return spec


def _order(problem: Problem, merged: Merged) -> tuple[int, int, int]:
    """The spec itself first, then its bases, then the command line; in each, from top to bottom."""
    files = [merged.main, *(layer.name for layer in merged.layers if layer.name != merged.main)]
    where = len(files) if problem.place == COMMAND_LINE else files.index(problem.place.file)
    return where, problem.place.line, problem.place.column


# --- the models ---------------------------------------------------------------------------------------------


def _validate(merged: Merged) -> tuple[Spec | None, set[KeyPath]]:
    """The spec with stand-ins for what is wrong, and the paths that they stand in for."""
    data = copy.deepcopy(merged.data)
    broken = set(merged.broken)
    for path in broken:
        _mend(data, path)
    for _ in range(4):  # what a mended block lacks shows only then
        try:
            return validate_json(Spec, data), broken
        except ValidationError as error:
            for found in findings(error, Spec, data):
                whole = _whole(found.path)
                if found.path not in broken:
                    _report(found, merged)
                broken |= {found.path, whole}
                _mend(data, whole)
    return None, broken


def _whole(path: KeyPath) -> KeyPath:
    """What is left out where the value at `path` is wrong: itself, or the block whose parts must fit each other."""
    prior = (*SPACE, path[2]) if len(path) > 2 and path[:2] == SPACE else path
    return next((b for b in WHOLE if path[: len(b)] == b), prior)


def validate_json(model: type[BaseModel], data: Any) -> Any:
    """Validates plain data strictly: text is no number, true is no number, and a list may stand for a tuple."""
    return model.model_validate_json(json.dumps(data), strict=True)


def _report(found: Finding, merged: Merged) -> None:
    if found.missing:
        merged.add_missing(found.path, found.message)
        return
    message, near, later = found.message, found.suggestion, None
    if found.unknown:
        options = [*found.options, "extends"] if len(found.path) == 1 else found.options
        elsewhere = only_place(str(found.path[-1]), found.path[:-1])
        near = suggest(str(found.path[-1]), options)
        if near and len(found.path) > 1:
            elsewhere = None  # in a block, its own keys are meant; at the top, one that belongs into a block
        near = elsewhere or near
        later = None if elsewhere else near_key(found.path, options)
    else:
        value = _get(merged.data, found.path)
        later = near_value(found.path, value, found.options)
        if isinstance(value, str) and names_plugin(found.path, value):
            message = message.replace("must be a block of keys", f"must be a block, as {{type: {value}}}")
    if later:
        message += f'; did you mean "{later}", which is not built yet in this version?'
    merged.add(found.path, message, None if later else near, at_key=found.unknown)


def _get(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _mend(data: dict[str, Any], path: KeyPath) -> None:
    """Takes out what lies at `path`, or puts a stand-in there if something must."""
    stand_in: Any = STAND_IN
    node: Any = data
    for index, part in enumerate(path):
        default = stand_in.get(part) if isinstance(stand_in, dict) else None
        inner = node.get(part)
        if index < len(path) - 1 and isinstance(inner, dict):
            node, stand_in = inner, default
            continue
        node.pop(part, None)  # of a list with a wrong item, nothing is kept
        if default is not None:
            node[part] = copy.deepcopy(default)
        return


def _drop_nulls(data: dict[str, Any], model: type[BaseModel]) -> None:
    """Takes out keys that are null where leaving them out is allowed: `compute:` with nothing below means defaults."""
    for name, field in model.model_fields.items():
        if name not in data:
            continue
        if data[name] is None and not field.is_required():
            # Where the default is not null and null is allowed, null says something of its own: no ledger.
            if field.default is None or type(None) not in get_args(field.annotation):
                del data[name]
            continue
        if get_origin(field.annotation) is dict and isinstance(data[name], dict):  # names of the user's own
            if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in get_args(field.annotation)):
                data[name] = {key: value for key, value in data[name].items() if value is not None}
            continue
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(data[name], dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
                _drop_nulls(data[name], kind)


def _with_parameters(spec: Spec, block: KeyPath, parameters: BaseModel) -> Spec:
    """The spec with all parameters of a plugin in its block."""
    if isinstance(block[-1], int):
        assert spec.sensitivity is not None
        scores = list(spec.sensitivity.scores)
        scores[block[-1]] = PluginBlock(type=scores[block[-1]].type, **parameters.model_dump(mode="json"))
        return spec.model_copy(update={"sensitivity": spec.sensitivity.model_copy(update={"scores": tuple(scores)})})
    filled: Spec = _replaced(spec, block, parameters)
    return filled


def _replaced(owner: Any, block: KeyPath, parameters: BaseModel) -> Any:
    """`owner` with the plugin block below it filled."""
    name = str(block[0])
    inner = getattr(owner, name)
    if len(block) == 1:
        filled: Any = PluginBlock(type=inner.type, **parameters.model_dump(mode="json"))
    else:
        filled = _replaced(inner, block[1:], parameters)
    return owner.model_copy(update={name: filled})


def _leaves(data: Mapping[str, Any], path: KeyPath) -> Iterator[KeyPath]:
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name)
