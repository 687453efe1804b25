"""Noise policies side by side: as lines for a terminal, and as a page that opens without network or script."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.files import write_released
from harness.reporting import charts, drawings
from harness.reporting import formatting as f
from harness.reporting.report import environment

Alternatives = Sequence[Mapping[str, Any]]
WIDTH, PLOT = 80, 54
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EXPLAINED = (
    "Noise to signal, over the whole run: the noise in the sum of all updates, per coordinate, over the most that the "
    "group's expected share of it can be, in the scale of one step. Lower is better. It is computed from public "
    "constants; what a run learns is not predicted."
)


def lines(alternatives: Alternatives) -> list[str]:
    """A table and a plot, in at most 80 columns."""
    found = [
        f"  {'policy, group':<19}{'ε':>8}{'clip':>9}{'σ':>8}{'rate':>9}{'steps':>7}{'kept':>5}{'noise/signal':>13}"
    ]
    for one in alternatives:
        found += ["", f"  {_short(_title(one), WIDTH - 2)}"]
        if one["note"]:
            found += _wrapped(one["note"])
        if one["reason"]:
            found += _wrapped(f"can't be used here: {one['reason']}")
            continue
        found += [_group_line(g) for g in one["groups"]]
        if one["overall"] is not None:
            worst = "left out:" if one["worst"] is None else f.significant(one["worst"], 3, padded=True)
            told = f"all together {f.significant(one['overall'], 3, padded=True)}, mean over users "
            told += f"{f.significant(one['mean'], 3, padded=True)}, worst {worst} {one['worst_group']}"
            found += _wrapped(told)
    return [*found, "", *_plot(alternatives), *_wrapped(_EXPLAINED, "  ")]


def write_page(path: Path, name: str, alternatives: Alternatives) -> Path:
    """Writes the page, readable by everybody (0644).

    Args:
        path: Of the file.
        name: Of the spec.
        alternatives: As `harness.planning.comparing.document` gives them.
    """
    write_released(path, page(name, alternatives))
    return path


def page(name: str, alternatives: Alternatives) -> str:
    """The comparison as HTML text. Every name is escaped."""
    groups = _groups(alternatives)
    legend = [{"name": g, "color": drawings.color(i)} for i, g in enumerate(groups)]
    drawn = [one for one in alternatives if one["overall"] is not None]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            name=name,
            explained=_EXPLAINED,
            legend=legend,
            chart=charts.responsive(lambda width: _chart(drawn, groups, width)) if drawn else None,
            rows=list(_rows(alternatives, groups)),
            refused=[one for one in alternatives if one["reason"]],
        )
    )


def _title(one: Mapping[str, Any]) -> str:
    return f"{one['name']} (this spec)" if one["kind"] == "spec" else str(one["name"])


def _groups(alternatives: Alternatives) -> list[str]:
    return list(dict.fromkeys(str(g["name"]) for one in alternatives for g in one["groups"]))


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _wrapped(text: str, margin: str = "    ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def _group_line(g: Mapping[str, Any]) -> str:
    name = f"    {_short(str(g['name']), 16):<17}"
    if g["noise_multiplier"] is None:
        return f"{name}{f.epsilon(g['epsilon']):>8}   not trained on"
    ratio = "?" if g["over_the_run"] is None else f"{g['over_the_run']:.5f}"
    return (
        f"{name}{f.epsilon(g['epsilon']):>8}{g['clip_norm']:>9.4g}{g['noise_multiplier']:>8.3g}"
        f"{g['sampling_rate']:>9.4g}{g['steps']:>7}{g['examples_per_user']:>5}{ratio:>13}"
    )


def _span(alternatives: Alternatives) -> tuple[float, float] | None:
    """The logarithms of the least and the largest number that is drawn; None: there is nothing to draw."""
    values = [value for one in alternatives for value in (one["overall"], *_ratios(one).values()) if value]
    if not values:
        return None
    low, high = math.log10(min(values)), math.log10(max(values))
    return low, max(high, low + 0.05)


def _ratios(one: Mapping[str, Any]) -> dict[str, float]:
    return {str(g["name"]): g["over_the_run"] for g in one["groups"] if g["over_the_run"] is not None}


def _plot(alternatives: Alternatives) -> list[str]:
    """A line per policy, a letter per group, on a logarithmic scale."""
    span, groups = _span(alternatives), _groups(alternatives)
    if span is None:
        return []
    letters = {name: _LETTERS[i % len(_LETTERS)] for i, name in enumerate(groups)}
    told = ", ".join(f"{letter} {_short(name, 30)}" for name, letter in letters.items())
    found = _wrapped(f"noise/signal, logarithmic: {told}, ● all together, + several", "  ")
    for one in alternatives:
        if one["overall"] is None:
            continue
        row = [" "] * PLOT
        marks = [(value, letters[name]) for name, value in _ratios(one).items()]
        for value, mark in [*marks, (one["overall"], "●")]:
            place = round((math.log10(value) - span[0]) / (span[1] - span[0]) * (PLOT - 1))
            row[place] = mark if row[place] == " " else "+"
        found.append(f"  {_short(_title(one), 22):<22}|{''.join(row).rstrip()}")
    ends = [f.significant(10**x, 2) for x in span]
    return [*found, f"  {'':<22}|{ends[0]}{ends[1]:>{PLOT - len(ends[0])}}", ""]


def _rows(alternatives: Alternatives, groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of the page's table: one row per policy and group."""
    for one in alternatives:
        for g in one["groups"]:
            color = drawings.color(groups.index(str(g["name"])))
            known = g["noise_multiplier"] is not None
            yield {
                "policy": _title(one),
                "note": one["note"] or "",
                "first": g is one["groups"][0],
                "span": len(one["groups"]),
                "group": g["name"],
                "color": color,
                "cells": [
                    f.epsilon(g["epsilon"]),
                    f.significant(g["clip_norm"], padded=True),
                    f.significant(g["noise_multiplier"], padded=True),
                    f.rate(g["sampling_rate"]) if known else f.MISSING,
                    f.whole(g["steps"]) if known else f.MISSING,
                    f.whole(g["examples_per_user"]),
                    f.significant(g["over_the_run"], padded=True),
                ],
                "overall": f.significant(one["overall"], padded=True),
                "mean": f.significant(one["mean"], padded=True),
            }


