"""Small charts as inline SVG: no script, no font, no network.

Every chart has a title and a description for those who don't see it, takes its colours from CSS variables of the
page (so that dark mode and print need no second drawing), and escapes every text it is given. Text inside an SVG
shrinks with it; so `responsive` draws a chart twice, for wide and for narrow windows, and CSS shows one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDE = 760
NARROW = 340
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: For tooltips and the description.
        points: (x, y), sorted by x.
        color: Name of a CSS variable of the page, without the dashes.
        label: What stands beside the last point.
        dashed: Drawn with dashes.
        filled: With a tint down to the bottom of the chart.
        markers: With a dot at every point.
        spread: Half the height of a bar around each point, in the unit of y; empty: no bars.
    """

    name: str
    points: Sequence[Point]
    color: str
    label: str = ""
    dashed: bool = False
    filled: bool = False
    markers: bool = True
    spread: Sequence[float] = ()


@dataclass(frozen=True)
class Axes:
    """What a line chart says around its lines.

    Attributes:
        title: Read out by screen readers.
        description: The same in a sentence with the numbers.
        x_name: Under the x axis.
        y_name: Above the y axis.
        notes: A second line under the tick at x.
        from_zero: The y axis starts at zero.
        tick: How a value of the y axis is written; None: as a number.
    """

    title: str
    description: str
    x_name: str
    y_name: str
    notes: Mapping[float, str] = field(default_factory=dict)
    from_zero: bool = False
    tick: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Row:
    """One row of a dumbbell chart: from where to where, and where it could have gone.

    Attributes:
        name: Label of the row.
        start: Value before; None: unknown.
        end: Value after.
        other: A third value to compare with.
        color: Name of a CSS variable of the page, without the dashes.
        label: What stands at the right end of the row.
    """

    name: str
    start: float | None
    end: float | None
    other: float | None
    color: str
    label: str = ""


@dataclass(frozen=True)
class Mark:
    """A point on the ε scale."""

    name: str
    value: float
    color: str
    main: bool = False


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An SVG element; texts and attribute values are escaped. ``class_`` is written ``class``, ``a_b`` ``a-b``."""
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _short(value))
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup("").join(children))


def responsive(draw: Callable[[int], Markup]) -> Markup:
    """The chart for wide and for narrow windows, of which CSS shows one."""
    return element("div", draw(WIDE), class_="wide-only") + element("div", draw(NARROW), class_="narrow-only")


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover `low` to `high`; at least two."""
    span, size = high - low, max(abs(low), abs(high))
    if span <= max(1e-9 * size, 1e-30):
        # As good as one value; relative to it, so that a step never vanishes in rounding.
        span = size * 0.1 if size > 1e-20 else 1.0
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last <= first:
        last = first + 1
    return [k * step for k in range(first, last + 1)]


def line_chart(name: str, series: Sequence[Series], axes: Axes, width: int) -> Markup:
    """Lines over a common x axis.

    Args:
        name: Unique in the page; ids are made from it.
        series: Drawn in this order, the last one on top. At least one point in all.
        axes: The texts around.
        width: In CSS pixels at full size.
    """
    narrow = width < 500
    height = 250.0 if narrow else 320.0
    left, right, top, bottom = 40.0, width - 50.0, 30.0, height - (52.0 if axes.notes else 40.0)
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points]
    ys += [y + side * half for line in series for (_, y), half in _spreads(line) for side in (-1, 1)]
    grid = ticks(min([0.0, *ys] if axes.from_zero else ys), max(ys), 4 if narrow else 5)
    x_low, x_span = xs[0], (xs[-1] - xs[0]) or 1.0

    def at(point: Point) -> Point:
        across = left + (point[0] - x_low) / x_span * (right - left)
        return across, bottom - (point[1] - grid[0]) / (grid[-1] - grid[0]) * (bottom - top)

    body = [text(axes.y_name, 0, 12, "axis-name"), text(axes.x_name, (left + right) / 2, height - 4, "axis-name mid")]
    for value in grid:
        y = at((x_low, value))[1]
        body.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        body.append(text(axes.tick(value) if axes.tick else tick_text(value, grid), left - 8, y + 4, "tick end"))
    for x in _thinned(xs, 5 if narrow else 11):
        body.append(text(_plain(x), at((x, grid[0]))[0], bottom + 18, "tick mid"))
        if x in axes.notes:
            body.append(text(axes.notes[x], at((x, grid[0]))[0], bottom + 31, "note mid"))
    body += [_bar(line, at((x, y - half)), at((x, y + half))) for line in series for (x, y), half in _spreads(line)]
    body += [_line(line, [at(point) for point in line.points], bottom, narrow) for line in series if line.points]
    ends = [(at(line.points[-1])[1], line) for line in series if line.points and line.label]
    for y, line in zip(_apart([y for y, _ in ends], 14), (line for _, line in ends), strict=True):
        body.append(text(line.label, right + 8, y + 4, "value", f"--c:var(--{line.color})"))
    return svg(f"{name}-{width}", (width, height), body, title=axes.title, description=axes.description)


