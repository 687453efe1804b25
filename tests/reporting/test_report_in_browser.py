"""The report as a person meets it: in a real browser, wide and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.report import write_report

pytestmark = pytest.mark.chromium
BAD = '"><script>alert(1)</script><img src=x onerror=alert(2)><a href="javascript:alert(3)">'
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(params=["private", "not private", "long names"])
def report(
    request: pytest.FixtureRequest, make_run: Callable[..., Path], not_private: Path, plan: dict[str, Any]
) -> Path:
    if request.param == "not private":
        return write_report(not_private)
    if request.param == "long names":
        plan["name"] = "n" * 100
        plan["mechanism_digest"] = "d" * 64
        for index, group in enumerate(plan["groups"]):
            group["name"] = f"{index}{'segment' * 12}/tier"
    return write_report(make_run(plan))


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_loads_nothing_complains_of_nothing_and_fits(show: Callable[..., Any], report: Path, width: int) -> None:
    shown = show(report, width)
    shown.page.evaluate("document.querySelectorAll('details').forEach(block => block.open = true)")
    shown.page.wait_for_timeout(50)
    assert shown.requests == [report.as_uri()]
    assert shown.complaints == []
    assert shown.page.evaluate(OVERFLOW) == 0


def test_key_numbers_are_visible(show: Callable[..., Any], run_dir: Path) -> None:
    page = show(write_report(run_dir)).page
    for selector, text in {
        "#epsilon .number": "8.00", "#delta": "10⁻⁵", "#unit": "user", "#base-loss": "4.871",
        "#trained-loss": "4.318", "#ordinary-loss": "4.207", "#share": "83 %",
    }.items():  # fmt: skip
        assert page.locator(selector).is_visible(), selector
        assert page.locator(selector).inner_text() == text
    assert page.locator("#not-private").count() == 0
    assert page.locator("#epsilon").bounding_box()["y"] < 450


@pytest.mark.parametrize("width", [390, 1280])
def test_one_drawing_of_each_chart_shows_in_readable_size(show: Callable[..., Any], run_dir: Path, width: int) -> None:
    page = show(write_report(run_dir), width).page
    assert page.locator("svg.chart").count() == 8
    assert sum(chart.is_visible() for chart in page.locator("svg.chart").all()) == 4
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert len(sizes) > 20
    assert min(sizes) >= 11


def test_dark_mode_differs(show: Callable[..., Any], run_dir: Path) -> None:
    path = write_report(run_dir)
    light, dark = (show(path, dark=dark).page.evaluate(BACKGROUND) for dark in (False, True))
    assert light == "rgb(247, 245, 240)"
    assert dark == "rgb(16, 21, 23)"


def test_the_warning_is_the_first_and_largest_thing(show: Callable[..., Any], not_private: Path) -> None:
    page = show(write_report(not_private), 390).page
    warning = page.locator("#not-private")
    assert "NOT PRIVATE" in warning.inner_text()
    assert warning.get_attribute("role") == "alert"
    box = warning.bounding_box()
    assert (box["x"], box["y"], box["width"]) == (0, 0, 390)
    assert warning.evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(179, 20, 29)"


def test_names_are_inert(
    show: Callable[..., Any], make_run: Callable[..., Path], plan: dict[str, Any], privacy: dict[str, Any]
) -> None:
    plan |= {"name": BAD, "notes": [BAD], "origins": {BAD: BAD}, "versions": {BAD: BAD}}
    plan["groups"][0]["name"] = privacy["groups"][0]["name"] = BAD
    plan["model"]["base"] = privacy["statement"] = BAD
    path = write_report(make_run(plan, privacy, spec={BAD: BAD}))
    shown = show(path)
    shown.page.wait_for_timeout(100)
    assert shown.page.locator("h1").inner_text() == BAD
    assert shown.page.evaluate("document.querySelectorAll('script, img, a').length") == 0
    assert shown.requests == [path.as_uri()]
    assert shown.complaints == []


def test_the_spec_opens_without_script(show: Callable[..., Any], run_dir: Path) -> None:
    page = show(write_report(run_dir)).page
    line = page.locator("#spec .spec-line", has_text="checkpoint_every")
    assert not line.is_visible()
    page.locator("#spec summary").click()
    assert line.is_visible()
