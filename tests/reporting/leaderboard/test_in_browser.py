"""The leaderboard as a person meets it: sorting, filtering, a phone, dark mode, without script, and hostile names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.leaderboard.gathering import gather
from harness.reporting.leaderboard.site import render_site, write_site
from tests.reporting import conftest as shared
from tests.reporting.leaderboard import made

pytestmark = pytest.mark.chromium
browser, show = shared.browser, shared.show
BAD = '"><script>alert(1)</script><img src=x onerror=alert(2)><a href="javascript:alert(3)">'
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
RANKED = "#board-0-ranked tbody"


def _cells() -> Iterator[tuple[str, float, int, str, dict[str, Any]]]:
    four = {"privacy": made.RDP | {"epsilon": 4.0}, "noise": {"epsilon": {"free": 4.0, "paid": 2.0}}}
    for seed in (1, 2, 3):
        yield "uniform", 4.05 + seed / 100, seed, "rdp", {}
        yield "scale", 4.10 + seed / 100, seed, "scale", {}
        yield "scale", 4.30 + seed / 50, seed, "scale", four
        yield "open", 3.80 + seed / 100, seed, "none", {}
    yield "cheat", 3.2, 1, "rdp", {"right": 1.0}
    yield "broken", 3.1, 1, "rdp", {"status": "running"}


def _build(folder: Path, name: str) -> Path:
    """A suite of this name, and a run of none, as a site."""
    rows = []
    for place, (policy, loss, seed, kind, changes) in enumerate(_cells()):
        right, status = changes.pop("right", 0.7), changes.pop("status", "finished")
        found = made.documents(kind, loss=loss, seed=seed, **changes)
        if kind != "none":
            found["audit.json"] = made.audit(found["privacy.json"]["epsilon"], right=right)
        found["privacy.json"]["status"] = status
        made.write(folder / "runs" / f"run-{place}", found)
        budget = None if kind == "none" else 4 if "noise" in changes else 8
        rows.append({
            "suite": name, "data": name, "policy": policy if name == "demo" else f"{policy} {name}",
            "budget": budget, "seed": seed, "run": f"run-{place}",
        })  # fmt: skip
    (folder / "runs" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{" + name)
    made.make(folder / "runs" / "mine", "learnt")
    return write_site(folder / "site", render_site(gather([folder / "runs"]))[0]).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("site"), "demo")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("hostile"), BAD)


def _pages(site: Path) -> list[Path]:
    return [site / "index.html", site / "other-runs.html", *site.glob("suite-*.html"), *site.glob("runs/*/report.html")]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_pages_load_nothing_complain_of_nothing_and_fit(show: Callable[..., Any], site: Path, width: int) -> None:
    """No request leaves a page, none scrolls sideways. Break: a wide table on a phone."""
    for path in _pages(site)[:4]:
        shown = show(path, width)
        shown.page.evaluate("document.querySelectorAll('details').forEach(block => block.open = true)")
        shown.page.wait_for_timeout(50)
        assert shown.requests == [path.as_uri()]
        assert shown.complaints == []
        assert shown.page.evaluate(OVERFLOW) == 0, path


def test_cells_of_a_row_stand_in_one_line(show: Callable[..., Any], site: Path) -> None:
    """All at the same height, all to the right. Break: a class of the report's stylesheet named as a column is."""
    page = show(site / "suite-demo.html", 1280).page
    cells = page.locator("#board-0-ranked tbody tr").first.locator("td")
    found = cells.evaluate_all(
        "all => all.map(one => [one.getBoundingClientRect().top, getComputedStyle(one).display])"
    )
    assert len({tuple(one) for one in found}) == 1, found


def _policies(page: Any) -> list[str]:
    rows = page.locator(f"{RANKED} tr:visible")
    return [
        f"{row.locator('.name').inner_text()} {row.locator('[data-key=budget]').inner_text()}" for row in rows.all()
    ]


