"""Objects of plugins as data, between this process and a room: a class path, and attributes as JSON.

Never pickles: what a room sends is read as JSON, handed on or looked at, and only rooms rebuild an object from it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import json
import math
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

from harness.plugins import Plugin, PluginError, PluginParameters
from harness.queries import Described

T = TypeVar("T")

_MARK = "__is__"
_DEEPEST = 50


def encode(value: object, depth: int = 0) -> Any:
    """A plain value for JSON: numbers, texts, lists, tuples, dictionaries by text, arrays, parameters.

    Raises:
        PluginError: It holds anything else.
    """
    if depth > _DEEPEST:
        raise PluginError("an attribute is nested too deeply")
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_MARK: "float", "text": repr(float(value))}
    if type(value).__module__ == "numpy":
        return _array(value)
    if isinstance(value, PluginParameters):
        return {_MARK: "parameters", "values": json.loads(value.model_dump_json())}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [encode(v, depth + 1) for v in value]}
    if isinstance(value, list):
        return [encode(v, depth + 1) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) and k != _MARK for k in value):
        return {str(k): encode(v, depth + 1) for k, v in value.items()}
    raise PluginError(f"an attribute is a {type(value).__name__}: only plain values and arrays of numbers travel")


def _array(value: Any) -> Any:
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise PluginError(f"an attribute is an array of {value.dtype}: only numbers travel")
    if value.shape == ():
        return encode(value.item())
    content = base64.b64encode(value.tobytes()).decode()
    return {_MARK: "array", "dtype": value.dtype.str, "shape": list(value.shape), "content": content}


def decode(value: Any, parameters: type[PluginParameters] = PluginParameters) -> Any:
    """What `encode` was given. For rooms.

    Args:
        value: From JSON.
        parameters: The model of encoded parameters.
    """
    if isinstance(value, list):
        return [decode(v, parameters) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind is None:
        return {k: decode(v, parameters) for k, v in value.items()}
    if kind == "tuple":
        return tuple(decode(v, parameters) for v in value["items"])
    if kind == "float":
        return float(value["text"])
    if kind == "parameters":
        return parameters.model_validate(value["values"])
    import numpy as np  # a room without arrays is lighter, and forks faster

    found = np.frombuffer(base64.b64decode(value["content"]), dtype=np.dtype(value["dtype"]))
    return found.reshape(value["shape"]).copy()


def parts(thing: object) -> tuple[str, dict[str, Any]]:
    """The class path and the encoded attributes of a statistic or a fitted rule.

    Raises:
        PluginError: Its class is not to be found in a module, or an attribute does not travel.
    """
    cls = type(thing)
    if "<" in cls.__qualname__ or cls.__module__ == "__main__":
        raise PluginError(f"{cls.__qualname__} must be a class of a module, so that another process can import it")
    return f"{cls.__module__}:{cls.__qualname__}", encode(dict(getattr(thing, "__dict__", {})))


def describe(thing: object) -> Described:
    """A statistic or a fitted rule as data: its class and attributes.

    Raises:
        PluginError: As `parts`.
    """
    return described(*parts(thing))


def describe_plugin(plugin: Plugin) -> Described:
    """A plugin as data: its class and parameters. What it made of them in this process stays here."""
    cls = type(plugin)
    if "<" in cls.__qualname__:
        raise PluginError(f"{cls.__qualname__} must be a class of a module, so that another process can import it")
    return described(f"{cls.__module__}:{cls.__qualname__}", {_MARK: "plugin", "parameters": encode(plugin.parameters)})


def described(path: object, attributes: object) -> Described:
    """The same from the parts that a room sent.

    Raises:
        PluginError: They are no class path, or no attributes.
    """
    if not isinstance(path, str) or not isinstance(attributes, dict) or len(path) > 1000:
        raise PluginError("gave no description of an object")
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise PluginError("gave no description of an object")
    return Described(path, json.dumps(attributes, sort_keys=True), _version(module))


def rebuild(one: Described, base: type[T]) -> T:
    """A fresh object from its description: imports its module. For rooms, and for what is built in.

    Raises:
        TypeError: The class is of another kind.
    """
    module, _, name = one.path.partition(":")
    cls: Any = importlib.import_module(module)
    for part in name.split("."):
        cls = getattr(cls, part)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{one.path} is no {base.__name__}")
    parameters = getattr(cls, "Parameters", PluginParameters)
    attributes = json.loads(one.attributes)
    if attributes.get(_MARK) == "plugin":
        make: Any = cls
        made: T = make(decode(attributes["parameters"], parameters))
        return made
    found: T = object.__new__(cls)
    vars(found).update(decode(attributes, parameters))
    return found


@functools.lru_cache(maxsize=256)
def _version(module: str) -> str:
    """Which code a module is: the versions of its package's distributions, and a digest of its file."""
    import importlib.metadata

    top = module.partition(".")[0]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in sorted(set(_distributions().get(top, ())))]
    path = _file_of(module)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else "no file"
    return "; ".join([*versions, digest])


@functools.cache
def _distributions() -> Any:
    import importlib.metadata

    return importlib.metadata.packages_distributions()


def _file_of(module: str) -> Path | None:
    """The module's file, without importing it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if isinstance(loaded, str):
        return Path(loaded)
    places: list[str] | None = None
    spec = None
    for end in range(1, module.count(".") + 2):
        spec = PathFinder.find_spec(".".join(module.split(".")[:end]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None
