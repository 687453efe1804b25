"""``uudp policies``: the plugins there are, and a start for one of your own."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from harness.cli import completion, console


def policies(
    action: Annotated[
        str, typer.Argument(metavar="list|show|new", help="what to do", autocompletion=completion.policies_action)
    ] = "list",
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME|KIND NAME",
            help="show: a plugin; new: its kind (segmentation, sensitivity, noise) and name",
            autocompletion=completion.policies_words,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """List plugins, show one, or start a package with one of your own.

    Plugins are what a spec names by `type`: built in, announced by an installed package (entry points uudp.noise and
    so on), or given as module:Class. A package that is started holds a plugin that works, and its conformance test.
    """
    from harness.errors import ArgumentError
    from harness.plugins import PluginError, suggest

    given = names or []
    counts = {"list": 0, "show": 1, "new": 2}
    if action not in counts:
        near = suggest(action, counts)
        raise ArgumentError(f'policies: there is no "{action}"' + (f'; did you mean "{near}"?' if near else ""))
    if len(given) != counts[action]:
        usage = {"list": "", "show": " NAME", "new": " KIND NAME"}[action]
        raise ArgumentError(f"usage: uudp policies {action}{usage}")
    try:
        if action == "new":
            _new(*given, json=json)
        else:
            _tell(action, given, json=json)
    except PluginError as error:
        raise ArgumentError(f"policies: {error.message}") from None


def _new(kind: str, name: str, *, json: bool) -> None:
    from harness.cli.scaffold import scaffold

    folder, files = scaffold(kind, name)
    if json:
        console.emit_json({"folder": str(folder), "files": files})
        return
    console.out(f"made {folder}: {', '.join(files)}")
    console.out(f"next: pip install -e {folder} && pytest {folder}")


def _tell(action: str, given: list[str], *, json: bool) -> None:
    from harness.spec import catalog

    if action == "list":
        found = catalog.listing()
        if json:
            console.emit_json({"plugins": found})
        for line in [] if json else _listed(found):
            console.out(line)
        return
    found = [one | {"page": _page(one)} for one in catalog.details(given[0])]
    if json:
        console.emit_json({"plugins": found})
        return
    for one in found:
        console.out(f"{one['kind']} {one['name']}  ({one['origin']})")
        console.out(f"sees {one['access']}")
        console.out(one["defined"])
        console.out()
        console.markdown(one["page"])


def _page(one: Mapping[str, Any]) -> str:
    """A plugin's page: the one that comes with uudp, or one that is made of the plugin now."""
    from harness.spec import catalog, pages

    if text := pages.shipped(one):
        return text
    cls = catalog.KINDS[one["kind"]].get(one["name"])
    if one["kind"] != "noise":
        return pages.render(one, cls.page)
    from harness.planning.levers import levers_by_risk

    curves = levers_by_risk(cls)
    return (
        pages.render(one, cls.page) if curves is None else pages.render(one, cls.page, curves.lines(), curves.setting)
    )


def _listed(found: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    kind = ""
    for one in found:
        if one["kind"] != kind:
            kind = one["kind"]
            lines += ["", kind] if lines else [kind]
        name, margin = f"  {one['name']}", " " * 16
        if len(name) >= len(margin):  # no room beside it
            lines.append(name)
            name = ""
        lines += textwrap.wrap(one["summary"], 80, initial_indent=f"{name:<16}", subsequent_indent=margin)
        origin = f"{one['origin']}; sees {one['access'] or 'nothing'}"
        lines += textwrap.wrap(origin, 80, initial_indent=margin, subsequent_indent=margin)
    return lines
