"""What `sweep.json` says, and that a predicted search leaves it beside its run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import sweep as command
from harness.files import as_json
from harness.privacy.search import Trials
from harness.reporting.report import write_report
from harness.running import RunResult
from harness.spec.sweep_block import SweepBlock
from harness.sweeping.document import MOST_RANKED, predicted_document, released_document
from harness.sweeping.predicting import Ranked
from harness.sweeping.space import Candidate
from harness.sweeping.trials import Outcome
from tests.reporting.conftest import made_metrics, made_plan, made_privacy, write_run

OUTCOMES = [
    Outcome(0, {"train.steps": 4}, "finished", 5.0),
    Outcome(1, {"train.steps": 6}, "finished", 4.0),
    Outcome(2, {"train.steps": 8}, "failed", reason="its eval/loss is no finite number"),
]


def planned(
    kind: str = "predicted",
    visibility: str = "private",
    by: str | None = None,
    trials: Trials | None = None,
    proxy: tuple[str, ...] = (),
) -> Any:
    """As much of a `SweepPlan` as its document needs."""
    search: dict[str, Any] = {"type": kind} | ({"by": by} if by else {})
    block = SweepBlock.model_validate({"space": {"train.steps": {"choice": [4, 6, 8]}}, "search": search})
    plan = SimpleNamespace(
        guarantee=SimpleNamespace(total=8.0, delta=1e-5),
        groups=(SimpleNamespace(name="all"),),
        spec=SimpleNamespace(data=SimpleNamespace(visibility=visibility)),
        ledger=None,
        memory=None,
        document=dict,
    )
    more = {"terms": None, "trials": trials, "prices": (), "proxy": proxy, "load": lambda candidate: candidate}
    return SimpleNamespace(block=block, plan=plan, untuned=plan, **more)


def ranked(number: int, **changes: Any) -> tuple[Ranked, ...]:
    return tuple(
        Ranked(Candidate((("train.steps", i),)), 0.01 + i, 0.02 + i, 0.03 + i, (("all", 0.01 + i),), 1e6, **changes)
        for i in range(number)
    )


@pytest.mark.parametrize(
    ("visibility", "trials", "proxy", "listed"),
    [
        ("private", Trials("geometric", 10.0), (), False),
        ("public", Trials("geometric", 10.0), (), True),
        ("private", Trials("fixed", 3.0), (), True),
        ("private", None, ("data.name=other",), True),
    ],
)
def test_trials_are_released_where_they_may_be(
    visibility: str, trials: Trials | None, proxy: tuple[str, ...], listed: bool
) -> None:
    """Of public data, of a public proxy, or where all are charged. Break: list them whatever the data."""
    found = released_document(planned("random", visibility, trials=trials, proxy=proxy), OUTCOMES[1], OUTCOMES)
    assert found["winner"] == {"candidate": {"train.steps": 6}, "score": 4.0}
    assert (found["shown"] is not None) == listed
    assert ("no finite number" in as_json(found)) == listed


@pytest.mark.parametrize(("by", "score"), [(None, 0.01), ("overall", 0.02), ("mean", 0.03)])
def test_a_predicted_search_keeps_its_best(by: str | None, score: float) -> None:
    """Fifty at most, by what was asked for. Break: keep them all, or the score of another measure."""
    found = predicted_document(planned(by=by), ranked(80))
    assert found["charged"] is False
    assert found["winner"] == {"candidate": {"train.steps": 0}, "score": score}
    assert (found["compared"], len(found["candidates"]), found["exact"]) == (80, MOST_RANKED, 10)
    assert found["candidates"][3]["candidate"] == {"train.steps": 3}


def test_what_is_infinite_can_be_written() -> None:
    """A group that is left out has all noise and no signal. Break: write infinity, which JSON has not."""
    one = Ranked(Candidate(()), math.inf, 0.1, math.inf, (("all", math.inf), ("few", 0.1)), 1e6)
    found = json.loads(as_json(predicted_document(planned(), [one])))
    assert found["candidates"][0]["worst"] is None
    assert found["candidates"][0]["groups"] == {"all": None, "few": 0.1}
    assert found["winner"]["score"] is None


def _stand_in(monkeypatch: pytest.MonkeyPatch, execute: Any) -> None:
    """For what plans, ranks and runs."""
    monkeypatch.setattr("harness.running.run", execute)
    monkeypatch.setattr("harness.planning.make_plan", lambda loaded: loaded)
    monkeypatch.setattr("harness.sweeping.predicting.rank", lambda found: ranked(12))


@pytest.mark.parametrize("html", [True, False])
def test_the_command_writes_it_and_the_report_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, html: bool
) -> None:
    """Where there is a report. Break: write it before the run, whose report then lacks it, or write none."""
    folder = write_run(tmp_path / "run", made_plan(), made_privacy(), made_metrics())
    before = write_report(folder).read_text()

    def execute(*_: Any, **__: Any) -> RunResult:
        return RunResult(folder, {}, folder / "report.html" if html else None)

    _stand_in(monkeypatch, execute)
    result, more = command._predicted(planned(), False, None, True, tmp_path)
    assert more["winner"] == {"train.steps": 0}
    assert json.loads((folder / "sweep.json").read_text())["compared"] == 12
    assert (folder / "sweep.json").stat().st_mode & 0o777 == 0o644
    after = (folder / "report.html").read_text()
    assert ("Choosing cost nothing" in after) == html
    assert html or after == before
    assert result.folder == folder


def test_killed_before_it_was_written_it_comes_with_the_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is finished, so nothing is trained. Break: `execute` whatever is there; the older run of two."""
    spec: dict[str, Any] = {"name": "made", "train": {"steps": 4}}
    plan = SimpleNamespace(spec=SimpleNamespace(name="made"), loaded=SimpleNamespace(resolved=spec))
    for number, status in ((1, "finished"), (2, "finished")):
        folder = write_run(tmp_path / "made" / f"2026010{number}", made_plan(), made_privacy(), made_metrics())
        (folder / "private").mkdir(exist_ok=True)
        (folder / "private" / "run.json").write_text(json.dumps({"status": status, "parts": {}}))
        (folder / "spec.yaml").write_text(json.dumps(spec))
    write_report(folder)
    began: list[Any] = []

    def execute(*_: Any, resume: bool, **__: Any) -> RunResult:
        began.append(resume)
        return RunResult(folder, {}, None)

    _stand_in(monkeypatch, execute)
    monkeypatch.setattr("harness.planning.make_plan", lambda loaded: plan)
    result, more = command._predicted(planned(), True, None, True, tmp_path)
    assert result.folder == folder
    assert json.loads((folder / "sweep.json").read_text())["compared"] == 12
    assert "Choosing cost nothing" in (folder / "report.html").read_text()
    assert not (tmp_path / "made" / "20260101" / "sweep.json").exists()
    assert more["winner"] == {"train.steps": 0}
    assert began == []
    # A new search trains, and one whose run is not over goes on with it.
    command._predicted(planned(), False, None, True, tmp_path)
    (folder / "private" / "run.json").write_text(json.dumps({"status": "interrupted", "parts": {}}))
    command._predicted(planned(), True, None, True, tmp_path)
    assert began == [False, True]
