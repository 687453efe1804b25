"""Runs a plugin's code on private data, so that what it raises can't carry them out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from harness.errors import ArgumentError, UserError
from harness.files import append_private, private_folder
from harness.packages import name_of as described

R = TypeVar("R")

LOG = "plugin-errors.log"


def name_of(plugin: object) -> str:
    """The class of a plugin, as ``module.Class``."""
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def guarded(plugin: object, call: Callable[[], R], private_dir: Path | None) -> R:
    """What `call` returns.

    Args:
        plugin: Whose code it runs, for the error.
        call: Takes nothing.
        private_dir: Gets the details of an error, in a file of its own.

    Raises:
        ArgumentError: It raised something. The message names the plugin alone; nothing is chained to it.
    """
    try:
        return call()
    except UserError:
        raise
    except (Exception, SystemExit):
        error = plugin_error(plugin, "raised an error", traceback.format_exc(), private_dir)
    raise error  # outside of `except`, so that what was raised is not chained to it


def guarded_iteration(plugin: object, items: Iterator[R], private_dir: Path | None) -> Iterator[R]:
    """The same items; an error on the way becomes one that names the plugin alone.

    Raises:
        ArgumentError: As `guarded`.
    """
    end = object()
    while (item := guarded(plugin, lambda: next(items, end), private_dir)) is not end:
        yield item  # type: ignore[misc]


def plugin_error(plugin: object, problem: str, details: str, private_dir: Path | None) -> ArgumentError:
    """The error for a plugin that failed on private data, its details written where the owner alone can read them."""
    hint = ""
    if private_dir is not None:
        private_folder(private_dir)
        append_private(private_dir / LOG, f"{name_of(plugin)} {problem}\n{details}\n".encode(errors="replace"))
        hint = f"; see {private_dir.name}/{LOG}"
    return ArgumentError(f"the plugin {described(type(plugin))} {problem}{hint}")
