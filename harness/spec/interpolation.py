"""``${block.key}`` in a spec: OmegaConf resolves it. Whatever else could stand in the braces is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from harness.plugins import suggest
from harness.spec.merging import Merged
from harness.spec.problems import KeyPath, dotted
from harness.spec.reading import is_sayable

_SHOWN = 80
_BARE = re.compile(r"\$\{([A-Za-z_][\w.-]*)\}")


def interpolate(merged: Merged) -> None:
    """Resolves every ``${…}`` of the merged data, and notes those that lead nowhere."""
    targets = []
    for path, text in list(_strings(merged.data, ())):
        message = _unusable(text)
        if message:
            merged.add(path, message)
            merged.broken.add(path)
            _set(merged.data, path, None)
        elif "${" in text:
            targets.append((path, text))
    if not targets:
        return
    from omegaconf import OmegaConf

    config = OmegaConf.create(merged.data)
    known = [dotted(path) for path in _paths(merged.data, ())]
    results: list[tuple[KeyPath, Any]] = []
    for path, text in targets:
        try:
            node: Any = config
            for part in path:
                node = node[part]
            value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except Exception as error:  # OmegaConf raises many kinds
            merged.add(path, *_message(text, error, known))
            merged.broken.add(path)
            value = None
        if not _is_plain(value):
            merged.add(path, f"{_short(text)} gives something that a spec can't hold")
            merged.broken.add(path)
            value = None
        results.append((path, value))
    for path, value in results:
        _set(merged.data, path, value)


def _unusable(text: str) -> str | None:
    """What is wrong with a string that OmegaConf can't take, or must not."""
    if text == "???":
        return "must be given (the spec says ???)"
    if "${" not in text:
        return None
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from omegaconf.grammar_parser import parse

    try:
        OmegaConf.create({"value": text})
        calls = next(_calls(parse(text)), None)
    except (OmegaConfBaseException, RecursionError):
        return 'an interpolation that can\'t be read; it looks like "${block.key}"'
    if calls is None:
        return None
    # A run's folder publishes the resolved spec: what the environment holds, a token perhaps, would be in it.
    what = "the environment" if "oc.env" in calls else "a resolver"
    return f'{_short(calls)} asks {what}; a spec can only repeat its own keys, as "${{block.key}}"'


def _calls(tree: Any) -> Iterator[str]:
    """The calls of resolvers in a parsed text, as written."""
    from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser

    if isinstance(tree, OmegaConfGrammarParser.InterpolationResolverContext):
        yield str(tree.getText())
    for child in getattr(tree, "children", None) or ():
        yield from _calls(child)


def _message(text: str, error: Exception, known: list[str]) -> tuple[str, str | None]:
    """What is wrong with a ``${…}``, without OmegaConf's internals, and what was probably meant."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    shown = _short(text)
    if "Recursive interpolation" in reason or isinstance(error, RecursionError):
        return f"{shown} refers to itself", None
    if "not found" in reason:
        bare = _BARE.fullmatch(text)
        near = suggest(bare[1], known) if bare else None
        return f"{shown} names a key that does not exist", f"${{{near}}}" if near else None
    return f"{shown} can't be resolved", None


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _is_plain(value: Any) -> bool:
    """Whether this is something that a spec could say."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(k) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    return value is None or (isinstance(value, (str, int, float)) and is_sayable(value))


def _paths(data: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Every key path of the data, lists' items included."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for part, value in items:
        yield (*path, part)
        yield from _paths(value, (*path, part))


def _strings(data: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for part, value in items:
        if isinstance(value, str):
            yield (*path, part), value
        else:
            yield from _strings(value, (*path, part))


def _set(data: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value