def dumbbells(name: str, rows: Sequence[Row], title: str, description: str, width: int) -> Markup:
    """One row per group, from its value before to its value after. At least one value in all."""
    narrow = width < 500
    pitch, top = 48.0, 8.0
    height = top + pitch * len(rows) + 30
    values = [v for row in rows for v in (row.start, row.end, row.other) if v is not None]
    grid = ticks(min(values), max(values), 4 if narrow else 8)
    left, right = 8.0, width - 8.0

    def at(value: float) -> float:
        return left + (value - grid[0]) / (grid[-1] - grid[0]) * (right - left)

    body: list[str] = []
    for value in grid:
        anchor = "start" if value == grid[0] else "end" if value == grid[-1] else "mid"
        body.append(element("line", x1=at(value), x2=at(value), y1=top, y2=height - 26, class_="grid"))
        body.append(text(tick_text(value, grid), at(value), height - 8, f"tick {anchor}"))
    for index, row in enumerate(rows):
        y = top + pitch * index + 32
        body.append(text(cut(row.name, 26 if narrow else 60), left, y - 14, "row-name", full=row.name))
        body.append(text(row.label, right, y - 14, "value end", f"--c:var(--{row.color})"))
        body += _dumbbell(row, y, at)
    return svg(f"{name}-{width}", (width, height), body, title=title, description=description)


def bells(name: str, apart: float, widest: float, color: str, *, title: str, description: str) -> Markup:
    """Two bell curves of the same noise, around a sum without and with one user.

    Args:
        name: Unique in the page.
        apart: How many standard deviations of the noise lie between the two; infinity draws two spikes.
        widest: The largest distance among the charts that are compared, which all get the same scale.
        color: Name of a CSS variable, without the dashes.
        title: For screen readers.
        description: For screen readers.
    """
    width, height, base = 300.0, 92.0, 88.0
    spikes = apart > 40  # where the curves would be thinner than their outline
    low, high = (-0.5, 1.5) if spikes else (-3.2, min(widest, 40.0) + 3.2)

    def across(x: float) -> float:
        return (x - low) / (high - low) * width

    def curve(center: float) -> str:
        if spikes:
            return f"M{across(center):.1f},{base}V8"
        span = [low + (high - low) * k / 96 for k in range(97)]
        shape = (f"{across(x):.1f},{base - 78 * math.exp(-0.5 * (x - center) ** 2):.1f}" for x in span)
        return "M" + "L".join(shape)

    body = [element("line", x1=0, x2=width, y1=base, y2=base, class_="floor")]
    for center, paint in ((0.0, "muted"), (1.0 if spikes else apart, color)):
        body.append(element("path", d=curve(center), class_="bell", style=f"--c:var(--{paint})"))
    return svg(name, (width, height), body, title=title, description=description, css="bells")


