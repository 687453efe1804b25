"""Rows of measured values with their intervals as inline SVG, drawn as `charts` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from harness.reporting import charts

LARGEST = 1e6
"""Beyond it a value is not drawn: it would press all others together at the axis' beginning."""
Shape = Literal["disc", "ring", "square", "tick", "wall"]
_LANE = 20.0


@dataclass(frozen=True)
class Spot:
    """A value in a row.

    Attributes:
        value: Where it lies.
        name: For its tooltip.
        color: Name of a CSS variable of the page, without the dashes.
        shape: ``wall`` goes through all lanes of its row.
        interval: Both ends of a line through it; None: no line.
        lane: 0 is the uppermost of its row.
    """

    value: float
    name: str
    color: str
    shape: Shape = "disc"
    interval: tuple[float, float] | None = None
    lane: int = 0


@dataclass(frozen=True)
class Row:
    """A row, with its name and what stands at its right end above its lanes.

    Attributes:
        name: Label of the row.
        label: Its values in short.
        color: Of label and bar.
        spots: Later ones are drawn on top.
        until: A pale bar reaches from the axis' beginning to here; None: no bar.
    """

    name: str
    label: str
    color: str
    spots: Sequence[Spot]
    until: float | None = None


@dataclass(frozen=True)
class Axis:
    """The common axis of all rows.

    Attributes:
        low: What lies in it in any case.
        high: The same.
        rules: Dashed lines through all rows: where, and what is written above.
        tick: How a value is written; None: as a number.
    """

    low: float
    high: float
    rules: Sequence[tuple[float, str]] = ()
    tick: Callable[[float], str] | None = None


def drawable(value: float | None) -> bool:
    """Whether a value fits into a drawing."""
    return value is not None and abs(value) < LARGEST


def chart(name: str, rows: Sequence[Row], axis: Axis, title: str, description: str, width: int) -> Markup:
    """Values along a common axis, row by row.

    Args:
        name: Unique in the page; ids are made from it.
        rows: At least one; all values are `drawable`.
        axis: What they lie along.
        title: For screen readers.
        description: For screen readers.
        width: In CSS pixels at full size.
    """
    narrow = width < 500
    top = 22.0 if axis.rules else 6.0
    lanes = [1 + max((spot.lane for spot in row.spots), default=0) for row in rows]
    heights = [30 + _LANE * n for n in lanes]
    height = top + sum(heights) + 32
    left, right = 10.0, width - 10.0
    grid = charts.ticks(*_ends(rows, axis), 4 if narrow else 8)

    def at(value: float) -> float:
        return left + (value - grid[0]) / (grid[-1] - grid[0]) * (right - left)

    body: list[Markup] = []
    for value in grid:
        anchor = "start" if value == grid[0] else "end" if value == grid[-1] else "mid"
        x = {"start": 0.0, "end": float(width)}.get(anchor, at(value))
        words = charts.tick_text(value, grid) if axis.tick is None else axis.tick(value)
        body.append(charts.element("line", x1=at(value), x2=at(value), y1=top, y2=height - 26, class_="grid"))
        body.append(charts.text(words, x, height - 8, f"tick {anchor}"))
    for value, words in axis.rules:
        share = (at(value) - left) / (right - left)
        anchor = "start" if share < 0.3 else "end" if share > 0.7 else "mid"
        body.append(charts.element("line", x1=at(value), x2=at(value), y1=top - 4, y2=height - 26, class_="rule"))
        body.append(charts.text(words, at(value), 12, f"note {anchor}"))
    y = top
    for row, count, tall in zip(rows, lanes, heights, strict=True):
        body += _row(row, count, y, (left, right, narrow), at)
        y += tall
    return charts.svg(f"{name}-{width}", (width, height), body, title=title, description=description)


def _ends(rows: Sequence[Row], axis: Axis) -> tuple[float, float]:
    values = [axis.low, axis.high, *(value for value, _ in axis.rules)]
    values += [row.until for row in rows if row.until is not None]
    for spot in (spot for row in rows for spot in row.spots):
        values += [spot.value, *(spot.interval or ())]
    return min(values), max(values)


def _row(
    row: Row, lanes: int, top: float, room: tuple[float, float, bool], at: Callable[[float], float]
) -> list[Markup]:
    left, right, narrow = room
    style = f"--c:var(--{row.color})"
    # What the label leaves of the line; letters are about 7.6 pixels wide.
    most = max(8, int((right - left) / 7.6) - len(row.label) - (0 if narrow else 20))
    parts = [
        charts.text(charts.cut(row.name, most), left, top + 18, "row-name halo", full=row.name),
        charts.text(row.label, right, top + 18, "value end halo", style),
    ]
    if row.until is not None:
        width = max(at(row.until) - at(0.0), 1.0)
        parts.append(
            charts.element(
                "rect", x=at(0.0), y=top + 26, width=width, height=_LANE * lanes, rx=4, class_="within", style=style
            )
        )
    for spot in row.spots:
        parts += _spot(spot, top + 26 + _LANE * (spot.lane + 0.5), (top + 26, _LANE * lanes), at)
    return parts


def _spot(spot: Spot, y: float, span: tuple[float, float], at: Callable[[float], float]) -> list[Markup]:
    x, style = at(spot.value), f"--c:var(--{spot.color})"
    tip = charts.element("title", spot.name)
    parts = []
    if spot.interval is not None:
        ends = [at(end) for end in spot.interval]
        caps = "".join(f"M{end:.1f},{y - 4:.1f}v8" for end in ends)
        path = f"M{ends[0]:.1f},{y:.1f}H{ends[1]:.1f}{caps}"
        parts.append(charts.element("path", d=path, class_="spread", style=style))
    if spot.shape == "wall":
        line = {"x1": x, "x2": x, "y1": span[0] - 3, "y2": span[0] + span[1] + 3}
        return [*parts, charts.element("line", tip, **line, class_="wall", style=style)]
    if spot.shape == "tick":
        return [*parts, charts.element("line", tip, x1=x, x2=x, y1=y - 7, y2=y + 7, class_="most", style=style)]
    if spot.shape == "square":
        box = {"x": x - 5.5, "y": y - 5.5, "width": 11.0, "height": 11.0}
        return [*parts, charts.element("rect", tip, **box, class_="dot", style=style)]
    css = "hollow" if spot.shape == "ring" else "dot"
    return [
        *parts,
        charts.element("circle", tip, cx=x, cy=y, r=5.5 if css == "hollow" else 6.5, class_=css, style=style),
    ]
