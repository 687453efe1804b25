"""The page of a plugin, in Markdown of at most 80 columns: made from the plugin itself.

The pages of what comes with uudp are made once, by ``scripts/pages.py``, and lie in ``policies/pages``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.registry import Page

WIDTH = 80
KINDS = ("segmentation", "sensitivity", "noise")
"""Those whose pages are shipped."""
_PLACES = {
    "source": ("data:", "  source: "),
    "segmentation": ("segmentation: ",),
    "sensitivity": ("sensitivity:", "  scores:", "    - "),
    "noise": ("noise: ",),
}
"""Where a spec names a plugin of each kind: the lines before it."""


def folder() -> Path:
    """Where shipped pages lie."""
    import policies

    return Path(policies.__file__).parent / "pages"


def shipped(entry: Mapping[str, Any]) -> str | None:
    """The page that comes with uudp; None for any other plugin."""
    path = folder() / str(entry["kind"]) / f"{entry['name']}.md"
    try:
        return path.read_text(encoding="utf-8") if entry["origin"] == "built-in" else None
    except OSError:
        return None


def render(entry: Mapping[str, Any], page: Page, levers: Sequence[str] = (), setting: str = "", image: str = "") -> str:
    """The page.

    Args:
        entry: What `harness.spec.catalog.details` says of the plugin.
        page: What the plugin says of itself beyond that.
        levers: Of a noise policy: a plot in lines.
        setting: What the plot was calibrated for.
        image: Name of a file beside the page with the same as a drawing.
    """
    kind, name = str(entry["kind"]), str(entry["name"])
    lines = [f"# {kind}: {name}", "", *_paragraphs(str(entry["docstring"]))]
    if page.formula:
        lines += ["", "## Formula", "", "```text", *_kept(page.formula), "```"]
    sections = {
        "What it sees": " ".join(part for part in (f"Tier: {entry['access']}.", page.sees) if part),
        "What 0 and 1 mean": page.ends,
        "When to use it": page.when,
        "What it costs": page.costs,
    }
    if kind == "noise":
        del sections["What it sees"]  # the same for every policy: groups, and no user
    for heading, text in [*sections.items(), *page.more]:
        lines += ["", f"## {heading}", "", *_paragraphs(text)] if text else []
    lines += ["", "## In a spec", "", "```yaml", *_block(kind, name, page.example, entry["parameters"]), "```"]
    lines += ["", "## Parameters", "", *(_parameters(entry["parameters"]) or ["None."])]
    if levers:
        lines += ["", "## Levers against risk", "", *_paragraphs(setting), "", "```text", *levers, "```"]
    if image:
        lines += ["", f"![levers against risk]({image})"]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> list[str]:
    """Wrapped, but for lists and what is indented."""
    found: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        listed = any(line[:1] in (" ", "-", "*") for line in paragraph.splitlines())
        found += ["", *(paragraph.splitlines() if listed else _wrapped(paragraph))]
    return found[1:]


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    # A word such as "-" or "+" at the beginning of a line would make a list of it.
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def _kept(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False)


def _block(kind: str, name: str, example: str, parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    required = "".join(f", {p['name']}: …" for p in parameters if p["required"])
    first, *rest = (example or f"{{type: {name}{required}}}").splitlines()
    *before, last = _PLACES[kind]
    if not rest:
        return [*before, last + first]
    margin = len(last) if last.endswith("- ") else len(last) - len(last.lstrip()) + 2
    opened = [last + first] if last.endswith("- ") else [last.rstrip(), " " * margin + first]
    return [*before, *opened, *(" " * margin + line for line in rest)]


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for p in parameters:
        default = "required" if p["required"] else "optional" if p["default"] is None else f"default {p['default']}"
        lines += _wrapped(f"`{p['name']}`: {p['type']} ({default}). {p['description']}", "- ", "  ")
    return lines
