"""Bars, scatter plots and parallel coordinates: well-formed, inside their frame, and safe with any text and number."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from harness.reporting import charts, plots

BAD = "</title><script>alert(1)</script>&\"'"
NUMBERS = st.floats(-1e200, 1e200, allow_subnormal=False)
POSITIVE = st.floats(1e-200, 1e200)


def bars(width: int = 760, name: str = "one run") -> Markup:
    rows = [plots.Bar(name, 0.68, "0.680"), plots.Bar("all", 1.03, "1.03", True), plots.Bar("none", None, name)]
    return plots.bars("b", rows, name, name, width)


def scatter(width: int = 760, name: str = "lr", front: str = "min") -> Markup:
    dots = [
        plots.Dot(0.1, 4.1, name, "winner"),
        plots.Dot(0.02, 4.2, name),
        plots.Dot(1.0, 4.4, name),
        plots.Dot(None, 4.3, name, "stopped"),
    ]
    scales = plots.numbers([0.02, 0.1, 1.0], logarithmic=True, unset=True), plots.numbers([4.1, 4.4])
    return plots.scatter("s", dots, scales, charts.Axes(name, name, name, name), width, front=front)


def parallel(width: int = 760, name: str = "key") -> Markup:
    axes = [(name, plots.categories([name, "b"], unset=True)), ("loss", plots.numbers([4.0, 5.0]))]
    paths = [plots.Path((0.0, 4.0), name, "winner"), plots.Path((None, 5.0), name, "stopped")]
    return plots.parallel("p", axes, paths, name, name, width)


ALL = [bars, scatter, parallel]


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_every_plot_is_well_formed_and_named(draw: Callable[..., Markup], width: int) -> None:
    root = ElementTree.fromstring(draw(width))
    assert root.get("role") == "img"
    named = {child.get("id"): child.text for child in root if child.tag in {"title", "desc"}}
    assert (root.get("aria-labelledby") or "").split() == list(named)
    assert all(named.values())


@pytest.mark.parametrize("draw", ALL)
def test_texts_are_escaped_and_ids_are_unique(draw: Callable[..., Markup]) -> None:
    drawn = charts.responsive(lambda width: draw(width, BAD))
    assert "<script" not in drawn
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert len(ids) == len(set(ids)) == 4


def test_better_scores_lie_lower_and_the_winner_is_on_top() -> None:
    circles = list(ElementTree.fromstring(scatter()).iter("circle"))
    heights = {(c.find("title") is not None, float(c.get("cy", "nan"))) for c in circles}
    assert len(heights) == 4
    last = circles[-1]
    assert last.get("r") == "8"  # drawn last, so on top
    assert float(last.get("cy", "nan")) == max(float(c.get("cy", "nan")) for c in circles)
    assert all(0 <= float(c.get("cx", "nan")) <= 760 for c in circles)


@pytest.mark.parametrize(("mode", "corners"), [("min", 2), ("max", 3)])
def test_the_front_joins_what_nothing_beats(mode: str, corners: int) -> None:
    """Least x, and least or greatest y. Break: leave the mode out of account."""
    dots = [plots.Dot(x, y, "") for x, y in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0), (4.0, 4.0), (2.5, 3.5))]
    scales = plots.numbers([1.0, 4.0]), plots.numbers([1.0, 4.0])
    drawn = plots.scatter("s", dots, scales, charts.Axes("t", "d", "x", "y"), 760, front=mode)
    line = next(p for p in ElementTree.fromstring(drawn).iter("path") if p.get("class") == "line dashed")
    assert line.get("d", "").count("H") + 1 == corners


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.booleans(), st.integers(1, 8))
def test_a_scale_of_any_numbers_holds_them(values: list[float], unset: bool, count: int) -> None:
    scale = plots.numbers(values, unset=unset)
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in values)
    assert all(-1e-6 <= place <= 1 + 1e-6 for place, _ in scale.ticks(count))


@given(st.lists(POSITIVE, min_size=1, max_size=8), st.integers(2, 8))
def test_a_logarithmic_scale_holds_its_numbers(values: list[float], count: int) -> None:
    scale = plots.numbers(values, logarithmic=True)
    assert all(0 <= scale.place(value) <= 1 for value in values)
    ticks = scale.ticks(count)
    assert 2 <= len(ticks) <= count
    assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in ticks)


@given(st.lists(st.text("abc 1.", min_size=1, max_size=30), min_size=1, max_size=60, unique=True), st.booleans())
def test_ticks_of_an_axis_never_overlap(labels: list[str], unset: bool) -> None:
    """Red when one is drawn over the end of the one before."""
    scale = plots.categories(labels, unset=unset)
    ends = []
    for mark in plots._along(scale, 0, 272, 10):
        text = ElementTree.fromstring(re.sub(r"<title>.*?</title>", "", mark, flags=re.DOTALL))
        length = plots._LETTER * len(text.text or "")
        anchor = (text.get("class") or "").split()[1]
        begin = float(text.get("x", "nan")) - {"start": 0, "mid": length / 2, "end": length}[anchor]
        ends.append((begin, begin + length))
    assert ends
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ends))
