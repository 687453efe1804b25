"""The charts: well-formed, named for those who don't see them, and safe with any text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from harness.reporting import charts, whiskers

BAD = "</title><script>alert(1)</script>&\"'"


def line(width: int = 760, name: str = "loss") -> Markup:
    series = [charts.Series(name, [(0, 4.8), (5, 4.5), (10, 4.4)], "accent", "4.40", filled=True)]
    axes = charts.Axes(name, f"{name} falls", "step", name, {5: name})
    return charts.line_chart("c", series, axes, width)


def rows(width: int = 760, name: str = "few") -> Markup:
    data = [charts.Row(name, 5.0, 4.5, 4.4, "g0", name), charts.Row("b", None, 4.0, None, "g1")]
    return charts.dumbbells("d", data, name, name, width)


def scale(width: int = 760, name: str = "run") -> Markup:
    marks = [charts.Mark(name, 8.0, "g0", main=True), charts.Mark("b", 0.02, "g1")]
    return charts.epsilon_scale("s", marks, lambda value: name, title=name, description=name, width=width)


def bell(width: int = 300, name: str = "few") -> Markup:
    return charts.bells("b", 1.7, 1.7, "g0", title=name, description=name)


def measured(width: int = 760, name: str = "few") -> Markup:
    spots = [
        whiskers.Spot(8.0, name, "g0", "wall"), whiskers.Spot(5.0, name, "muted", "tick"),
        whiskers.Spot(1.0, name, "g0", "square", (0.5, 2.0), lane=1), whiskers.Spot(0.0, name, "no", "ring"),
    ]  # fmt: skip
    axis = whiskers.Axis(0.0, 1.0, [(0.5, name)])
    return whiskers.chart("w", [whiskers.Row(name, "1.0", "g0", spots, 8.0)], axis, name, name, width)


ALL = [line, rows, scale, bell, measured]


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_every_chart_is_well_formed_and_named(draw: Callable[..., Markup], width: int) -> None:
    root = ElementTree.fromstring(draw(width))
    assert root.get("role") == "img"
    named = {child.get("id"): child.text for child in root if child.tag in {"title", "desc"}}
    assert (root.get("aria-labelledby") or "").split() == list(named)
    assert all(named.values())


@pytest.mark.parametrize("draw", ALL)
def test_texts_are_escaped(draw: Callable[..., Markup]) -> None:
    drawn = draw(name=BAD)
    assert "<script" not in drawn
    assert BAD in [element.text for element in ElementTree.fromstring(drawn).iter("title")]


@pytest.mark.parametrize("draw", [line, rows, scale, measured])
def test_the_two_sizes_share_no_id(draw: Callable[..., Markup]) -> None:
    ids = re.findall(r' id="([^"]+)"', charts.responsive(draw))
    assert len(ids) >= 4
    assert len(ids) == len(set(ids))


def test_lines_stay_inside_and_keep_their_order() -> None:
    drawn = ElementTree.fromstring(line())
    dots = [(float(c.get("cx", "nan")), float(c.get("cy", "nan"))) for c in drawn.iter("circle")]
    assert [x for x, _ in dots] == sorted(x for x, _ in dots)
    assert [y for _, y in dots] == sorted(y for _, y in dots)  # a falling loss falls on the page
    assert all(0 <= x <= 760 and 0 <= y <= 320 for x, y in dots)


def test_one_point_makes_a_chart() -> None:
    axes = charts.Axes("t", "d", "step", "loss")
    drawn = charts.line_chart("c", [charts.Series("a", [(0, 0.0)], "accent", "0")], axes, 760)
    assert len(list(ElementTree.fromstring(drawn).iter("circle"))) == 1
    assert "nan" not in drawn


def test_labels_at_the_end_do_not_overlap() -> None:
    lines = [charts.Series(str(k), [(0, 1.0), (1, 2.0)], "accent", f"same{k}") for k in range(3)]
    drawn = ElementTree.fromstring(charts.line_chart("c", lines, charts.Axes("t", "d", "x", "y"), 760))
    heights = sorted(float(t.get("y", "nan")) for t in drawn.iter("text") if (t.text or "").startswith("same"))
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 14


def test_less_noise_draws_the_curves_further_apart() -> None:
    def peak(apart: float) -> float:
        drawn = ElementTree.fromstring(charts.bells("b", apart, 2.0, "g0", title="t", description="d"))
        path = list(drawn.iter("path"))[1].get("d", "")
        points = [tuple(map(float, p.split(","))) for p in path.removeprefix("M").split("L")]
        return min(points, key=lambda p: p[1])[0]

    assert peak(0.5) < peak(1.0) < peak(2.0)


def test_no_noise_draws_two_spikes() -> None:
    drawn = charts.bells("b", math.inf, math.inf, "g0", title="t", description="d")
    paths = [path.get("d", "") for path in ElementTree.fromstring(drawn).iter("path")]
    assert len(paths) == 2
    assert all("L" not in path for path in paths)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 12))
def test_ticks_cover_the_values_in_even_steps(low: float, span: float, count: int) -> None:
    found = charts.ticks(low, low + span, count)
    slack = max(1e-6 * abs(low), 1e-6 * span, 1e-20)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 2 * count + 14
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
