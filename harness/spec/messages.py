"""What pydantic found wrong → what a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.plugins import suggest
from harness.spec.compute_block import GPU_TYPE, IMAGE, KUBERNETES_NAME, MEMORY
from harness.spec.problems import KeyPath, show

# What a pattern means, in words.
PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": 'letters, digits, ".", "_" and "-", the first a letter or a digit',
    IMAGE: "the form registry.example.org/team/uudp:1",
    KUBERNETES_NAME: 'small letters, digits and "-"',
    MEMORY: "the form 16Gi",
    GPU_TYPE: 'letters, digits, "_" and "-", as H100',
}

# What people call some options, which look like others.
SYNONYMS = {"gpu": "cuda", "nvidia": "cuda"}


@dataclass(frozen=True)
class Finding:
    """One thing that a model found wrong.

    Attributes:
        path: Key path below the validated block.
        message: What is wrong.
        suggestion: What was probably meant.
        missing: The key is absent.
        unknown: The key is not known.
        options: The names that would have been right.
    """

    path: KeyPath
    message: str
    suggestion: str | None = None
    missing: bool = False
    unknown: bool = False
    options: tuple[str, ...] = ()


def findings(error: ValidationError, model: type[BaseModel], data: Any, *, noun: str = "key") -> list[Finding]:
    """All that is wrong with `data`, one finding for each key.

    Args:
        error: What `model` raised.
        model: The model; its JSON schema says what would have been right.
        data: What was validated.
        noun: What an unknown key is called.
    """
    schema = _schema(model)
    found: dict[KeyPath, Finding] = {}
    for item in error.errors(include_url=False):
        one = _finding(item, schema, model, data, noun)
        found.setdefault(one.path, one)
    # Of a union, every branch complains; the branch that looked deepest says most.
    return [f for path, f in found.items() if not any(p[: len(path)] == path and p != path for p in found)]


@lru_cache(maxsize=64)
def _schema(model: type[BaseModel]) -> Mapping[str, Any]:
    try:
        return model.model_json_schema()
    except Exception:  # a plugin's own types may have none
        return {}


def _finding(
    item: Mapping[str, Any], schema: Mapping[str, Any], model: type[BaseModel], data: Any, noun: str
) -> Finding:
    kind = item["type"]
    path = _clean(item["loc"], data, missing=kind == "missing")
    if kind == "missing" and not isinstance(path[-1], int):
        expected = expectation(schema, path)
        plain = not expected or expected.startswith("a block")
        return Finding(path, "is missing" if plain else f"is missing; it must be {expected}", missing=True)
    if kind == "missing":
        path = path[:-1]  # a list that is too short
    if kind == "extra_forbidden":
        known = sorted({name for s in _at(schema, path[:-1]) for name in s.get("properties", {})})
        return Finding(path, f"unknown {noun}", suggest(str(path[-1]), known), unknown=True, options=tuple(known))
    if kind in ("value_error", "assertion_error"):
        return _own(item, path, model, data)
    found = _value(data, path)
    limit = item.get("ctx", {}).get("max_length")
    if kind in ("string_too_long", "too_long") and limit and "pattern" not in str(_at(schema, path)):
        what = "text of at most {} characters" if kind == "string_too_long" else "a list of at most {} items"
        return Finding(path, f"must be {what.format(limit)}, found {len(found)}")
    expected = expectation(schema, path)
    if not expected:
        return Finding(path, f"{item['msg']}, found {show(found)}")
    options = [o for s in _at(schema, path) for o in _options(s, schema) if isinstance(o, str)]
    near = suggest(found, options) if isinstance(found, str) else None
    if isinstance(found, str) and SYNONYMS.get(found.lower()) in options:
        near = SYNONYMS[found.lower()]
    quoted = " (text: drop the quotes)" if "number" in expected and _is_number(found) else ""
    return Finding(path, f"must be {expected}, found {show(found)}{quoted}", near, options=tuple(options))


def _is_number(found: Any) -> bool:
    """Whether a text reads as a number."""
    try:
        return isinstance(found, str) and float(found) == float(found)
    except ValueError:
        return False


def _own(item: Mapping[str, Any], path: KeyPath, model: type[BaseModel], data: Any) -> Finding:
    """What a validator of the model itself says; ``key: …`` names the key that it means."""
    text = str(item.get("ctx", {}).get("error", item["msg"]))
    key, colon, rest = text.partition(": ")
    block = _value(data, path)
    if colon and ((not path and key in model.model_fields) or (isinstance(block, dict) and key in block)):
        return Finding((*path, key), rest)
    return Finding(path, text)


def _clean(loc: Sequence[str | int], data: Any, *, missing: bool) -> KeyPath:
    """A pydantic location without the names of union branches and validators."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        elif missing and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _value(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


