"""A spec between reading and checking: valid by itself, though its blocks may not fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.plugins import Plugin
from harness.spec.merging import Merged
from harness.spec.models import Spec
from harness.spec.problems import KeyPath


@dataclass(frozen=True)
class Draft:
    """A spec that may still have problems.

    Attributes:
        spec: Valid by itself; stand-ins replace what is wrong.
        merged: What was written, and where problems go.
        broken: Paths that a stand-in replaces: nothing is concluded from them.
        plugins: Plugin of each block; None where it could not be built.
    """

    spec: Spec
    merged: Merged
    broken: frozenset[KeyPath]
    plugins: Mapping[KeyPath, Plugin | None]

    def sure(self, *names: str) -> bool:
        """Whether all these keys, and the blocks around them, are as the user meant them."""
        for name in names:
            path = tuple(name.split("."))
            if any(b == path[: len(b)] or path == b[: len(path)] for b in self.broken):
                return False
        return True

    def written(self, name: str) -> bool:
        """Whether the spec itself says something at this key, right or wrong."""
        node: Any = self.merged.data
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True
