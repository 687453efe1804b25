"""Rows over seeds: means, intervals, places; and what never has a place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.privacy.guesses import epsilon_bound
from harness.reporting.leaderboard.gathering import gather
from harness.reporting.leaderboard.ranking import Board, half_text, mean_of
from tests.reporting.leaderboard import made


class Suite:
    """A suite's folder, made run by run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def add(self, policy: str, loss: float, seed: int, kind: str = "rdp", **more: Any) -> None:
        data, budget = more.pop("data", "posts"), more.pop("budget", None if kind == "none" else 8.0)
        audit, edit = more.pop("audit", None), more.pop("edit", None)
        found = made.documents(kind, loss=loss, seed=seed, **more)
        if audit is not None:
            found["audit.json"] = made.audit(found["privacy.json"]["epsilon"], **audit)
        if edit is not None:
            edit(found)
        name = f"run-{len(self.rows)}"
        made.write(self.folder / name, found)
        cell = {"suite": "s", "data": data, "policy": policy, "budget": budget, "seed": seed, "run": name}
        self.rows.append(cell)

    def board(self, place: int = 0) -> Board:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.folder / "results.jsonl").write_text(text)
        (page,) = gather([self.folder]).pages
        assert page.suite
        return page.boards[place]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_a_mean_and_its_t_interval() -> None:
    """Of 1, 2, 4: s = 1.527525, t(0.975, 2) = 4.302653, half = 3.794612. Break: a normal quantile, or n for n − 1."""
    found = mean_of([1.0, 2.0, 4.0])
    assert found is not None
    assert (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.half == pytest.approx(4.302653 * 1.527525 / math.sqrt(3), rel=1e-5)
    assert mean_of([2.5]) is not None
    assert mean_of([2.5]).half is None  # type: ignore[union-attr]
    assert mean_of([]) is None
    assert (half_text(0.0051), half_text(0.005)) == ("0.006", "0.005")


def test_places_are_by_mean_loss_within_a_budget(suite: Suite) -> None:
    """Break: budgets mixed, a single seed given an interval, an overlap not said."""
    four = {"epsilon": 4.0, "delta": 1e-5, "accountant": "rdp", "ledger": None}
    for seed, (good, close) in enumerate(((4.10, 4.11), (4.12, 4.15), (4.11, 4.13))):
        suite.add("good", good, seed)
        suite.add("close", close, seed)
    suite.add("one", 4.3, 7)
    suite.add("strict", 4.05, 7, privacy=four, budget=4.0)
    board = suite.board()
    assert [(r.rank, r.policy, r.budget, r.tied) for r in board.ranked] == [
        (1, "strict", 4.0, False), (1, "good", 8.0, False), (2, "close", 8.0, True), (3, "one", 8.0, False),
    ]  # fmt: skip
    good, one = board.ranked[1], board.ranked[3]
    assert good.loss is not None
    assert good.loss.mean == pytest.approx(4.11)
    assert good.gain == pytest.approx(0.39)
    assert good.share == pytest.approx(0.39 / 0.5)  # of the runs' own ordinary gain
    assert one.loss is not None
    assert one.loss.half is None
    assert "one seed: no interval" in one.notes


def test_without_privacy_is_what_is_compared_with_and_never_ranked(suite: Suite) -> None:
    """Break: a non-private run among the ranked ones, or the share of the wrong gain."""
    suite.add("good", 4.1, 1)
    suite.add("open", 3.7, 1, "none")
    suite.add("open", 3.9, 2, "none")
    board = suite.board()
    assert [r.policy for r in board.ranked] == ["good"]
    (row,) = board.unprotected
    assert (row.policy, row.rank, row.claimed, row.delta, row.private) == ("open", None, None, None, False)
    assert board.ranked[0].share == pytest.approx(0.4 / 0.7)


def test_a_violated_audit_takes_the_whole_row_out(suite: Suite) -> None:
    """One seed of three is enough. Break: the mean of bounds, or the run alone left out."""
    for seed in range(3):
        suite.add("cheat", 3.5, seed, audit={"right": 1.0 if seed == 1 else 0.7})
        suite.add("good", 4.1, seed, audit={"right": 0.7 + seed / 50})
    suite.add("inconclusive", 4.2, 1, audit={"canaries": 100})
    board = suite.board()
    most = made.MANY
    assert [(r.policy, r.verdict) for r in board.ranked] == [("good", "consistent"), ("inconclusive", "inconclusive")]
    assert board.ranked[0].audited == pytest.approx(epsilon_bound(most, most, int(most * 0.74), 1e-5))
    (row,) = board.unranked
    assert (row.policy, row.verdict, row.rank) == ("cheat", "violated", None)
    assert row.audited == pytest.approx(epsilon_bound(most, most, most, 1e-5))
    assert "above the claimed ε" in row.unranked


def test_what_was_not_measured_has_no_place(suite: Suite) -> None:
    """Break: a missing loss counted as 0, or the mean of those that are there ranked."""

    def unmeasured(found: dict[str, Any]) -> None:
        found["metrics.jsonl"] = [row for row in found["metrics.jsonl"] if row["step"] == 0]

    suite.add("nothing", 4.1, 1, edit=unmeasured)
    suite.add("half", 4.1, 3, edit=unmeasured)
    suite.add("half", 4.1, 2)
    board = suite.board()
    assert board.ranked == ()
    assert {r.policy: r.unranked for r in board.unranked} == {
        "nothing": "no run has a hold-out loss after the last step",
        "half": "not every run has a hold-out loss after the last step",
    }  # fmt: skip


def test_other_data_or_another_model_is_noted(suite: Suite) -> None:
    """Whoever names a suite says what their run is. Break: an easier data set leads the board without a word."""
    suite.add("a", 4.2, 1)
    assert not suite.board().notes
    suite.add("b", 1.2, 1, data="posts", edit=lambda found: _renamed(found, "easy"))
    (note,) = suite.board().notes
    assert note.startswith("Not all of these runs are of the same data set and base model")
    assert "easy" in note


def _renamed(found: dict[str, Any], name: str) -> None:
    for spec in (found["spec.yaml"], found["plan.json"]["spec"]):
        spec["data"]["name"] = name
    found["privacy.json"]["data"]["name"] = name
    found["privacy.json"]["statement"] = found["privacy.json"]["statement"].replace("posts", name)


def test_groups_and_the_gap_between_them(suite: Suite) -> None:
    """Base 4.5 and 4.6, trained 4.1 and 4.15: gains 0.40 and 0.45. Break: losses compared in place of gains."""
    suite.add("good", 4.1, 1, "scale")
    (row,) = suite.board().ranked
    free, paid = row.groups
    assert (free.name, paid.name) == ("free", "paid")
    assert (free.gain, paid.gain) == (pytest.approx(0.4), pytest.approx(0.45))
    assert row.gap == pytest.approx(0.05)
    assert (free.claimed, paid.claimed) == (pytest.approx(8, rel=1e-4), pytest.approx(4, rel=1e-4))
    assert row.claimed == free.claimed


def test_learnt_groups_claim_nothing_of_their_own(suite: Suite) -> None:
    """Break: ε of a group shown where only the run's is claimed."""
    suite.add("learnt", 4.1, 1, "learnt")
    (row,) = suite.board().ranked
    assert [g.claimed for g in row.groups] == [None, None]
    assert row.claimed == pytest.approx(8, rel=1e-4)
    assert "groups are learnt: only the total is claimed" in row.notes


def test_what_a_reader_should_know(suite: Suite) -> None:
    """Break: seeds that differ in more, or base models that differ, passed over."""

    def other_base(found: dict[str, Any]) -> None:
        found["metrics.jsonl"][0]["eval/loss"] = 4.9

    suite.add("mixed", 4.1, 1)
    suite.add("mixed", 4.1, 2, train={"steps": 12})
    suite.add("searched", 4.2, 1, "search", edit=other_base)
    board = suite.board()
    notes = {row.policy: row.notes for row in board.ranked}
    assert "its runs differ in more than the seed" in notes["mixed"]
    assert "ε is of a whole search" in notes["searched"]
    assert any("base model’s hold-out loss differs" in note for note in board.notes)


def test_data_are_apart_and_runs_of_no_suite_by_data_set(tmp_path: Path) -> None:
    """Break: rows of other data ranked against each other; runs that differ in more than their seed in one row."""
    suite = Suite(tmp_path / "suite")
    suite.add("p", 4.1, 1, data="b")
    suite.add("p", 4.3, 1, data="a")
    suite.board()
    for seed, steps in ((1, 10), (2, 10), (3, 12)):
        made.make(tmp_path / f"mine-{seed}", "rdp", seed=seed, train={"steps": steps})
    first, other = gather([tmp_path]).pages
    assert [(b.name, [r.rank for r in b.ranked]) for b in first.boards] == [("a", [1]), ("b", [1])]
    (board,) = other.boards
    assert (other.name, board.name) == ("Other runs", "posts")
    assert sorted(len(row.entries) for row in board.ranked) == [1, 2]
    assert {row.policy for row in board.ranked} == {"tiny (uniform)"}


def test_a_loss_of_an_earlier_step_has_no_place(suite: Suite) -> None:
    """Who keeps the best evaluation would look better. Break: rank whatever was measured last."""

    def earlier(found: dict[str, Any]) -> None:
        for row in found["metrics.jsonl"]:
            row["step"] = row["step"] and row["step"] - 1

    suite.add("best", 3.1, 1, edit=earlier)
    suite.add("true", 4.1, 1)
    board = suite.board()
    assert [r.policy for r in board.ranked] == ["true"]
    assert [r.policy for r in board.unranked] == ["best"]