def _chart(alternatives: Alternatives, groups: Sequence[str], width: int) -> Markup:
    """Dots on a logarithmic scale, a row per policy."""
    span = _span(alternatives)
    assert span is not None
    pitch, left, right = 46.0, 10.0, width - 10.0
    height = pitch * len(alternatives) + 34
    low, high = span[0] - 0.03, span[1] + 0.03

    def at(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    body: list[Markup] = []
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [10.0**p * m for p in powers for m in (1, 2, 5) if low <= math.log10(10.0**p * m) <= high]
    for value in marks:
        body.append(charts.element("line", x1=at(value), x2=at(value), y1=4, y2=height - 26, class_="grid"))
        body.append(charts.element("text", f.significant(value), x=at(value), y=height - 8, class_="tick mid"))
    for i, one in enumerate(alternatives):
        y = pitch * i + 34
        ratios = _ratios(one)
        body.append(charts.element("text", _short(_title(one), 40), x=left, y=y - 14, class_="row-name"))
        every = [one["overall"], *ratios.values()]
        body.append(charts.element("line", x1=at(min(every)), x2=at(max(every)), y1=y, y2=y, class_="grid"))
        for name, value in ratios.items():
            tip = charts.element("title", f"{_title(one)}, {name}: {value:.4g}")
            style = f"--c:var(--{drawings.color(groups.index(name))})"
            body.append(charts.element("circle", tip, cx=at(value), cy=y, r=7, class_="dot", style=style))
        x, tip = at(one["overall"]), charts.element("title", f"{_title(one)}, all together: {one['overall']:.4g}")
        diamond = f"M{x - 6.5:.1f},{y}L{x:.1f},{y - 6.5}L{x + 6.5:.1f},{y}L{x:.1f},{y + 6.5}Z"
        body.append(charts.element("path", tip, d=diamond, class_="diamond"))
    told = "; ".join(f"{_title(one)}: {one['overall']:.3g}" for one in alternatives)
    return charts.element(
        "svg",
        charts.element("title", "Noise to signal of every policy", id=f"compare-{width}-t"),
        charts.element("desc", f"Logarithmic, all groups together. {told}.", id=f"compare-{width}-d"),
        *body,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"compare-{width}-t compare-{width}-d",
        style=f"max-width:{width:g}px",
    )
