"""The site and its command: whole or not at all, the same bytes each time, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import ArgumentError, MachineError
from harness.reporting.leaderboard import site
from harness.reporting.leaderboard.gathering import gather
from harness.reporting.leaderboard.reading import MARKER
from tests.reporting.leaderboard import made

BAD = '"><script>alert(1)</script>|`*'


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of a policy, one that cheats, one without privacy, one refused, one of no suite."""
    rows: list[dict[str, Any]] = []

    def add(policy: str, loss: float, seed: int, kind: str = "rdp", **more: Any) -> None:
        found = made.documents(kind, loss=loss, seed=seed)
        if "right" in more:
            found["audit.json"] = made.audit(found["privacy.json"]["epsilon"], right=more["right"])
        if "status" in more:
            found["privacy.json"]["status"] = more["status"]
        name = f"run-{len(rows)}"
        made.write(tmp_path / "runs" / "suite" / name, found)
        budget = None if kind == "none" else 8
        rows.append({"suite": BAD, "data": "d", "policy": policy, "budget": budget, "seed": seed, "run": name})

    add("good", 4.10, 1)
    add("good", 4.14, 2)
    add("cheat", 3.5, 1, right=1.0)
    add("open", 3.7, 1, "none")
    add(BAD, 4.2, 1, status="running")
    (tmp_path / "runs" / "suite" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
    made.make(tmp_path / "runs" / "mine", "scale")
    return tmp_path / "runs"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main.run_app(["leaderboard", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_it_builds_the_site(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page per suite, reports of our own making, everything 0644, and nothing private or refused in it."""
    out = tmp_path / "site"
    (runs / "mine" / "report.html").write_text("<script>alert(1)</script>")
    (runs / "mine" / "private").mkdir()
    (runs / "mine" / "private" / "diagnostics.jsonl").write_text("31337")
    code, told, err = call(capsys, runs, "--out", out)
    assert code == 0, err
    assert told == f"leaderboard: {out / 'index.html'} (5 runs verified, 1 refused)\n"
    lines = err.splitlines()
    assert lines[0] == "refused: suite/run-4: its status is 'running', not finished"
    assert lines[1] == "AUDIT FAILED: suite/run-2: not ranked"
    assert lines[2].startswith("no result: suite/results.jsonl:6: the line is no JSON")
    found = everything(out)
    assert {"index.html", "leaderboard.json", "other-runs.html", MARKER} <= set(found)
    assert len([name for name in found if name.startswith("suite-")]) == 1
    assert len([name for name in found if name.endswith("report.html")]) == 5
    text = b"".join(content for name, content in found.items() if name.endswith("html")).decode()
    assert "31337" not in text
    assert "<script>alert(1)" not in text
    for path in out.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    """Whenever and wherever. Break: the time of day, a path or the order of a folder in a page."""
    texts, _ = site.render_site(gather([runs]))
    other = tmp_path / "elsewhere"
    os.replace(runs, other)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    again, _ = site.render_site(gather([other]))
    assert again == texts
    assert not any(str(tmp_path) in text for text in texts.values())


def test_a_second_build_recomputes_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed is remembered: the accountant is not asked again. Break: `remembered` taken off."""
    first = gather([runs])

    def refuse(*_: object, **__: object) -> float:
        raise AssertionError("recomputed")

    monkeypatch.setattr("harness.privacy.recomputing.group_epsilon", refuse)
    begun = time.perf_counter()
    assert gather([runs]) == first
    assert time.perf_counter() - begun < 5


def test_json_is_everything_that_is_shown(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = call(capsys, runs, "--out", tmp_path / "site", "--json")
    document = json.loads(told)
    assert code == 0
    assert document == json.loads((tmp_path / "site" / "leaderboard.json").read_text())
    suite, other = document["pages"]
    (board,) = suite["boards"]
    (row,) = board["ranked"]
    assert (row["rank"], row["policy"], row["loss"]["seeds"]) == (1, "good", 2)
    assert row["loss"]["mean"] == pytest.approx(4.12)
    assert row["epsilon"]["claimed"] == pytest.approx(8, rel=1e-5)
    assert row["epsilon"]["recomputed"] == pytest.approx(row["epsilon"]["claimed"], rel=1e-6)
    assert [r["policy"] for r in board["unranked"]] == ["cheat"]
    assert board["unranked"][0]["epsilon"]["audited"] == pytest.approx(8.1967, abs=1e-3)
    assert [r["policy"] for r in board["not_private"]] == ["open"]
    assert suite["refused"][0]["reason"] == "its status is 'running', not finished"
    for run in row["runs"]:
        assert (tmp_path / "site" / run["report"]).exists()
        assert (tmp_path / "site" / run["spec"]).exists()
    assert other["name"] == "Other runs"


def test_markdown_is_a_table_for_a_readme(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names are text in it, whatever they hold. Break: a bar or a tag let through."""
    results = runs / "suite" / "results.jsonl"
    results.write_text(results.read_text().replace('"good"', json.dumps(BAD)))
    code, told, err = call(capsys, runs, "--markdown", BAD)
    assert code == 0, err
    lines = told.splitlines()
    assert lines[0].startswith("| # | policy | budget | hold-out loss |")
    assert re.match(
        r'\| 1 \| "&gt;&lt;script&gt;alert\\\(1\\\)&lt;/script&gt;\\\|\\`\\\* \| 8 \| 4.120 ± 0.255 \|', lines[2]
    )
    assert re.match(r"\| – \| open \| – \| 3.700 \(one seed\) \|.*\| ∞ \| ∞ \|", lines[3])
    assert "**Audit violated**, not ranked: cheat." in lines
    code, told, err = call(capsys, runs, "--markdown", "Other run")
    assert (code, told) == (2, "")
    assert err == 'uudp: there is no suite "Other run"; did you mean "Other runs"?\n'


def test_check_says_a_line_for_each_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 if all may be submitted, 2 otherwise; no site either way."""
    code, told, _ = call(capsys, runs, "--check", "--out", tmp_path / "site")
    assert code == 2
    lines = dict(line.split(": ", 1) for line in told.splitlines())
    assert lines["mine"] == "ok"
    assert lines["suite/run-3"] == "ok, but NOT PRIVATE: not ranked"
    assert lines["suite/run-4"] == "refused: its status is 'running', not finished"
    # Break: a run that its own audit refuted may be submitted.
    assert lines["suite/run-2"] == "refused: AUDIT FAILED: an audit found a lower bound above the claimed ε"
    assert call(capsys, runs / "mine", "--check")[:2] == (0, "mine: ok\n")
    (runs / "mine" / "private").mkdir()
    code, told, _ = call(capsys, runs / "mine", "--check", "--json")
    (one,) = json.loads(told)["runs"]
    assert (code, one["ok"]) == (2, False)
    assert "private/" in one["reason"]
    assert not (tmp_path / "site").exists()


def test_arguments_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, problem in [
        ((tmp_path / "nothing",), "there is no folder"),
        ((tmp_path / "empty", "--check"), "there is no run in"),
        ((tmp_path / "empty", "--markdown", "x"), 'there is no suite "x"'),
        ((tmp_path / "empty", "--check", "--markdown", "x"), "leave out --markdown"),
        ((tmp_path / "empty", "--json", "--markdown", "x"), "one of them"),
    ]:
        code, told, err = call(capsys, *arguments)
        assert (code, told) == (2, ""), arguments
        assert problem in err
        assert len(err.splitlines()) == 1


def test_nothing_at_all_is_a_site_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert call(capsys, tmp_path / "empty", "--out", tmp_path / "site")[0] == 0
    assert "There are no runs here yet" in (tmp_path / "site" / "index.html").read_text()


def test_a_folder_without_runs_replaces_no_site(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the hand. Break: the site is gone."""
    out = tmp_path / "site"
    assert call(capsys, runs, "--out", out)[0] == 0
    before = (out / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    code, told, err = call(capsys, tmp_path / "empty", "--out", out)
    assert (code, told) == (2, "")
    assert err == f"uudp: there is no run in {tmp_path / 'empty'}; {out} is left as it is\n"
    assert (out / "index.html").read_text() == before
    (tmp_path / "file").write_text("")
    assert "file is no folder" in call(capsys, tmp_path / "file", "--out", out)[2]


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_is_not_ours_is_left_alone(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: somebody's folder replaced."""
    (tmp_path / "runs").mkdir()
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years")
    elif what == "file":
        out.write_text("years")
    else:
        out.symlink_to(tmp_path / "runs")
    code, _, err = call(capsys, tmp_path / "runs", "--out", out)
    assert code == 2
    assert "is left as it is" in err
    assert what != "folder" or (out / "thesis.tex").read_text() == "years"


def test_an_earlier_site_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: files written one by one into the place of the old ones."""
    out = tmp_path / "site"
    out.mkdir()  # an empty folder may be taken
    site.write_site(out, {MARKER: "", "index.html": "first", "old.html": "old"})
    site.write_site(out, {MARKER: "", "index.html": "second"})
    assert set(everything(out)) == {MARKER, "index.html"}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    replace = os.replace

    def second_fails(source: Any, target: Any) -> None:
        if Path(target) == out and (Path(source) / "index.html").read_text() == "third":
            full()
        replace(source, target)

    for name, broken in (("write_text", full), ("replace", second_fails)):
        with monkeypatch.context() as patch:
            patch.setattr(Path if name == "write_text" else os, name, broken)
            with pytest.raises(MachineError, match="No space left"):
                site.write_site(out, {MARKER: "", "index.html": "third"})
        assert (out / "index.html").read_text() == "second"
        assert [p.name for p in tmp_path.iterdir()] == ["site"]
    (out / MARKER).unlink()
    with pytest.raises(ArgumentError):
        site.write_site(out, {"index.html": "fourth"})


CHANGES: list[Callable[[dict[str, Any]], None]] = [
    lambda found: found["plan.json"].update(model=7, train={"steps": 10, "optimizer": [1]}, plugins={"a": 1}),
    lambda found: found["plan.json"].update(epsilon_by_step=[[0, 1], "x", [1]], notes=[1, {}], versions=[1]),
    lambda found: found["plan.json"].update(population={"users": "x"}, tiers=[1], ledger=5, candidates=[{"unit": {}}]),
    lambda found: found["plan.json"].update(origins={"a": 5}, charges="x", weights_from={"a": 1}),
    lambda found: found["metrics.jsonl"].append({"step": 3, "series": "private", "clip/factor": "x"}),
    lambda found: found.update({"assessment.json": {"groups": 3, "parts": [1]}}),
    lambda found: found.update({"sweep.json": {"charged": False, "prices": 7, "space": [1], "shown": {"a": 1}}}),
]


@pytest.mark.parametrize("place", range(len(CHANGES)))
def test_what_a_report_can_not_be_made_of_breaks_nothing(place: int, tmp_path: Path) -> None:
    """Files of odd shapes: shown as far as they go, or refused; never a traceback."""
    made.make(tmp_path / "runs" / "odd", "scale", CHANGES[place])
    made.make(tmp_path / "runs" / "good", "rdp")
    texts, document = site.render_site(gather([tmp_path / "runs"]))
    shown = sum(name.endswith("report.html") for name in texts)
    refused = sum(len(page["refused"]) for page in document["pages"])
    assert (shown, refused) in ((2, 0), (1, 1))


def test_a_report_that_fails_refuses_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody thought of ends one run's place and not the build. Break: only some exceptions caught."""
    for name, loss in (("odd", 4.1), ("good", 4.2)):
        made.make(tmp_path / "runs" / name, "rdp", loss=loss)

    def render(record: Any) -> str:
        if any(row.get("eval/loss") == 4.1 for row in record.metrics):
            raise AttributeError("'int' object has no attribute 'private text'")
        return "fine"

    monkeypatch.setattr("harness.reporting.leaderboard.ranking.render", render)
    (page,) = gather([tmp_path / "runs"]).pages
    assert [e.folder for e in page.entries] == ["good"]
    assert [(r.run, r.reason) for r in page.refused] == [("odd", "no report can be made of its files (AttributeError)")]
