"""An audited run's report in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.report import write_report
from tests.reporting import audits
from tests.reporting.test_report_in_browser import BAD, OVERFLOW

pytestmark = pytest.mark.chromium


@pytest.mark.parametrize(("width", "dark"), [(320, True), (1280, False)])
def test_it_loads_nothing_and_fits(show: Callable[..., Any], tmp_path: Path, width: int, dark: bool) -> None:
    """With hostile texts and long words too. Break: `.scroll` taken off a table; a text of a model unescaped."""
    long = {"prompt": BAD, "base": "w" * 900, "tuned": f"{BAD}\u202e\x00"}
    samples = audits.SAMPLES | {"samples": [*audits.SAMPLES["samples"], long]}
    path = write_report(audits.audited_run(tmp_path / "run", audits.violated(), samples=samples))
    shown = show(path, width, dark)
    page = shown.page
    page.evaluate("document.querySelectorAll('details').forEach(block => block.open = true)")
    page.wait_for_timeout(50)
    assert shown.requests == [path.as_uri()]
    assert shown.complaints == []
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate("document.querySelectorAll('script, img, a').length") == 0
    alarm = page.locator("#audit-failed")
    assert (alarm.bounding_box()["y"], alarm.get_attribute("role")) == (0, "alert")
    assert page.locator("#verdict b").inner_text() == "violated"
    assert sum(chart.is_visible() for chart in page.locator("#attacks svg.chart").all()) == 4
    assert page.locator("#tests tbody tr:not(.part)").count() == 16
    base, tuned = (page.locator(f".told:first-of-type .pair > div:nth-child({i})").bounding_box() for i in (1, 2))
    assert (tuned["y"] > base["y"]) == (width < 640)  # side by side, or below one another on a phone
    sizes = page.evaluate(
        "[...document.querySelectorAll('#attacks svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 10
