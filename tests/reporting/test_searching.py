"""What a report says of a search: its price, what may be shown of its trials, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.reporting import report
from harness.reporting.comparing import list_runs
from harness.reporting.records import RunRecord, read_run
from harness.reporting.report import write_report
from harness.reporting.search_charts import Axis, Trial
from harness.reporting.searching import searching
from tests.reporting import searches
from tests.reporting.test_report import BAD, _paths, words

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
opened: list[str] | None = None
Make = Callable[..., Path]


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event in {"open", "os.listdir", "os.scandir"}:
        opened.append(str(arguments[0]))


sys.addaudithook(watch)  # can't be taken off again; does nothing unless there is a list


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a searched run; of private data unless it is said."""

    def write(document: dict[str, Any], visibility: str = "private") -> Path:
        place = tmp_path / "made"
        place.mkdir(exist_ok=True)
        return searches.searched_run(place / f"{len(list(place.iterdir()))}", document, visibility)

    return write


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def section(html: str) -> str:
    """The search's part of a page."""
    found = re.search(r'<section class="chapter" id="search">.*?</section>', html, flags=re.DOTALL)
    return found.group() if found else ""


def shown(found: dict[str, Any] | None) -> dict[str, Any]:
    assert found is not None
    return found


def test_there_is_no_section_without_a_search(run_dir: Path) -> None:
    html = page(run_dir)
    assert section(html) == ""
    assert "The search" not in words(html)


# --- what stays private ---------------------------------------------------------------------------------------


def losers_in(text: str) -> list[str]:
    """What of a losing trial, or of how many there were, a text shows."""
    norms = [value for norm in searches.LOSERS for value in (str(norm), f"{norm:.4g}", f"{norm:.3g}")]
    return [part for part in (*norms, "15 trials", "14 trials", "All trials", "finite number") if part in text]


def test_a_private_search_shows_its_winner_alone(make: Make) -> None:
    """Whatever lies in the private folder.

    Break: read `private/trials.json` where `shown` is null, and don't ask whether the data are public. Each alone is
    caught by one of the next two.
    """
    html = page(make(searches.sweep_document()))
    assert losers_in(html) == []
    text = words(section(html))
    assert "0.2311" in text
    assert "How many trials there were, and what became of the others, stays private" in text
    # The words that are looked for do stand on a page that may show them.
    document = searches.public_document()
    document["shown"][0]["candidate"]["clipping.norm"] = searches.LOSERS[0]
    assert len(losers_in(page(make(document, "public")))) >= 3


def test_trials_in_the_file_of_private_data_are_not_shown(make: Make) -> None:
    """A file that lists them by mistake. Break: ask whether `shown` is there, not whether the data are public."""
    document = searches.public_document()
    for one, norm in zip(document["shown"], searches.LOSERS, strict=False):
        one["candidate"]["clipping.norm"] = norm
    for visibility in ("private", "Public", "", None):
        assert losers_in(page(make(document, visibility))) == []


