"""Plots of many points as inline SVG: bars, scatter plots and parallel coordinates, drawn as `charts` draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from harness.reporting import charts
from harness.reporting import formatting as f

Kind = Literal["winner", "finished", "stopped"]
UNSET = "not set"
_GAP = 0.24
"""Of an axis: what is kept for points that have no value there."""
_GOLDEN = 0.6180339887
_LETTER = 7.2
"""Width of one in a tick, in pixels, roughly."""


@dataclass(frozen=True)
class Scale:
    """Where values lie on an axis, from 0 at its beginning to 1 at its end.

    Attributes:
        low: What lies at its beginning.
        high: What lies at its end.
        logarithmic: Both above 0 then, and all values.
        labels: Of an axis of categories, whose values are their places in it; empty: a scale of numbers.
        unset: Whether a part at the beginning is kept for None.
    """

    low: float
    high: float
    logarithmic: bool = False
    labels: tuple[str, ...] = ()
    unset: bool = False

    def place(self, value: float | None) -> float:
        """From 0 to 1; None is only allowed where a part is kept for it."""
        if value is None:
            return 0.0
        at = (self._along(value) - self._along(self.low)) / (self._along(self.high) - self._along(self.low))
        return _GAP + (1 - _GAP) * at if self.unset else at

    @property
    def slot(self) -> float:
        """Of an axis of categories: how much of it each has. Of a scale of numbers 0."""
        return (1 - _GAP * self.unset) / len(self.labels) if self.labels else 0.0

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """About `count` places and what is written there."""
        first = [(0.0, UNSET)] if self.unset else []
        if self.labels:
            step = math.ceil(len(self.labels) / max(count, 1))
            return first + [(self.place(i), label) for i, label in enumerate(self.labels) if i % step == 0]
        if self.logarithmic:
            return first + [(self.place(v), f.significant(v)) for v in _round(self.low, self.high, count)]
        grid = charts.ticks(self.low, self.high, count)
        slack = 1e-6 * (self.high - self.low)
        inside = [v for v in grid if self.low - slack <= v <= self.high + slack]
        return first + [(self.place(v), _number(v, grid)) for v in inside]

    def _along(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def _number(value: float, grid: Sequence[float]) -> str:
    """A tick; of a number too long to be read, its first digits."""
    if value != 0 and not 1e-3 <= max(abs(v) for v in grid) < 1e5:
        return f.significant(value)
    return charts.tick_text(value, grid)


def _round(low: float, high: float, count: int) -> list[float]:
    """Round numbers of a logarithmic scale; where there are too few of them, its ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [v for p in powers for m in factors if low <= (v := 10.0**p * m) <= high]
        if len(found) <= count:
            break
    found = found[:: math.ceil(len(found) / count)] if found else found
    return found if len(found) > 1 else [low * (high / low) ** 0.1, low * (high / low) ** 0.9]


def numbers(values: Iterable[float], *, logarithmic: bool = False, unset: bool = False, count: int = 4) -> Scale:
    """A scale around these numbers, with round ends unless it is logarithmic. At least one number."""
    known = sorted(values)
    low, high = known[0], known[-1]
    if logarithmic and low > 0:
        margin = max((math.log(high) - math.log(low)) * 0.04, 0.02)
        return Scale(low * math.exp(-margin), high * math.exp(margin), True, unset=unset)
    grid = charts.ticks(low, high, count)
    return Scale(grid[0], grid[-1], unset=unset)


def categories(labels: Sequence[str], *, unset: bool = False) -> Scale:
    """An axis of names, all as wide."""
    return Scale(-0.5, len(labels) - 0.5, labels=tuple(labels), unset=unset)


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot.

    Attributes:
        x: Its value on the x axis; None: it has none.
        y: Its value on the y axis.
        name: For its tooltip.
        kind: ``winner`` is drawn on top, ``stopped`` hollow.
    """

    x: float | None
    y: float
    name: str
    kind: Kind = "finished"


@dataclass(frozen=True)
class Path:
    """A line through all axes of parallel coordinates, with its value on each."""

    values: tuple[float | None, ...]
    name: str
    kind: Kind = "finished"


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart; `value` is None where there is none, and `label` says why."""

    name: str
    value: float | None
    label: str
    main: bool = False


def bars(name: str, rows: Sequence[Bar], title: str, description: str, width: int) -> Markup:
    """One bar per row, from zero. At least one row; values are not negative."""
    narrow = width < 500
    pitch, right = 44.0, width - 76.0
    height = pitch * len(rows) + 6
    most = max((row.value for row in rows if row.value is not None), default=0.0) or 1.0
    body: list[str] = []
    for index, row in enumerate(rows):
        y, style = pitch * index + 16, f"--c:var(--{'accent' if row.main else 'muted'})"
        words = f"✓ {row.name}" if row.main else row.name
        body.append(charts.text(charts.cut(words, 38 if narrow else 90), 0, y, "row-name", full=words))
        length = 0.0 if row.value is None else max(row.value / most * right, 2.0)
        if row.value is not None:
            tip = charts.element("title", f"{row.name}: {row.label}")
            css = "block main" if row.main else "block"
            body.append(charts.element("rect", tip, x=0, y=y + 8, width=length, height=12, rx=3, class_=css))
        body.append(charts.text(row.label, length + 8 if length else 0, y + 19, "value", style))
    return charts.svg(f"{name}-{width}", (width, height), body, title=title, description=description)


