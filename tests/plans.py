"""Specs of made users, for tests that plan: a JSON Lines file, a spec beside it, and a plugin for every mischief."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.data.sources.base import BadRecord, Columns, Record, RecordSource
from harness.plugins import Group, NoisePolicy, PluginError, Proposal

BASE: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "data": {
        "name": "posts",
        "source": {"type": "jsonl", "path": "posts.jsonl"},
        "attributes": ["plan"],
        "holdout": {"users": 0.0, "visibility": "public"},
        "population": 1000,
    },
    "model": {"base": "tiny-model"},
    "privacy": {"epsilon": 8.0, "delta": 1.0e-5},
    "sampling": {"expected": 20},
    "train": {"steps": 10},
}
ATTRIBUTE = {"type": "attribute", "column": "plan", "values": ["free", "paid"]}
USAGE = {"type": "usage", "measure": "records", "edges": [3], "names": ["few", "many"]}
"""Segments by own records."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, block by block; None takes a key out, and another ``type`` a whole block's old keys."""
    found = dict(base)
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and "type" not in value:
            found[key] = merged(found[key], value)
        else:
            found[key] = value
    return found


def posts(users: int = 40, plan: Callable[[int], str | None] = lambda u: "free" if u % 4 else "paid") -> list[Any]:
    """Records of made users, of whom every fourth pays; from one to five records each."""
    return [
        {"user": f"u{u}", "text": f"post {p} of user {u}", "plan": plan(u)}
        for u in range(users)
        for p in range(1 + u % 5)
    ]


def write_spec(folder: Path, records: Iterable[Any] | None = None, **changes: Any) -> Path:
    """Writes a spec and its records, and returns the spec's path."""
    lines = [json.dumps(record) for record in (posts() if records is None else records)]
    (folder / "posts.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(merged(BASE, changes), sort_keys=False))
    return path


class Trapped(RecordSource):
    """A source whose texts nobody may touch; its public columns are there."""

    def records(self, columns: Columns) -> Iterator[Record | BadRecord]:
        raise AssertionError("a private record was read")

    def fingerprint(self, update: Callable[[bytes], None]) -> None:
        raise AssertionError("the private content was read")

    def public(self, columns: Columns) -> Iterator[tuple[str, Mapping[str, str | None]]]:
        for u in range(40):
            yield f"u{u}", {"plan": "free" if u % 4 else "paid"}


class Rogue(NoisePolicy):
    """A third party's policy that does what a test tells it to."""

    answer: ClassVar[Callable[[Sequence[Group], float], Proposal]]

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        return type(self).answer(groups, epsilon)


class Refusing(NoisePolicy):
    """A policy that can't serve these groups, and says so in two lines."""

    def propose(self, groups: Sequence[Group], epsilon: float) -> Proposal:
        if groups[0].weight is not None:
            raise PluginError("these groups\n  are too small", ("epsilon",))
        return Proposal({g.name: epsilon for g in groups})
