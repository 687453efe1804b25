"""Asks an own-records plugin about users: a built-in one in this process, anybody else's in a room of its own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from harness.data import guard, portable
from harness.data.quiet import Quiet
from harness.data.rooms import UserRoom, ask_all
from harness.errors import ArgumentError
from harness.packages import name_of
from harness.plugins import Plugin, PluginError, UserRecords
from harness.queries import Described


def is_built_in(thing: object) -> bool:
    """Whether its class comes with uudp, so that its code is as much trusted as the harness itself."""
    return type(thing).__module__.partition(".")[0] == "policies"


def ask_each(
    plugin: Plugin,
    task: Literal["assign", "score"],
    users: Iterable[UserRecords],
    private_dir: Path | None,
    *,
    rule: Described | None = None,
    refused: tuple[Path, ...] = (),
) -> Iterator[Any]:
    """What the plugin says of each user: a number, a text, or None for anything else. Private.

    Args:
        plugin: Whose code it is, for errors; and what is asked, unless there is a `rule`.
        task: The method that is asked.
        users: One user's records each.
        private_dir: Gets the details of a plugin's failure; None: nobody does.
        rule: An own-records rule that a session led to; it is rebuilt for every user.
        refused: Folders in which a room may read nothing.

    Raises:
        ArgumentError: The plugin fails. The message names it alone.
    """
    if is_built_in(plugin):
        made: Any = plugin if rule is None else portable.rebuild(rule, Plugin)
        with Quiet(private_dir):
            for user in users:
                yield guard.guarded(plugin, _call(made, task, user), private_dir)
        return
    thing = described(plugin) if rule is None else rule
    who = name_of(type(plugin))
    for reply in ask_all(lambda: UserRoom(thing, task, who=who, private_dir=private_dir, refused=refused), users):
        if reply.failed:
            raise guard.plugin_error(plugin, "raised an error", "", private_dir)
        yield reply.answer


def _call(made: Any, task: str, user: UserRecords) -> Any:
    return lambda: getattr(copy.deepcopy(made), task)(user)


def described(plugin: Plugin) -> Described:
    """A plugin as data, for a room.

    Raises:
        ArgumentError: It can't be rebuilt in another process.
    """
    with contextlib.suppress(PluginError):
        return portable.describe_plugin(plugin)
    raise ArgumentError(f"{name_of(type(plugin))} must be a class of a module, with parameters of its model alone")
