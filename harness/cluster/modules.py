"""Plugins that a spec names as ``module:attr`` and that lie in the user's own folders: what of them is sent."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.errors import ArgumentError

OURS = ("harness", "policies")


def local_modules(names: Iterable[str]) -> dict[str, Path]:
    """The files and folders of local top-level modules, by what they are called where they are sent.

    What these import of the user's own folders is sent too. Installed packages are not: the cluster has its own.

    Args:
        names: Modules, dotted.

    Raises:
        ArgumentError: One lies in a folder that would shadow uudp's own packages.
    """
    found: dict[str, Path] = {}
    todo = [name.partition(".")[0] for name in names]
    while todo:
        top = todo.pop()
        path = _local(top)
        if path is None or path.name in found:
            continue
        if top in OURS:
            raise ArgumentError(f"{path} shadows uudp's own package `{top}` on the cluster; rename it")
        found[path.name] = path
        for source in [path] if path.is_file() else path.rglob("*.py"):
            todo.extend(_imported(source))
    return found


def _local(top: str) -> Path | None:
    """The file or folder of a module below the current folder or one of ``PYTHONPATH``; None: it is installed."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    origin = places[0] if places else spec.origin if spec else None
    if origin is None or not os.path.exists(origin):
        return None
    path = Path(origin).resolve()
    if top in OURS and path.parent == Path(__file__).resolve().parents[2]:
        return None
    own = [Path.cwd(), *(Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place)]
    return path if path.parent in {folder.resolve() for folder in own} else None


def _imported(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports anywhere."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
