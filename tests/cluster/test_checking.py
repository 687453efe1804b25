"""What is refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cluster.checking import epsilon_of
from harness.cluster.client import JobInfo
from harness.cluster.submitting import Submission, _next, check, find
from harness.errors import ArgumentError
from harness.privacy.ledger import Ledger
from tests.cluster.conftest import STORAGE, Laptop

RUN = "20260101-100000-aaaaaa"


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UUDP_LEDGER", f"sqlite:///{tmp_path}/own-ledger.db")


def test_storage_must_be_said(laptop: Laptop) -> None:
    with pytest.raises(ArgumentError, match=r"compute.storage: must name a folder"):
        check(laptop.submission("compute.storage=null"), send_data=True)


@pytest.mark.parametrize(
    "url", ["sqlite:///ledger.db", "sqlite:////root/ledger.db", f"sqlite:///{STORAGE}/../ledger.db", "sqlite:///~/l.db"]
)
def test_a_file_ledger_must_lie_in_the_storage(laptop: Laptop, url: str) -> None:
    """Break: accept any sqlite: URL."""
    with pytest.raises(ArgumentError, match=r"privacy.ledger: an sqlite: ledger of a submitted run must lie in"):
        check(laptop.submission(privacy={"ledger": url}), send_data=True)


def test_ledgers_that_are_kept(laptop: Laptop) -> None:
    kept = check(laptop.submission(privacy={"ledger": f"sqlite:///{STORAGE}/l.db"}), send_data=True)
    assert kept.notes[-1] == f"ledger: {STORAGE}/l.db, on the cluster"
    none = check(laptop.submission(privacy={"ledger": None}), send_data=True)
    assert none.notes[-1] == "ledger: none"
    default = check(laptop.submission(), send_data=True)
    assert default.notes[-1].startswith("ledger: what UUDP_LEDGER names on the cluster")


def test_a_budget_is_not_had_twice(laptop: Laptop, tmp_path: Path) -> None:
    """The default ledger here knows the data set. Break: don't look."""
    Ledger(None).set_budget("mails", 9.0, 1e-4)
    with pytest.raises(ArgumentError, match=r'keeps the budget of "mails"'):
        check(laptop.submission(), send_data=True)
    Ledger(None).set_budget("others", 9.0, 1e-4)
    assert check(laptop.submission(data={"name": "others-still"}), send_data=True).plan is not None


def test_an_unreachable_shared_ledger_is_left_to_the_cluster(laptop: Laptop) -> None:
    url = "postgresql://127.0.0.1:9/ledger"
    found = check(laptop.submission(privacy={"ledger": url}), send_data=True)
    assert found.notes[-2:] == (
        "ledger: the database that privacy.ledger names, by the cluster",
        "ledger: not reached from here; the cluster asks it before it spends",
    )


def test_only_a_sweep_is_swept(laptop: Laptop) -> None:
    with pytest.raises(ArgumentError, match="the spec has no sweep block"):
        check(laptop.submission(verb="sweep"), send_data=True)


def test_what_is_reserved(laptop: Laptop) -> None:
    checked = check(laptop.submission(), send_data=True)
    assert epsilon_of(checked.submission.loaded, checked.plan) == "8"
    assert epsilon_of(checked.submission.loaded, None) == "≤ 8"


def test_arguments(laptop: Laptop) -> None:
    with pytest.raises(ArgumentError, match="--resume: must be a job's id"):
        laptop.submission(resume="../../x")
    loaded = laptop.submission().specs
    with pytest.raises(ArgumentError, match="--python: must be the name or path"):
        Submission("run", loaded, (), "mails", python="python; rm -rf /")


def job(name: str, status: str = "SUCCEEDED", run: str = RUN) -> JobInfo:
    return JobInfo(name, status, metadata={"uudp": "0", "run": run})


def test_ids() -> None:
    """Break: the first job of a run is taken for its newest; a job that runs is gone on with."""
    jobs = [
        job(RUN),
        *(job(f"{RUN}-r{n}") for n in range(1, 11)),
        job("20260102-100000-bbbbbb", run="20260102-100000-bbbbbb"),
    ]
    assert find(jobs, RUN).id == find(jobs, "20260101").id == f"{RUN}-r10"
    assert find(jobs, f"{RUN}-r2").id == f"{RUN}-r2"
    for wrong, message in (("2026", "several jobs begin"), ("x", "there is no job"), ("", "several|no job")):
        with pytest.raises(ArgumentError, match=message):
            find(jobs, wrong)
    assert _next(RUN, jobs) == f"{RUN}-r11"
    with pytest.raises(ArgumentError, match="is still running"):
        _next(RUN, [job(RUN), job(f"{RUN}-r1", "RUNNING")])