def test_nothing_private_is_opened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: look into the private folder, even without showing what is there."""
    folder = make(searches.sweep_document())
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "opened", seen)
        page(folder)
    here = [Path(path) for path in seen if str(folder) in path]
    assert folder / "sweep.json" in here  # the watch does see what is opened
    assert not any("private" in path.relative_to(folder).parts for path in here)


# --- what is said ---------------------------------------------------------------------------------------------


def test_the_search_and_its_price_in_words(make: Make) -> None:
    html = page(make(searches.sweep_document()))
    text = words(section(html))
    for part in (
        "ε = 8.00 is that of the whole search, whichever trial had won.",
        "the best of a secret random number of trials (geometric, mean 5), by the least eval/loss; it came to 4.318.",
        "clipping.norm log-uniform, 0.1 to 2 0.2311", "noise.type one of scale, sample, product scale",
        "noise.share uniform, 0 to 1 only where noise.type is product not set",
        "uudp run spec.yaml trains with the winner’s values again", "A second run is charged again",
        "random, geometric with mean 5 ✓ 0.9208", "no search: one run 0.6800", "no noise is enough",
        "2.25 0.55867 0.55867", "3.75 1.9677 any", "ε claimed 8.00 8.00", "few, some",
    ):  # fmt: skip
        assert part in text, part
    whole = words(html)
    assert "It paid for the whole search: every trial, whichever of them had been released." in whole
    assert "Training, every step of every trial 8.00" in whole
    assert "All of it went into training" not in whole


def test_a_search_whose_trials_are_all_charged(make: Make) -> None:
    document = searches.sweep_document()
    document |= {"in_words": "20 trials, all of them charged", "trials": {"law": "fixed", "mean": 20.0, "shape": None}}
    document["search"], document["select"]["mode"] = {"type": "optuna", "trials": 20}, "max"
    text = words(section(page(make(document))))
    assert "This model is the best of 20 trials, all of them charged, by the greatest eval/loss" in text
    assert "Their number is public, as it stands in the spec; since every one is charged" in text
    assert "stays private: the price" not in text


def test_the_code_computes_the_claim_again(make: Make) -> None:
    """Run as it stands on the page. Break: write the curves rounded, or null as 0."""
    code = shown(shown(searching(read_run(make(searches.sweep_document()))))["recomputed"])["code"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    first, second = map(float, printed.getvalue().split())
    assert first == pytest.approx(8.0, rel=1e-6)
    assert second > first  # where one order is left to anything, less is known


def test_public_data_show_every_trial(make: Make) -> None:
    """Sorted, the winner first, those without a score last and with their reason. Break: sort by the place."""
    record = read_run(make(searches.public_document(), "public"))
    trials = shown(shown(searching(record))["trials"])
    rows = [*trials["rows"], *trials["more"]]
    assert len(rows) == 15
    assert [row["best"] for row in rows] == [True] + [False] * 14
    scores = [float(row["score"]) for row in rows[:11]]
    assert scores == sorted(scores)
    assert [row["note"] for row in rows[11:13]] == ["stopped"] * 2
    assert {row["note"] for row in rows[13:]} == {"failed: its eval/loss is no finite number"}
    assert trials["caption"] == "15 trials: 11 finished, 2 stopped, 2 failed."
    assert len(trials["multiples"]) == 3
    assert trials["pareto"] is None
    text = words(section(report.render(record)))
    assert "The data are declared public, so all trials are shown" in text
    assert "stays private: the price" not in text


def test_the_greatest_is_best_where_it_is_asked_for(make: Make) -> None:
    """Break: sort the least first whatever the mode."""
    document = searches.public_document()
    document["select"]["mode"] = "max"
    rows = shown(shown(searching(read_run(make(document, "public"))))["trials"])["rows"][1:11]
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)


def test_of_two_equal_trials_the_first_one_won(make: Make) -> None:
    document = searches.public_document()
    document["shown"].append(document["shown"][3] | {"place": 15})
    trials = shown(shown(searching(read_run(make(document, "public"))))["trials"])
    assert sum(row["best"] for row in (*trials["rows"], *trials["more"])) == 1


def test_targets_that_differ_have_a_front(make: Make) -> None:
    """By the largest target of any group. Break: take the least."""
    trials = shown(shown(searching(read_run(make(searches.with_targets(), "public"))))["trials"])
    assert trials["pareto"] is not None
    assert "largest ε target of any group" in trials["pareto"]
    assert len(trials["multiples"]) == 5  # and none of the key that all have alike
    document = searches.with_targets()
    for one in document["shown"]:
        one["candidate"] |= {"noise.epsilon.few": 8.0}
    assert shown(shown(searching(read_run(make(document, "public"))))["trials"])["pareto"] is None


def test_thousands_of_trials_make_no_huge_page(make: Make) -> None:
    document = searches.public_document()
    document["shown"] = [document["shown"][i % 15] | {"place": i} for i in range(3000)]
    html = page(make(document, "public"))
    assert "2700 more are in sweep.json." in html
    assert len(html) < 2_000_000


def test_a_predicted_search_cost_nothing(make: Make) -> None:
    html = page(make(searches.predicted_document()))
    text = words(section(html))
    for part in (
        "Choosing cost nothing: nothing private was read.",
        "731 candidates were compared by the noise to signal of the worst group that accounting predicts of them",
        "its own is 0.0112", "The best 50 of 731 candidates.", "The first 10 are computed in full", "1 96 4000 0.01120",
        "left out: trains on 4e+07 tokens, more than sweep.search.tokens", "whole number, 100 to 4000",
    ):  # fmt: skip
        assert part in text, part
    assert "whichever trial" not in text
    assert "All of it went into training" in words(html)
    assert "price" not in text


def test_runs_are_listed_with_their_search(make: Make, tmp_path: Path) -> None:
    make(searches.predicted_document())
    make(searches.sweep_document())
    (make(searches.sweep_document()) / "sweep.json").unlink()
    assert [run.search for run in list_runs(tmp_path)] == ["predicted", "random", None]


# --- what may go wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"x"'])
def test_a_file_that_is_no_document_is_named(make: Make, content: str) -> None:
    folder = make(searches.sweep_document())
    (folder / "sweep.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"sweep\.json"):
        write_report(folder)


@pytest.mark.parametrize("wrong", [None, "text", [], -1.0, 1e300])
@pytest.mark.parametrize("kind", ["sweep_document", "with_targets", "predicted_document"])
def test_damaged_documents_are_no_traceback(make: Make, kind: str, wrong: object) -> None:
    """Any value may be null, or of another kind. Break: trust one of them."""
    whole = getattr(searches, kind)()
    record = read_run(make(whole, "public"))
    for key in ("shown", "candidates"):
        if isinstance(whole.get(key), list):
            whole[key] = whole[key][2:4]  # one of them the winner
    whole["prices"] = whole["prices"][1:3]
    whole["space"] = {k: v for k, v in whole["space"].items() if k not in ("train.steps", "noise.epsilon.some")}
    documents: dict[str, Any] = {"sweep": whole, "privacy": record.privacy}
    places = [p for p in _paths(documents) if len(p) > 1 and (p[0] == "sweep" or p[1] in ("search", "data"))]
    assert len(places) > 30
    for place in places:
        changed = copy.deepcopy(documents)
        holder: Any = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = wrong
        damaged = RunRecord(record.spec, record.plan, changed["privacy"], (), {}, changed["sweep"])
        assert searching(damaged) is not None, place
    odd: tuple[dict[str, Any], ...] = (
        {"x": 1}, {"shown": [1]}, {"candidates": []}, {"space": {"a": {}}, "shown": [{}]},
    )  # fmt: skip
    for document in odd:
        html = report.render(RunRecord({}, {}, record.privacy, (), {}, document))
        assert html.rstrip().endswith("</html>")


def test_names_are_inert(make: Make) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return BAD if isinstance(value, str) and value not in ("finished", "stopped", "failed") else value

    document = poison(searches.with_targets())
    for one in document["shown"]:
        one["candidate"][BAD] = BAD
    document["space"][BAD] = {"choice": [BAD, 1], "when": {BAD: BAD}}
    html = page(make(document, "public"))
    assert "&lt;script&gt;" in section(html)
    assert "<script" not in html
    assert "<img" not in html


# --- in a browser ---------------------------------------------------------------------------------------------

DOCUMENTS = {
    "private": ("sweep_document", "private", 1), "public": ("with_targets", "public", 8),
    "predicted": ("predicted_document", "private", 3),
}  # fmt: skip


@pytest.fixture(params=list(DOCUMENTS))
def written(request: pytest.FixtureRequest, make: Make) -> tuple[Path, int]:
    """A report, and how many charts its search has."""
    document, visibility, charts = DOCUMENTS[request.param]
    return write_report(make(getattr(searches, document)(), visibility)), charts


@pytest.mark.chromium
@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (1280, False)])
def test_charts_show_load_nothing_and_fit(
    show: Callable[..., Any], written: tuple[Path, int], width: int, dark: bool
) -> None:
    """Every chart has a size, a name and texts that can be read; nothing is wider than the window."""
    path, charts = written
    opened_page = show(path, width, dark=dark)
    view = opened_page.page
    view.evaluate("document.querySelectorAll('details').forEach(block => block.open = true)")
    drawn = [chart for chart in view.locator("#search svg.chart").all() if chart.is_visible()]
    assert len(drawn) == charts
    for chart in drawn:
        box = chart.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        name = chart.evaluate(
            "c => c.getAttribute('aria-labelledby').split(' ').map(i => document.getElementById(i).textContent)"
        )
        assert all(name)
    sizes = view.evaluate(
        "[...document.querySelectorAll('#search svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= (11 if width > 320 else 9)
    assert view.evaluate(OVERFLOW) == 0
    assert view.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == view.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert opened_page.requests == [path.as_uri()]
    assert opened_page.complaints == []


@pytest.mark.parametrize("law", ["uniform", "loguniform", "int"])
def test_an_axis_shows_all_that_could_have_been_drawn(law: str) -> None:
    """Not only where two trials happened to lie. Break: the axis of the trials' own values."""
    trials = [Trial({"key": value}, score=5.0, status="finished") for value in (3, 4)]
    axis = Axis.of("key", {law: [1, 20]}, trials)
    assert axis is not None
    assert axis.scale.low <= 1
    assert axis.scale.high >= 20
