"""Writes the pages of all plugins that come with uudp, or checks that they are those pages.

    python scripts/pages.py [--check] [NAME…]

A page is ``policies/pages/<kind>/<name>.md``, made from the plugin's docstring, its `Page` and its parameters. That of
a noise policy also shows its levers against risk, calibrated as `uudp plan` does, as text and as an SVG beside it
(drawn by the same functions as the report's charts, so that nothing more need be installed). The same code gives the
same bytes: no date, no random id. With --check nothing is written, and the exit code is 1 where a page differs, is
missing, or belongs to no plugin. NAMEs restrict it to these plugins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.planning.levers import NAMES, RISKS, LeverCurves, levers_by_risk
from harness.plugins import NoisePolicy
from harness.reporting.charts import element, ticks
from harness.spec import catalog, pages

COLUMNS, PANEL, HEIGHT, MARGIN = 3, 220.0, 150.0, 46.0
COLORS = {"line": "#0b7a75", "ink": "#1d2326", "soft": "#667074", "rule": "#dcd8ce", "paper": "#ffffff"}
SCHEDULE = "during the run"


def main() -> None:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    parser.add_argument("--folder", type=Path, default=pages.folder())
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    wanted = dict(made(set(options.names)))
    stale = [name for name, text in wanted.items() if _read(options.folder / name) != text]
    extra = [] if options.names else sorted(_there(options.folder) - set(wanted))
    if options.check:
        if stale or extra:
            sys.exit(f"pages: stale: {', '.join([*stale, *extra])}: run python scripts/pages.py")
        return
    for name in stale:
        path = options.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[name], encoding="utf-8")
        print(path)
    for name in extra:
        (options.folder / name).unlink()


def made(names: set[str]) -> Iterator[tuple[str, str]]:
    """Every file below the folder of pages, by its path there; `names` restrict it."""
    for kind in pages.KINDS:
        for name in catalog.KINDS[kind]:
            if catalog.KINDS[kind].origin(name) != "built-in" or (names and name not in names):
                continue
            cls = catalog.KINDS[kind].get(name)
            curves = levers_by_risk(cls) if issubclass(cls, NoisePolicy) else None
            yield from files(kind, name, curves)


def files(kind: str, name: str, curves: LeverCurves | None) -> Iterator[tuple[str, str]]:
    """The files of one plugin."""
    (entry,) = catalog.details(f"{kind}/{name}")
    page = catalog.KINDS[kind].get(name).page
    if curves is None:
        yield f"{kind}/{name}.md", pages.render(entry, page)
        return
    yield f"{kind}/{name}.md", pages.render(entry, page, curves.lines(), curves.setting, f"{name}.svg")
    yield f"{kind}/{name}.svg", drawing(name, curves)


def drawing(name: str, curves: LeverCurves) -> str:
    """One panel per lever, against risk."""
    panels = [("target ε", RISKS, curves.targets)]
    panels += [(NAMES[key], RISKS, values) for key, values in curves.levers.items()]
    if curves.schedule:
        noise, clip = ([part[k] for part in curves.schedule] for k in (0, 1))
        over, values = ("clip norm", clip) if len(set(noise)) == 1 else ("noise", noise)
        places = tuple((i + 0.5) / len(values) for i in range(len(values)))
        panels.append((f"{over} {SCHEDULE}", places, tuple(values)))
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (PANEL + MARGIN) + 14, rows * (HEIGHT + MARGIN) + 14
    body: list[str] = [element("rect", width=width, height=height, fill=COLORS["paper"])]
    for i, panel in enumerate(panels):
        at = (i % COLUMNS) * (PANEL + MARGIN) + MARGIN, (i // COLUMNS) * (HEIGHT + MARGIN) + 30
        body.append(element("g", *_panel(*panel), transform=f"translate({at[0]:g} {at[1]:g})"))
    title = element("title", f"Levers of the noise policy {name} against risk")
    described = element("desc", curves.setting.replace("`", ""))
    style = "font: 12px system-ui, sans-serif"
    box = f"0 0 {width:g} {height:g}"
    root = element("svg", title, described, *body, viewBox=box, width=width, height=height, role="img", style=style)
    return str(root).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _panel(title: str, places: tuple[float, ...], values: tuple[float, ...]) -> Iterator[str]:
    """A title, a grid from zero, and a line with a dot for every value."""
    grid = ticks(0.0, max(values), 3)
    bottom = HEIGHT - 30

    def at(x: float, y: float) -> tuple[float, float]:
        return x * PANEL, bottom * (1 - y / grid[-1])

    yield element("text", title, x=0, y=-10, fill=COLORS["ink"], font_weight="600")
    for value in grid:
        y = at(0, value)[1]
        yield element("line", x1=0, x2=PANEL, y1=y, y2=y, stroke=COLORS["rule"])
        yield element("text", f"{value:.4g}", x=-6, y=y + 4, fill=COLORS["soft"], text_anchor="end")
    ends = ("first step", "last") if title.endswith(SCHEDULE) else ("risk 0", "1")
    for x, label, anchor in ((0.0, ends[0], "start"), (PANEL, ends[1], "end")):
        yield element("text", label, x=x, y=bottom + 18, fill=COLORS["soft"], text_anchor=anchor)
    placed = [at(x, y) for x, y in zip(places, values, strict=True)]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    yield element("path", d=path, fill="none", stroke=COLORS["line"], stroke_width="2")
    for (x, y), value in zip(placed, values, strict=True):
        yield element("circle", element("title", f"{value:.3g}"), cx=x, cy=y, r=3.5, fill=COLORS["line"])


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _there(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