def test_a_click_sorts_and_another_turns_it_round(show: Callable[..., Any], site: Path) -> None:
    """Numbers as numbers, what is missing last. Break: sorted as text (ε 4 after ε 16), or only the first table."""
    page = show(site / "suite-demo.html").page
    assert _policies(page) == ["scale ε 4", "uniform ε 8", "scale ε 8"]
    head = page.locator("#board-0 th[data-key=loss]").first
    head.locator("button").click()
    assert _policies(page) == ["uniform ε 8", "scale ε 8", "scale ε 4"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert _policies(page) == ["scale ε 4", "scale ε 8", "uniform ε 8"]
    assert head.get_attribute("aria-sort") == "descending"
    page.locator("#board-0 th[data-key=gap] button").first.click()
    assert _policies(page)[-1] == "uniform ε 8"  # it has one group, and so no gap
    page.locator("#board-0 th[data-key=gap] button").first.click()
    assert _policies(page)[-1] == "uniform ε 8"


def test_a_phone_sorts_by_a_list(show: Callable[..., Any], site: Path) -> None:
    """There heads are not seen. Break: no way to sort on a phone."""
    page = show(site / "suite-demo.html", 390).page
    page.select_option("#sort-by", "policy up")
    assert _policies(page) == ["scale ε 4", "scale ε 8", "uniform ε 8"]
    page.select_option("#sort-by", "loss down")
    assert [p.split("ε")[0].strip() for p in _policies(page)] == ["scale", "scale", "uniform"]
    page.select_option("#sort-by", "rank up")
    assert page.locator(f"{RANKED} tr").first.locator(".rank").inner_text().strip().startswith("1")


def test_filters_by_text_budget_and_privacy(show: Callable[..., Any], site: Path) -> None:
    """What is hidden leaves no empty part behind. Break: one table alone filtered; a phone's CSS in the way."""
    for width in (1280, 390):
        page = show(site / "suite-demo.html", width).page
        assert page.locator("#shown").inner_text() == "6 rows"
        page.fill("#filter-text", "SCALE")
        assert len(_policies(page)) == 2
        assert not page.locator("#board-0-open").is_visible()
        page.select_option("#filter-budget", "8")
        assert [p[:5] for p in _policies(page)] == ["scale"]
        assert page.locator("#shown").inner_text() == "1 row"
        page.fill("#filter-text", "")
        page.select_option("#filter-budget", "")
        page.select_option("#filter-kind", "open")
        assert page.locator("#board-0-open").is_visible()
        assert not page.locator(RANKED).is_visible()
        page.select_option("#filter-kind", "refused")
        assert page.locator("#refused li:visible").count() == 1
        page.select_option("#filter-kind", "")
        assert page.locator("#shown").inner_text() == "6 rows"


def test_what_is_not_to_be_trusted_stands_apart(show: Callable[..., Any], site: Path) -> None:
    """A violated audit shouts, and stands with what is not private and what is refused below all that is ranked."""
    page = show(site / "suite-demo.html").page
    assert page.locator(f"{RANKED} .rank").all_inner_texts() == ["1", "1", "2"]
    siren = page.locator("#board-0-unranked .siren")
    assert "AUDIT VIOLATED" in siren.inner_text()
    assert siren.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(179, 20, 29)"
    below = page.locator(RANKED).bounding_box()
    for part in ("#board-0-unranked", "#board-0-open", "#refused"):
        box = page.locator(part).bounding_box()
        assert box["y"] > below["y"] + below["height"]
    assert "running" in page.locator("#refused").inner_text()
    assert "3.1" not in page.locator("#refused").inner_text()
    assert "executed" in page.locator("#proof").inner_text()
    index = show(site / "index.html").page
    assert "AUDIT VIOLATED" in index.locator(".siren").inner_text()


def test_without_script_it_is_a_plain_table(browser: Any, site: Path) -> None:
    """Break: rows or heads that only the script makes, or controls that do nothing."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "suite-demo.html").as_uri())
    assert page.locator(f"{RANKED} tr").count() == 3
    assert not page.locator("#controls").is_visible()
    assert "Hold-out loss" in page.locator("#board-0 thead").first.inner_text()
    context.close()


def test_charts_and_links(show: Callable[..., Any], site: Path) -> None:
    """One drawing of each chart shows, a mark with its interval per row; reports open from the site."""
    for width in (1280, 390):
        page = show(site / "suite-demo.html", width).page
        charts = [c for c in page.locator("figure svg.chart").all() if c.is_visible()]
        assert len(charts) == 1 + 3  # of free, paid and everyone
        assert charts[0].locator(".mark-of").count() == 3
        assert charts[0].locator(".spread").count() == 3
        assert "base model" in charts[0].text_content()
    page.locator("#board-0 details summary").first.click()
    page.locator("#board-0 details a", has_text="report").first.click()
    assert page.locator("#epsilon").is_visible()


def test_dark_mode_differs(show: Callable[..., Any], site: Path) -> None:
    light, dark = (show(site / "suite-demo.html", dark=dark).page.evaluate(BACKGROUND) for dark in (False, True))
    assert (light, dark) == ("rgb(247, 245, 240)", "rgb(16, 21, 23)")


def test_hostile_names_are_text(show: Callable[..., Any], hostile: Path) -> None:
    """In every page, its attributes and its script's reach. Break: one value unescaped, or innerHTML in the script."""
    for path in _pages(hostile)[:4]:
        shown = show(path)
        shown.page.wait_for_timeout(100)
        scripts = 1 if path.name.startswith(("suite", "other")) else 0
        assert shown.page.evaluate("document.querySelectorAll('script').length") == scripts, path
        assert shown.page.evaluate("document.querySelectorAll('img, [onerror], a[href^=javascript]').length") == 0
        assert shown.complaints == []
        assert shown.requests == [path.as_uri()]
    (suite,) = hostile.glob("suite-*.html")
    shown = show(suite)
    assert shown.page.locator("h1").inner_text() == BAD
    shown.page.fill("#filter-text", "uniform <script>")
    assert shown.page.locator(f"{RANKED} tr:visible").count() == 1
    shown.page.locator("#board-0 th[data-key=policy] button").first.click()
    assert shown.complaints == []


def test_only_our_script_may_run(show: Callable[..., Any], site: Path, tmp_path: Path) -> None:
    """A script that got into the page all the same is stopped by the policy. Break: 'unsafe-inline'."""
    text = (site / "suite-demo.html").read_text()
    policy = re.search(r'content="(default-src[^"]+)"', text)
    assert policy
    assert "script-src 'sha256-" in policy[1]
    assert "connect-src" not in policy[1]  # so that default-src 'none' holds
    (tmp_path / "page.html").write_text(text.replace("</h1>", "</h1><script>document.title = 'got in'</script>"))
    shown = show(tmp_path / "page.html")
    assert shown.page.title() == "demo · uudp leaderboard"
    assert shown.page.locator("#controls").is_visible()  # ours still ran
    assert any("Content Security Policy" in line for line in shown.complaints)
