"""The leaderboard's charts: what a policy gives against what it promises, for all users and for each group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.reporting import charts, plots
from harness.reporting import formatting as f
from harness.reporting.drawings import color
from harness.reporting.leaderboard.ranking import Board, Mean, Row, half_text

_NEAR = 18.0
"""Marks nearer than so many pixels are moved apart sideways."""
_STEP = 12.0
_WIDE_SPREAD = 3.0
"""From this ratio on, ε is drawn on a logarithmic axis."""
_MARGIN = 0.05
"""Relative, on both sides of all ε: an axis must not spread what differs by rounding alone."""
LARGEST = 1e6
WIDE = 1040
"""In CSS pixels: as wide as a table."""


@dataclass(frozen=True)
class Mark:
    """A point with its interval: ε, and what was reached there."""

    name: str
    epsilon: float
    value: Mean
    color: str


@dataclass(frozen=True)
class Line:
    """A level to compare with, all across the chart."""

    name: str
    value: float
    color: str


def colors(board: Board) -> dict[str, str]:
    """A colour per policy, the same in every chart and table of a board."""
    names = dict.fromkeys(sorted({row.policy for row in (*board.ranked, *board.unranked)}))
    return {name: color(index) for index, name in enumerate(names)}


def utility_chart(name: str, board: Board) -> Markup | None:
    """Hold-out loss against the ε that the least protected group is promised; None where nothing has a place.

    Args:
        name: Unique in the page.
        board: Its ranked rows are drawn, with the base model and training without privacy as lines.
    """
    paint = colors(board)
    marks = [
        Mark(_named(row), row.claimed, row.loss, paint[row.policy])
        for row in board.ranked
        if row.loss is not None and row.claimed is not None and 0 < row.claimed < LARGEST
    ]
    if not marks:
        return None
    lines = []
    bases = [row.base for row in board.ranked if row.base is not None]
    if bases:
        lines.append(Line("base model", sum(bases) / len(bases), "muted"))
    plain = [row.loss.mean for row in board.unprotected if row.loss is not None]
    if plain:
        lines.append(Line("not private", min(plain), "ordinary"))
    told = "; ".join(f"{m.name}: ε {f.epsilon(m.epsilon)}, loss {_interval(m.value)}" for m in marks)
    axes = charts.Axes(
        "Hold-out loss against the ε of the least protected group",
        f"Nats per token, lower is better. {told}.",
        "ε of the least protected group",
        "nats per token",
    )
    wide, narrow = (_chart(name, marks, lines, axes, width) for width in (WIDE, charts.NARROW))
    return charts.element("div", wide, class_="wide-only") + charts.element("div", narrow, class_="narrow-only")


def group_panels(name: str, board: Board) -> list[dict[str, str]]:
    """A small chart for each group: its loss against its own ε; none where nothing is claimed of single groups."""
    paint = colors(board)
    names = dict.fromkeys(g.name for row in board.ranked for g in row.groups)
    if len(names) < 2:
        return []
    found = []
    for index, group in enumerate(names):
        marks = [
            Mark(_named(row), g.claimed, g.loss, paint[row.policy])
            for row in board.ranked
            for g in row.groups
            if g.name == group and g.loss is not None and g.claimed is not None and 0 < g.claimed < LARGEST
        ]
        if not marks:
            continue
        told = "; ".join(f"{m.name}: ε {f.epsilon(m.epsilon)}, loss {_interval(m.value)}" for m in marks)
        axes = charts.Axes(f"Loss of {group} against its ε", f"{told}.", "ε of this group", "nats per token")
        found.append({"name": group, "chart": _chart(f"{name}-{index}", marks, [], axes, charts.NARROW)})
    return found


def _named(row: Row) -> str:
    return row.policy if row.budget is None else f"{row.policy} at {row.budget:g}"


def _interval(value: Mean) -> str:
    return f.loss(value.mean) + ("" if value.half is None else f" ± {half_text(value.half)}")


def _chart(name: str, marks: Sequence[Mark], lines: Sequence[Line], axes: charts.Axes, width: int) -> Markup:
    narrow = width < 500
    height = 250.0 if narrow else 400.0
    left, right, top, bottom = 52.0, width - (14.0 if narrow else 96.0), 28.0, height - 44.0
    epsilons = [mark.epsilon for mark in marks]
    around = (min(epsilons) * (1 - _MARGIN), max(epsilons) * (1 + _MARGIN))
    across = plots.numbers(around, logarithmic=max(epsilons) > _WIDE_SPREAD * min(epsilons))
    ends = [mark.value.mean + side * (mark.value.half or 0.0) for mark in marks for side in (-1, 1)]
    up = plots.numbers([*ends, *(line.value for line in lines)], count=5)

    def at(value: float) -> float:
        return bottom - min(max(up.place(value), 0.0), 1.0) * (bottom - top)

    body: list[str] = [charts.text(axes.y_name, 0, 12, "axis-name")]
    body.append(charts.text(axes.x_name, (left + right) / 2, height - 5, "axis-name mid"))
    for place, label in up.ticks(5):
        y = bottom - place * (bottom - top)
        body.append(charts.element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        body.append(charts.text(label, left - 8, y + 4, "tick end"))
    inset = 22.0
    places = [left + inset + across.place(e) * (right - left - 2 * inset) for e in epsilons]
    body += _ticks(_marked(epsilons, across), left + inset, right - inset, bottom)
    body += [_line(line, at(line.value), left, right, narrow) for line in lines]
    for x, mark in zip(_apart(places), marks, strict=True):
        body.append(_mark(mark, min(max(x, left + 6), right - 6), at, narrow))
    return charts.svg(f"{name}-{width}", (width, height), body, title=axes.title, description=axes.description)


def _marked(epsilons: Sequence[float], scale: plots.Scale) -> list[tuple[float, str]]:
    """Where the axis is labelled: at the values themselves where these are few, else at round ones."""
    values = {f.significant(value, 2): value for value in sorted(epsilons)}
    if len(values) <= 6:
        return [(scale.place(value), label) for label, value in values.items()]
    return scale.ticks(5)


def _ticks(ticks: Sequence[tuple[float, str]], left: float, right: float, bottom: float) -> list[Markup]:
    found, end = [], -math.inf
    for place, label in ticks:
        x = left + place * (right - left)
        if x - 4 * len(label) > end:
            found.append(charts.element("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
            found.append(charts.text(label, x, bottom + 19, "tick mid"))
            end = x + 4 * len(label) + 6
    return found


def _line(line: Line, y: float, left: float, right: float, narrow: bool) -> Markup:
    style = f"--c:var(--{line.color})"
    drawn = charts.element("path", d=f"M{left:.1f},{y:.1f}H{right:.1f}", class_="line dashed", style=style)
    if narrow:
        return drawn + charts.text(line.name, right, y - 5, "note end halo", style)
    return drawn + charts.text(line.name, right + 8, y + 4, "note", style)


def _mark(mark: Mark, x: float, at: Callable[[float], float], narrow: bool) -> Markup:
    style, y = f"--c:var(--{mark.color})", at(mark.value.mean)
    tip = charts.element("title", f"{mark.name}: ε {f.epsilon(mark.epsilon)}, {_interval(mark.value)} nats per token")
    parts = [charts.element("circle", tip, cx=x, cy=y, r=5 if narrow else 6.5, class_="dot")]
    if mark.value.half:
        low, high = at(mark.value.mean - mark.value.half), at(mark.value.mean + mark.value.half)
        path = f"M{x:.1f},{low:.1f}V{high:.1f}M{x - 4:.1f},{low:.1f}h8M{x - 4:.1f},{high:.1f}h8"
        parts.insert(0, charts.element("path", d=path, class_="spread"))
    return charts.element("g", *parts, style=style, class_="mark-of")


def _apart(places: Sequence[float]) -> list[float]:
    """The same places, those of marks that would cover each other fanned out around their middle."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    clusters: list[list[int]] = []
    for i in order:
        if clusters and places[i] - places[clusters[-1][-1]] < _NEAR:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    moved = list(places)
    for held in clusters:
        middle = sum(places[i] for i in held) / len(held)
        for rank, i in enumerate(held):
            if len(held) > 1:
                moved[i] = middle + (rank - (len(held) - 1) / 2) * _STEP
    return moved
