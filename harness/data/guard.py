"""Runs a plugin's code on private data, so that what it raises can't carry them out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from harness.data.quiet import LOG, Quiet, silent
from harness.errors import ArgumentError, UserError
from harness.files import append_private, private_folder
from harness.packages import name_of as described

R = TypeVar("R")

_BATCH, _BATCH_SECONDS = 256, 0.005


def name_of(plugin: object) -> str:
    """The class of a plugin, as ``module.Class``."""
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def guarded(plugin: object, call: Callable[[], R], private_dir: Path | None) -> R:
    """What `call` returns. What it prints, warns or logs goes to the private folder, or nowhere.

    Args:
        plugin: Whose code it runs, for the error.
        call: Takes nothing.
        private_dir: Gets the details of an error, in a file of its own.

    Raises:
        ArgumentError: It raised something. The message names the plugin alone; nothing is chained to it.
    """
    try:
        if silent():  # a caller around the loop has seen to it
            return call()
        with Quiet(private_dir):
            return call()
    except UserError:
        raise
    except (Exception, SystemExit):
        error = plugin_error(plugin, "raised an error", traceback.format_exc(), private_dir)
    raise error  # outside of `except`, so that what was raised is not chained to it


def guarded_iteration(plugin: object, items: Iterator[R], private_dir: Path | None) -> Iterator[R]:
    """The same items, some read ahead while the console is redirected; an error names the plugin alone.

    Raises:
        ArgumentError: As `guarded`; the items before the error come first.
    """
    batch: list[R] = []

    def fill() -> bool:
        # Few items, and fewer of large ones, are in memory at a time.
        until = time.perf_counter() + _BATCH_SECONDS
        for item in items:
            batch.append(item)
            if len(batch) >= _BATCH or time.perf_counter() >= until:
                return True
        return False

    more, failed = True, None
    while more:
        try:
            more = guarded(plugin, fill, private_dir)
        except UserError as error:
            more, failed = False, error
        yield from batch
        batch.clear()
    if failed is not None:
        raise failed


def plugin_error(plugin: object, problem: str, details: str, private_dir: Path | None) -> ArgumentError:
    """The error for a plugin that failed on private data, its details written where the owner alone can read them."""
    hint = ""
    if private_dir is not None:
        private_folder(private_dir)
        append_private(private_dir / LOG, f"{name_of(plugin)} {problem}\n{details}\n".encode(errors="replace"))
        hint = f"; see {private_dir.name}/{LOG}"
    return ArgumentError(f"the plugin {described(type(plugin))} {problem}{hint}")