def scatter(
    name: str, dots: Sequence[Dot], scales: tuple[Scale, Scale], axes: charts.Axes, width: int, *, front: str = ""
) -> Markup:
    """Points over two axes.

    Args:
        name: Unique in the page; ids are made from it.
        dots: The better ones first, since others are drawn below them. At least one.
        scales: Of x and y.
        axes: The texts around.
        width: In CSS pixels at full size.
        front: ``min`` or ``max``: a line joins the points that no other one beats, which would lie further left and be
            lower, or higher; empty: no line.
    """
    height = 230.0 if width < 500 else 320.0
    left, right, top, bottom = 54.0, width - 14.0, 26.0, height - 44.0
    across, up = scales

    def at(dot: Dot, index: int) -> charts.Point:
        x = across.place(dot.x)
        # Side by side rather than one over the other: by their order, so that a page is the same each time.
        spread = across.slot * 0.5 if dot.x is not None else _GAP * 0.4
        if across.labels or dot.x is None:
            aside = (index * _GOLDEN) % 1 - 0.5
            x += spread * aside if dot.x is not None else spread * (aside + 0.5) + 0.02
        return left + x * (right - left), bottom - up.place(dot.y) * (bottom - top)

    body: list[str] = [charts.text(axes.y_name, 0, 12, "axis-name")]
    body.append(charts.text(axes.x_name, (left + right) / 2, height - 5, "axis-name mid"))
    for place, label in up.ticks(4):
        y = bottom - place * (bottom - top)
        body.append(charts.element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        body.append(charts.text(charts.cut(label, 10), left - 8, y + 4, "tick end", full=label))
    body += _along(across, left, right, bottom + 17)
    placed = [(at(dot, index), dot) for index, dot in enumerate(dots)]
    if front:
        body.append(_front([place for place, _ in placed], -1 if front == "max" else 1))
    for (x, y), dot in reversed(sorted(placed, key=lambda pair: pair[1].kind != "winner")):
        body.append(_point(x, y, dot.name, dot.kind))
    return charts.svg(f"{name}-{width}", (width, height), body, title=axes.title, description=axes.description)


def parallel(
    name: str, axes: Sequence[tuple[str, Scale]], paths: Sequence[Path], title: str, description: str, width: int
) -> Markup:
    """Parallel coordinates: axes below one another, which leaves room for long names, and a line for each point.

    Args:
        name: Unique in the page; ids are made from it.
        axes: Names and scales, from top to bottom.
        paths: The better ones first.
        title: For screen readers.
        description: For screen readers.
        width: In CSS pixels at full size.
    """
    narrow = width < 500
    pitch, left, right = (72.0, 8.0, width - 10.0) if narrow else (58.0, 222.0, width - 12.0)
    top = 30.0 if narrow else 14.0
    height = top + pitch * (len(axes) - 1) + 28
    body: list[str] = []
    for path in reversed(sorted(paths, key=lambda path: path.kind != "winner")):
        places = (scale.place(value) for (_, scale), value in zip(axes, path.values, strict=True))
        points = (f"{left + p * (right - left):.1f},{top + pitch * i:.1f}" for i, p in enumerate(places))
        tip = charts.element("title", path.name)
        body.append(charts.element("path", tip, d="M" + "L".join(points), class_=f"thread {path.kind}"))
    for index, (label, scale) in enumerate(axes):
        y = top + pitch * index
        body.append(charts.element("line", x1=left, x2=right, y1=y, y2=y, class_="axis"))
        words = charts.cut(label, 42 if narrow else 28)
        body.append(charts.text(words, 0, y - 10 if narrow else y + 5, "row-name halo", full=label))
        body += _along(scale, left, right, y + 17, halo=True)
    return charts.svg(f"{name}-{width}", (width, height), body, title=title, description=description)


def _along(scale: Scale, left: float, right: float, y: float, *, halo: bool = False) -> list[Markup]:
    """The ticks of a horizontal axis, as many as there is room for."""
    room = right - left
    placed: list[tuple[float, str, str, str]] = []
    for count in (6, 5, 4, 3, 2):
        placed, free = [], True
        end = -math.inf
        marks = scale.ticks(count)
        step = math.ceil(len(scale.labels) / count)
        # Where some are left out, the first one is not in the middle of its room.
        wide = scale.slot * step * (0.62 if step > 1 else 1.0)
        most = max(3, int(room * wide / _LETTER)) if scale.labels else 20
        for place, label in marks:
            words = charts.cut(label, max(most, len(UNSET)))
            # At the ends of an axis a text would stand out of the drawing.
            anchor = "start" if place <= 0.04 else "end" if place >= 0.96 else "mid"
            length = _LETTER * len(words)
            begin = place * room - {"start": 0.0, "mid": length / 2, "end": length}[anchor]
            if begin < end + 4:
                free = False
                continue
            placed.append((place, words, anchor, label))
            end = begin + length
        if free:
            break
    css = " halo" if halo else ""
    return [
        charts.text(words, left + place * room, y, f"tick {anchor}{css}", full=label)
        for place, words, anchor, label in placed
    ]


def _point(x: float, y: float, name: str, kind: Kind) -> Markup:
    tip = charts.element("title", name)
    if kind == "stopped":
        return charts.element("circle", tip, cx=x, cy=y, r=4.5, class_="hollow")
    color = "accent" if kind == "winner" else "g1"
    css = "dot best" if kind == "winner" else "dot"
    return charts.element(
        "circle", tip, cx=x, cy=y, r=8 if kind == "winner" else 5, class_=css, style=f"--c:var(--{color})"
    )


def _front(points: Sequence[charts.Point], sign: int) -> Markup:
    """A staircase through the points that no other one beats in both; sign 1: further down the page is better."""
    best: list[charts.Point] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    path = f"M{best[0][0]:.1f},{best[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in best[1:])
    return charts.element("path", d=path, class_="line dashed", style="--c:var(--accent)")
