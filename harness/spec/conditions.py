"""Conditional keys of a sweep's space: which keys a candidate has, by what others are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.spec.sweep_block import PriorBlock

Space = Mapping[str, PriorBlock]
NOTHING = object()


def by_key(data: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a spec by dotted key: blocks, what they hold, and the items of lists."""
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list | tuple) else ()
    for name, value in items:
        yield f"{above}{name}", value
        yield from by_key(value, f"{above}{name}.")


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, and true is not 1."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is among those of a condition."""
    return any(same(value, one) for one in allowed)


def owner(key: str, space: Space) -> str | None:
    """The key of the space that sets `key`: itself, or a block around it."""
    parts = key.split(".")
    return next((k for n in range(len(parts), 0, -1) if (k := ".".join(parts[:n])) in space), None)


def inside(value: Any, key: str, above: str) -> Any:
    """What `value`, which stands at `above`, says of `key`; `NOTHING` where it is silent."""
    for part in key[len(above) + 1 :].split(".") if key != above else ():
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and _is_index(part, value):
            value = value[int(part)]
        else:
            return NOTHING
    return value


def _is_index(part: str, items: list[Any] | tuple[Any, ...]) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(items)


def holds(prior: PriorBlock, drawn: Mapping[str, Any], space: Space, base: Mapping[str, Any]) -> bool:
    """Whether a candidate has a key.

    Args:
        prior: Of that key.
        drawn: The candidate's values so far, by key.
        space: The whole space.
        base: The resolved spec's values by dotted key, which count where the candidate says nothing.
    """
    for key, allowed in prior.conditions.items():
        above = owner(key, space)
        value = inside(drawn[above], key, above) if above is not None and above in drawn else NOTHING
        if value is NOTHING:
            value = base.get(key, NOTHING)
        if not is_one_of(value, allowed):
            return False
    return True


def ordered(space: Space) -> tuple[str, ...]:
    """The keys of a space, each after those that its condition names; else in the space's order.

    Raises:
        ValueError: Conditions go in a circle; its text is that circle.
    """
    done: dict[str, None] = {}
    for key in space:
        _visit(key, space, done, ())
    return tuple(done)


def _visit(key: str, space: Space, done: dict[str, None], path: tuple[str, ...]) -> None:
    if key in done:
        return
    if key in path:
        raise ValueError(" → ".join((*path[path.index(key) :], key)))
    for name in space[key].conditions:
        above = owner(name, space)
        if above is not None:
            _visit(above, space, done, (*path, key))
    done[key] = None
