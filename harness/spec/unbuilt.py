"""Keys of features that a later version has: refused by name, never ignored. Null and empty blocks pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness.spec.problems import KeyPath, show

NOT_BUILT = "is not built yet in this version"
_Test = Callable[[Any], bool]


def _one_of(*names: str) -> _Test:
    return lambda value: value in names


def _given(value: Any) -> bool:
    return value is not None and value not in ({}, [])


def _block(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


# Path; what of its values is refused; whether this version knows the key with other values.
_TABLE: tuple[tuple[str, _Test, bool], ...] = (
    ("sweep", _given, False),
    ("audit", _given, False),
    ("data.holdout.visibility", _one_of("private"), True),
    ("data.population", _one_of("noisy"), True),
    ("data.weights", _one_of("noisy"), True),
    ("model.adapter.type", _one_of("full"), True),
    ("privacy.ledger", _given, False),
    ("sampling.unit", _one_of("example", "auto"), True),
    ("clipping.type", _given, False),
    ("train.schedule", _given, False),
    ("compute.workers", _block, True),
    ("compute.deepspeed.offload", lambda value: _given(value) and value != "none", False),
    ("compute.microbatch_tokens", _one_of("auto"), True),
    ("report.trackers", _given, False),
)
# The parameters of a refused value, which would be unknown keys otherwise.
_COMPANIONS = {"clipping.type": ("quantile", "initial")}
# Where the value, not the key, is what isn't built.
_BY_VALUE = {"clipping.type", "compute.deepspeed.offload"}


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
            by_value = (known or name in _BY_VALUE) and isinstance(value, str)
            yield path, f"{show(value)} {NOT_BUILT}" if by_value else _phrase(name), known or by_value
            for companion in _COMPANIONS.get(name, ()):
                parent.pop(companion, None)
        elif known:
            continue
        del parent[path[-1]]


def _phrase(name: str) -> str:
    of_block = {"compute.workers": "a varying number of workers"}
    return f"{of_block[name]} {NOT_BUILT}" if name in of_block else NOT_BUILT


def _parent(data: Any, path: KeyPath) -> dict[str, Any] | None:
    for part in path[:-1]:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None