def epsilon_scale(
    name: str, marks: Sequence[Mark], note: Callable[[float], str], *, title: str, description: str, width: int
) -> Markup:
    """A logarithmic scale of ε from strong to weak, with what each power of ten means below it.

    Args:
        name: Unique in the page.
        marks: At least one; values above zero.
        note: The text under a tick.
        title: For screen readers.
        description: For screen readers.
        width: In CSS pixels at full size.
    """
    values = [mark.value for mark in marks]
    low = min(-1, math.floor(math.log10(min(values)) + 1e-9))
    high = max(low + 2, 2 if max(values) > 10 else 1, math.ceil(math.log10(max(values)) - 1e-9))
    left, right, y, height = 14.0, width - 14.0, 44.0, 92.0

    def at(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    track = element("rect", x=left, y=y - 4, width=right - left, height=8, rx=4, fill=f"url(#{name}-{width}-g)")
    paints = (("0", "strong"), ("0.5", "middle"), ("1", "weak"))
    stops = (element("stop", offset=offset, style=f"stop-color:var(--{paint})") for offset, paint in paints)
    body: list[str] = [element("linearGradient", *stops, id=f"{name}-{width}-g"), track]
    for power in range(low, high + 1):
        x = at(10.0**power)
        anchor = "start" if power == low else "end" if power == high else "mid"
        x_text = left if power == low else right if power == high else x
        body.append(element("line", x1=x, x2=x, y1=y + 8, y2=y + 14, class_="axis"))
        body.append(text(f"ε {10.0**power:g}", x_text, y + 29, f"tick {anchor}"))
        body.append(text(note(10.0**power), x_text, y + 44, f"note {anchor}"))
    for mark in sorted(marks, key=lambda m: not m.main):
        tip = element("title", f"{mark.name}: ε {mark.value:.3g}")
        style = f"--c:var(--{mark.color})"
        if mark.main:
            x = at(mark.value)
            body.append(element("path", tip, d=f"M{x:.1f},{y - 12}l-8,-13h16z", class_="pointer", style=style))
        else:
            body.append(element("circle", tip, cx=at(mark.value), cy=y, r=7, class_="mark", style=style))
    return svg(f"{name}-{width}", (width, height), body, title=title, description=description)


# --- parts ----------------------------------------------------------------------------------------------------


def svg(name: str, size: Point, body: Iterable[str], *, title: str, description: str, css: str = "chart") -> Markup:
    """A whole drawing, named for those who don't see it; `name` is unique in the page, since ids are made from it."""
    width, height = size
    return element(
        "svg",
        element("title", title, id=f"{name}-t"),
        element("desc", description, id=f"{name}-d"),
        *body,
        class_=css,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        style=f"max-width:{width:g}px",
    )


def text(content: str, x: float, y: float, css: str, style: str | None = None, *, full: str | None = None) -> Markup:
    """A text at a place of the drawing; `full` is what a tooltip says where `content` was cut."""
    tip = (element("title", full),) if full is not None and full != content else ()
    return element("text", *tip, content, x=x, y=y, class_=css, style=style)


def _line(line: Series, placed: Sequence[Point], bottom: float, narrow: bool) -> Markup:
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = []
    if line.filled:
        parts.append(element("path", d=f"{path}V{bottom:g}H{placed[0][0]:.1f}Z", class_="area"))
    parts.append(element("path", d=path, class_="line dashed" if line.dashed else "line"))
    if line.markers and len(placed) <= 60:
        for (x, y), (step, value) in zip(placed, line.points, strict=True):
            tip = element("title", f"{line.name}, {_plain(step)}: {value:.4g}")
            parts.append(element("circle", tip, cx=x, cy=y, r=3.5 if narrow else 4.5, class_="dot"))
    return element("g", *parts, style=f"--c:var(--{line.color})")


def _spreads(line: Series) -> list[tuple[Point, float]]:
    return list(zip(line.points, line.spread, strict=True)) if line.spread else []


def _bar(line: Series, low: Point, high: Point) -> Markup:
    x, ends = low[0], (low[1], high[1])
    caps = "".join(f"M{x - 4:.1f},{y:.1f}h8" for y in ends)
    style = f"--c:var(--{line.color})"
    return element("path", d=f"M{x:.1f},{ends[0]:.1f}V{ends[1]:.1f}{caps}", class_="spread", style=style)


def _dumbbell(row: Row, y: float, at: Callable[[float], float]) -> list[Markup]:
    style = f"--c:var(--{row.color})"
    parts = []
    if row.start is not None and row.end is not None:
        x1, x2 = at(row.start), at(row.end)
        parts.append(element("line", x1=x1, x2=x2, y1=y, y2=y, class_="bar", style=style))
    if row.start is not None:
        tip = element("title", f"{row.name}, base: {row.start:.4g}")
        parts.append(element("circle", tip, cx=at(row.start), cy=y, r=6, class_="hollow"))
    if row.other is not None:
        x, tip = at(row.other), element("title", f"{row.name}, ordinary: {row.other:.4g}")
        diamond = f"M{x - 6.5:.1f},{y}L{x:.1f},{y - 6.5}L{x + 6.5:.1f},{y}L{x:.1f},{y + 6.5}Z"
        parts.append(element("path", tip, d=diamond, class_="diamond"))
    if row.end is not None:
        tip = element("title", f"{row.name}, trained: {row.end:.4g}")
        parts.append(element("circle", tip, cx=at(row.end), cy=y, r=7.5, class_="dot", style=style))
    return parts


def _apart(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, moved down as little as needed so that no two labels are nearer than `gap`."""
    moved = list(positions)
    order = sorted(range(len(moved)), key=lambda k: moved[k])
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved


def _thinned(values: Sequence[float], most: int) -> Sequence[float]:
    return values[:: max(1, math.ceil(len(values) / most))]


def tick_text(value: float, grid: Sequence[float]) -> str:
    """A value of a grid of `ticks`, with as many decimals as its steps need."""
    decimals = max(0, -math.floor(math.log10(grid[1] - grid[0]) + 1e-9))
    # A step of 2.5 needs one more decimal than its power of ten.
    if not math.isclose((grid[1] - grid[0]) * 10**decimals, round((grid[1] - grid[0]) * 10**decimals), rel_tol=1e-6):
        decimals += 1
    return f"{value:.{decimals}f}".replace("-", "−")


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def cut(words: str, most: int) -> str:
    """The text, or its beginning and an ellipsis: at most so many characters."""
    return words if len(words) <= most else words[: most - 1] + "…"


def _short(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
