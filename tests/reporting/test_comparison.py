"""The comparison of noise policies, as lines and as a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.comparison import lines, page, write_page


def group(name: str, ratio: float | None) -> dict[str, Any]:
    return {
        "name": name, "epsilon": 7.9996, "noise_multiplier": 0.5077, "clip_norm": 0.5358, "sampling_rate": 0.0428,
        "steps": 12, "examples_per_user": 1, "noise_to_signal": ratio, "over_the_run": ratio,
    }  # fmt: skip


def alternative(name: str, **changes: Any) -> dict[str, Any]:
    groups = [group("free", 0.01), group("<b>paid</b>" * 4, 0.1)]
    start: dict[str, Any] = {
        "name": name, "policy": name, "kind": "policy", "groups": groups, "overall": 0.009, "mean": 0.03, "worst": 0.1,
        "worst_group": "free", "reason": None, "note": None,
    }  # fmt: skip
    return start | changes


NOTHING = {"groups": [], "overall": None, "mean": None, "worst": None, "worst_group": None}
MADE = [
    alternative("scale", kind="spec"),
    alternative("sample", note="</style><script>alert(1)</script>"),
    alternative("x" * 70, **NOTHING, reason="it can't be done: " + "so many words " * 12),
]


def test_lines_fit_and_say_why_not() -> None:
    """Break: names or reasons printed whole."""
    found = lines(MADE)
    assert max(map(len, found)) <= 80
    told = " ".join(" ".join(found).split())
    assert "scale (this spec)" in told
    assert "can't be used here: it can't be done: so many words" in told
    assert "free 8.00 0.5358 0.508 0.0428 12 1 0.01000" in told
    assert "all together 0.00900, mean over users 0.0300, worst 0.100 free" in told


def test_the_plot_is_logarithmic_from_end_to_end() -> None:
    """0.01 lies a twenty-third of the way from 0.009 to 0.1. Break: a linear scale."""
    row = next(line for line in lines(MADE) if line.startswith("  sample") and "|" in line).partition("|")[2]
    assert (row.index("●"), row.index("a"), row.index("b"), len(row)) == (0, 2, 53, 54)


def test_what_waits_for_answers_is_shown_without_a_plot() -> None:
    one = alternative("scale", **(NOTHING | {"groups": [group("free", None)]}))
    assert any(line.endswith(" ?") for line in lines([one]))
    assert "It waits for noisy answers." in page("s", [one])


def test_every_name_is_escaped() -> None:
    """Break: autoescape off for this template, or a chart's text put together by hand."""
    html = page("<i>name</i>", MADE)
    for bad in ("<b>paid", "<script", "<i>name"):
        assert bad not in html
    assert "default-src 'none'" in html


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_it_loads_nothing_and_fits(show: Callable[..., Any], tmp_path: Path, width: int) -> None:
    path = write_page(tmp_path / "noise.html", "made", MADE)
    shown = show(path, width)
    assert shown.requests == [path.as_uri()]
    assert shown.complaints == []
    assert shown.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert sum(chart.is_visible() for chart in shown.page.locator("svg.chart").all()) == 1