# --- what would have been right -----------------------------------------------------------------------------


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
    return schema


def _branches(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    schema = _resolve(schema, root)
    nested = schema.get("anyOf") or schema.get("oneOf")
    if not nested:
        yield schema
    else:
        for one in nested:
            yield from _branches(one, root)


def _at(root: Mapping[str, Any], path: KeyPath) -> list[Mapping[str, Any]]:
    """The schemas of what may stand at `path`, without null."""
    level = list(_branches(root, root))
    for part in path:
        below: list[Mapping[str, Any]] = []
        for schema in level:
            if isinstance(part, int):
                prefix = schema.get("prefixItems", [])
                inner = prefix[part] if part < len(prefix) else schema.get("items")
            else:
                inner = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
            if isinstance(inner, Mapping):
                below.extend(_branches(inner, root))
        level = below
    return [s for s in level if s.get("type") != "null"]


def _options(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Any]:
    schema = _resolve(schema, root)
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def expectation(root: Mapping[str, Any], path: KeyPath) -> str:
    """What may stand at `path`, in words; empty where the schema doesn't say."""
    words: list[str] = []
    for schema in _at(root, path):
        words.extend([show(o) for o in _options(schema, root)] or [_describe(schema, root)])
    words = [w for w in dict.fromkeys(words) if w]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else ""


def _describe(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind == "string" and schema.get("format") == "date":
        return "a date, as 2026-01-31"
    if kind == "string":
        if "pattern" in schema:
            length = f"at most {schema['maxLength']} " if "maxLength" in schema else "text of "
            return length + PATTERNS.get(schema["pattern"], f"the pattern {schema['pattern']}")
        return "text that is not empty" if schema.get("minLength") else "text"
    if kind == "integer":
        return "a whole number" + _bounds(schema)
    if kind == "number":
        return "a number" + _bounds(schema)
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return _describe_list(schema, root)
    if kind == "object":
        inner = schema.get("additionalProperties")
        value = _describe(_resolve(inner, root), root) if isinstance(inner, Mapping) else ""
        names = "at least one name" if schema.get("minProperties") == 1 else "names"
        return f"a block of {names}, each with {value}" if value else "a block of keys"
    return ""


def _describe_list(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    prefix = schema.get("prefixItems")
    if prefix:
        return f"a list of {len(prefix)} items, each {_describe(_resolve(prefix[0], root), root)}"
    inner = schema.get("items")
    each = _describe(_resolve(inner, root), root) if isinstance(inner, Mapping) else ""
    some = "a list of at least one item" if schema.get("minItems") == 1 else "a list"
    return f"{some}, each {each}" if each and schema.get("minItems") else f"{some}, each item {each}" if each else some


def _bounds(schema: Mapping[str, Any]) -> str:
    low = [f"of at least {_number(schema['minimum'])}"] if "minimum" in schema else []
    low += [f"above {_number(schema['exclusiveMinimum'])}"] if "exclusiveMinimum" in schema else []
    high = [f"at most {_number(schema['maximum'])}"] if "maximum" in schema else []
    high += [f"below {_number(schema['exclusiveMaximum'])}"] if "exclusiveMaximum" in schema else []
    return "".join(f" {words}" for words in (" and ".join([*low, *high]),) if words)


def _number(bound: float) -> str:
    return str(int(bound) if float(bound).is_integer() else bound)
