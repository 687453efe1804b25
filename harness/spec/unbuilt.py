"""Keys of features that a later version has: refused by name, never ignored. Null and empty blocks pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from harness.plugins import suggest
from harness.spec.problems import KeyPath, show

NOT_BUILT = "is not built yet in this version"
_Test = Callable[[Any], bool]


def _one_of(*names: str) -> _Test:
    return lambda value: value in names


def _given(value: Any) -> bool:
    return value is not None and value not in ({}, [])


# Values that this version knows the key of, but does not have.
_VALUES: dict[str, tuple[str, ...]] = {}
# Path; what of its values is refused; whether this version knows the key with other values.
_TABLE: tuple[tuple[str, _Test, bool], ...] = (
    *((name, _one_of(*values), True) for name, values in _VALUES.items()),
    ("report.trackers", _given, False),
)


def near_key(path: KeyPath, known: Iterable[str]) -> str | None:
    """The key of an unbuilt feature that an unknown key was probably meant to be, if none of `known` is nearer."""
    above = ".".join(str(part) for part in path[:-1])
    unbuilt = {name.rpartition(".")[2] for name, _, built in _TABLE if not built and name.rpartition(".")[0] == above}
    near = suggest(str(path[-1]), [*known, *unbuilt])
    return near if near in unbuilt else None


def near_value(path: KeyPath, value: Any, known: Iterable[str]) -> str | None:
    """The same for a value."""
    unbuilt = _VALUES.get(".".join(str(part) for part in path), ())
    near = suggest(value, [*known, *unbuilt]) if isinstance(value, str) else None
    return near if near in unbuilt else None


def take_unbuilt(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str, bool]]:
    """Takes the keys of features that aren't built out of `data`; yields those that ask for one.

    Yields:
        The path, the message, and whether the value rather than the key is at fault.
    """
    for name, refused, known in _TABLE:
        path = tuple(name.split("."))
        parent = _parent(data, path)
        if parent is None or path[-1] not in parent:
            continue
        value = parent[path[-1]]
        if refused(value):
            by_value = known and isinstance(value, str)
            yield path, f"{show(value)} {NOT_BUILT}" if by_value else NOT_BUILT, known
        elif known:
            continue
        del parent[path[-1]]


def _parent(data: Any, path: KeyPath) -> dict[str, Any] | None:
    for part in path[:-1]:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None
