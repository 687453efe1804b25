"""The report as a file and as HTML text."""

from __future__ import annotations

import copy
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.reporting import report
from harness.reporting.report import write_report

BAD = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
opened: list[str] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event in {"open", "os.listdir", "os.scandir"}:
        opened.append(str(arguments[0]))


sys.addaudithook(watch)  # can't be taken off again; does nothing unless there is a list


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def words(html: str) -> str:
    """What a reader sees: without tags, white space collapsed."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_file_is_readable_by_all_and_replaces_the_last(run_dir: Path) -> None:
    (run_dir / "report.html").write_text("old", encoding="utf-8")
    before = os.umask(0o077)
    try:
        path = write_report(run_dir)
    finally:
        os.umask(before)
    assert path == run_dir / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < 200_000


def test_a_failed_write_leaves_the_last_report(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "report.html").write_text("old", encoding="utf-8")

    def refuse(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8") == "old"
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_nothing_private_is_opened(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "opened", seen)
        html = page(run_dir)
    here = [Path(path) for path in seen if str(run_dir) in path]
    assert run_dir / "privacy.json" in here  # the watch does see what is opened
    assert not any("private" in path.relative_to(run_dir).parts for path in here)
    assert "31337" not in html


def test_metrics_that_are_not_shown_stay_out(make_run: Callable[..., Path], metrics: list[dict[str, Any]]) -> None:
    metrics[1]["train/loss"] = 98.7654
    assert "98.765" not in page(make_run(metrics=metrics))


def test_the_guarantee_comes_first(run_dir: Path) -> None:
    shown = words(page(run_dir))
    order = ["8.00", "10⁻⁵", "-differential privacy", "It holds if", "It does not cover"]
    order += ["Learning curve", "What each group gained", "Budget", "ε over the steps", "Method", "Spec"]
    places = [shown.index(text) for text in order]
    assert places == sorted(places)


def test_what_the_issue_asks_for_is_there(run_dir: Path) -> None:
    shown = words(page(run_dir))
    for text in (
        "unit of privacy user", "zero-out", "Demonstration on public text", "Hold-out users (10 %) gave up protection",
        "4.871", "4.318", "4.207", "83 % of the ordinary gain kept", "0.601", "0.587", "2.51 %", "0.0306", "60 %",
        "4.991 → 4.438", "No ledger was kept", "lora, r 8", "32 users expected per step, at most 4 examples of each",
        "adamw, lr 0.005", "PLD", "m1-5c1fa6d03e9b47c2",
        "torch 2.13.0", "specs/quickstart.yaml:31:10", "&lt;command line&gt;", "1,276 users", "99.97 %",
    ):  # fmt: skip
        assert text in shown, text
    assert "NOT PRIVATE" not in shown


def test_private_data_carry_no_demonstration_badge(make_run: Callable[..., Path], privacy: dict[str, Any]) -> None:
    privacy |= {"data": {"name": "posts", "visibility": "private"}, "holdout": {"fraction": 0}}
    shown = words(page(make_run(privacy=privacy, metrics=[])))
    assert "Demonstration" not in shown
    assert "gave up protection They" not in shown
    assert "No evaluation. The spec holds out no users" in shown


def test_a_run_without_noise_is_marked_everywhere(not_private: Path) -> None:
    html = page(not_private)
    assert "<title>NOT PRIVATE · " in html
    assert "∞" in html
    shown = words(html)
    assert "NOT PRIVATE This model was trained without protection" in shown
    assert "this run protects nobody" in shown
    assert "trained" in shown
    assert "Private training" not in shown
    assert "ε over the steps" not in shown


def test_contradicting_files_are_marked(make_run: Callable[..., Path], plan: dict[str, Any]) -> None:
    shown = words(page(make_run(plan | {"private": False})))
    assert "NOT PRIVATE This run’s files state no finite ε, or contradict each other." in shown
    assert "8.00" not in shown


def test_charges_and_ledger(make_run: Callable[..., Path], plan: dict[str, Any]) -> None:
    plan["charges"] = [{"what": "segmentation.kmeans", "epsilon": 0.4}]
    plan["ledger"] = {"url": "postgresql://ann:s3cret@db/ledger", "remaining_epsilon": 3.2}
    shown = words(page(make_run(plan)))
    assert "segmentation.kmeans 0.40" in shown
    assert "Entered in the ledger postgresql://…@db/ledger. When this run was planned, ε 3.2 was left" in shown
    assert "s3cret" not in shown


def test_what_differing_rates_trade_for_what(make_run: Callable[..., Path], plan: dict[str, Any]) -> None:
    """A chart, and its numbers for those who don't see it. Break: show the curves of one group for all."""
    assert "What each group trades for what" not in page(make_run(plan=plan))
    for group, scale in zip(plan["groups"], (1.0, 0.1, 0.01), strict=True):
        group["curve"] = [[0.0, 0.05 * scale], [2.0, 2e-3 * scale], [4.0, 0.0]]
    html = page(make_run(plan=plan))
    assert 'id="trade-offs-760-t"' in html
    shown = words(html)
    assert "few: δ 5 × 10⁻² at ε 0; some: δ 5 × 10⁻³ at ε 0; many: δ 5 × 10⁻⁴ at ε 0" in shown
    assert "at ε δ, few δ, some δ, many 0 5 × 10⁻² 5 × 10⁻³ 5 × 10⁻⁴ 2 2 × 10⁻³ 2 × 10⁻⁴ 2 × 10⁻⁵ 4 0 0 0" in shown


