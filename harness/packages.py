"""Installed packages: who announces which plugin, and whether something lies in the way of uudp's own packages."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
GROUPS = ("uudp.source", "uudp.segmentation", "uudp.sensitivity", "uudp.noise")


def announced(group: str) -> Sequence[importlib.metadata.EntryPoint]:
    """What installed packages announce under a group of entry points; read again where something was installed.

    Reading all packages takes long, and a registry is asked often.
    """
    installed = tuple((folder, os.stat(folder).st_mtime_ns) for folder in sys.path if os.path.isdir(folder))
    return _read(importlib.metadata.entry_points, group, installed)


@functools.lru_cache(maxsize=32)
def _read(
    read: Callable[..., importlib.metadata.EntryPoints], group: str, installed: tuple[tuple[str, int], ...]
) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(read(group=group))


def distribution(entry: importlib.metadata.EntryPoint) -> str:
    """The installed package that announces an entry point, as ``name version``."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"


def name_of(cls: type) -> str:
    """A plugin's class for an error: ``module.Class``, and the installed package that it comes from, if from one."""
    top = cls.__module__.partition(".")[0]
    for group in GROUPS:
        for entry in announced(group):
            if entry.value.partition(":")[0].partition(".")[0] == top:
                return f"{cls.__module__}.{cls.__qualname__} of {distribution(entry)}"
    return f"{cls.__module__}.{cls.__qualname__}"


def shadow(name: str, first: Path | None = None) -> str | None:
    """What is imported in place of uudp's own top-level package `name`: a folder or a file, in words.

    Args:
        name: ``harness`` or ``policies``.
        first: Another folder than the ones of this process that is looked at first, as Ray's workers do.

    Returns:
        None if it is our own that is found.
    """
    ours = HOME / name
    found: ModuleSpec | None
    if first is not None:
        # An editable install may be found by other means, if nothing lies on the path.
        found = PathFinder.find_spec(name, [str(first), *sys.path])
    else:
        try:
            found = importlib.util.find_spec(name)
        except ValueError:  # something made by hand stands among the imported modules
            return "a module without a file"
    if found is None:
        return None
    places = [Path(place).resolve() for place in found.submodule_search_locations or ()]
    if ours in places:
        return None
    if places:
        return f"the folder {places[0]}"
    return f"the file {Path(found.origin).resolve()}" if found.origin else "a module without a file"