def test_an_interrupted_run_says_so(make_run: Callable[..., Path], privacy: dict[str, Any]) -> None:
    shown = words(page(make_run(privacy=privacy | {"steps_completed": 7, "status": "stopped"})))
    assert "Training stopped after 7 of 20 steps." in shown
    assert "status is “stopped”" in shown


def test_names_are_inert(make_run: Callable[..., Path], plan: dict[str, Any], privacy: dict[str, Any]) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return BAD if isinstance(value, str) else value

    plan["versions"][BAD] = BAD
    rows = [{"series": "private", "step": step, "eval/loss": 4.0, f"eval/loss/{BAD}": 4.0 - step} for step in (0, 1)]
    html = page(make_run(poison(plan), poison(privacy), rows, {BAD: {BAD: [BAD]}}))
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "<img" not in html


def test_one_file_and_no_network(run_dir: Path) -> None:
    html = page(run_dir)
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in html
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ["data:,"]
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, below in inner for found in [(*path, key), *_paths(below, (*path, key))]]


@pytest.mark.parametrize("wrong", [None, "text", [], -1.0])
def test_any_value_may_be_null_or_of_another_kind(
    plan: dict[str, Any], privacy: dict[str, Any], metrics: list[dict[str, Any]], wrong: object
) -> None:
    from harness.reporting.records import RunRecord

    documents: dict[str, Any] = {"plan": plan, "privacy": privacy, "metrics": metrics}
    # What the page only prints, or what repeats what another path covers.
    skipped = ("spec", "origins", "versions", "notes")
    places = [p for p in _paths(documents) if len(p) > 1 and p[1] not in skipped]
    # One row and one group stand for all.
    places = [p for p in places if not (p[0] == "metrics" and p[1] != 4) and not (p[1] == "groups" and p[2:3] > (1,))]
    assert len(places) > 100
    for place in places:
        changed = copy.deepcopy(documents)
        holder: Any = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = wrong
        released = tuple(row for row in changed["metrics"] if isinstance(row, dict))
        html = report.render(RunRecord({}, changed["plan"], changed["privacy"], released))
        assert html.rstrip().endswith("</html>"), place


def test_empty_documents_render(make_run: Callable[..., Path]) -> None:
    shown = words(page(make_run({}, {}, [], None)))
    assert "NOT PRIVATE" in shown
    assert "No evaluation." in shown


def test_many_groups_render(make_run: Callable[..., Path], plan: dict[str, Any]) -> None:
    plan["groups"] = [plan["groups"][0] | {"name": f"segment-{k}/tier"} for k in range(24)]
    assert page(make_run(plan)).count('class="card group"') == 24


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_were_drawn_are_shown_in_short(run_dir: Path) -> None:
    """And what is set to nothing is left out. Break: all digits of a drawn learning rate; empty lists and blocks."""
    plan = json.loads((run_dir / "plan.json").read_text())
    plan["train"]["optimizer"]["lr"] = 0.003169547336686526
    plan["model"]["adapter"] |= {"rank_pattern": {}, "also": []}
    (run_dir / "plan.json").write_text(json.dumps(plan))
    shown = words(page(run_dir))
    assert "lr 0.00317" in shown
    assert "rank_pattern {}" not in shown
    assert "also []" not in shown
