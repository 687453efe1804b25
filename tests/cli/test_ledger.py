"""``uudp ledger`` as its users type it, on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from harness.cli import completion, main
from harness.privacy.ledger import Ledger, Request

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ledger, which is the default one here."""
    found = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        found = request.getfixturevalue("postgres_server").new_database()
    monkeypatch.setenv("UUDP_LEDGER", found)
    monkeypatch.chdir(tmp_path)
    return found


def reserve(url: str, run: str, data_set: str = "mails", epsilon: float = 2.5) -> None:
    Ledger(url).reserve(Request(run, data_set, epsilon, 1e-6, 10, "d" * 64, "weekly"), lambda order: 0.25)


def said(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    assert main.run_app(["ledger", *line.split()]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return err if code else out


def document(capsys: pytest.CaptureFixture[str], line: str) -> Any:
    return json.loads(said(capsys, f"{line} --json"))


def test_budget_and_show(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "show").splitlines()[1] == "nothing in it yet"
    assert "left    ε = 10, δ = 1e-05" in said(capsys, "budget mails --epsilon 10 --delta 1e-5")
    reserve(url, "20260101-a")
    reserve(url, "20260101-b", "posts")
    known = document(capsys, "show mails")
    assert (known["remaining_epsilon"], known["remaining_delta"]) == (7.5, 9e-6)
    assert known["budget"] == {"epsilon": 10.0, "delta": 1e-5, "order": None}
    (run,) = known["entries"]
    assert (run["run"], run["status"], run["epsilon"], run["spec"]) == ("20260101-a", "reserved", 2.5, "weekly")
    assert [d["data_set"] for d in document(capsys, "show")["data_sets"]] == ["mails", "posts"]
    shown = said(capsys, "")
    assert "budget  none: runs are recorded without a limit" in shown
    assert "left    ε = 7.5, δ = 9e-06" in shown
    assert "20260101-a" in said(capsys, "show mails")
    assert 'knows no data set "mials"; did you mean "mails"?' in said(capsys, "show mials", 2)
    assert "left    RDP 8.78589" in said(capsys, "budget other --epsilon 10 --delta 1e-5 --order 8")


def test_runs_without_noise_are_shown_as_such(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    reserve(url, "20260101-a", epsilon=float("inf"))
    assert "spent   ε = infinite (a run without noise)" in said(capsys, "show mails")
    assert "NONE" in said(capsys, "show mails")
    assert document(capsys, "show mails")["spent_epsilon"] is None


def test_void(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("20260101-a", "20260101-b"):
        reserve(url, run)
    assert "the reservation of run 20260101-a is given back" in said(capsys, "void runs/weekly/20260101-a")
    assert "was voided already" in said(capsys, "void 20260101-a", 2)
    Ledger(url).touch("20260101-b")
    why = "run 20260101-b is touched: a model has read private data, so all of it stays charged"
    assert why in said(capsys, "void 20260101-b", 2)
    assert 'has no run "20260101-c"' in said(capsys, "void 20260101-c", 2)
    assert [r["charged"] for r in document(capsys, "show mails")["entries"]] == [False, True]


def test_verify(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4 for a ledger that was edited. Red when a problem is printed and nothing more."""
    reserve(url, "20260101-a")
    receipt = Ledger(url).account("mails").runs[0].reservation.receipt
    run = tmp_path / "runs" / "weekly" / "20260101-a"
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    kept = {"run": "20260101-a", "sequence": receipt.sequence, "hash": receipt.hash}
    (run / "privacy.json").write_text(json.dumps({"ledger": kept}))
    assert document(capsys, f"verify {run}")["intact"] is True
    assert said(capsys, "verify 20260101").endswith("is intact: 1 entries and 1 receipt(s)\n")
    (run / "privacy.json").write_text(json.dumps({"ledger": {**kept, "hash": "0" * 64}}))
    assert "entry 1 is not the one that run 20260101-a has a receipt of" in said(capsys, "verify 20260101-a", 4)
    for nothing in ({"ledger": None}, {}, {"ledger": {"run": 3}}, []):
        (run / "privacy.json").write_text(json.dumps(nothing))
        assert "has no receipt of a ledger" in said(capsys, "verify 20260101-a", 2)
    with Ledger(url).store.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_head SET entries = 7"))
    assert "is not what it was" in said(capsys, "verify", 4)
    assert "was damaged or edited: see uudp ledger verify" in said(capsys, "show mails", 4)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("shwo", 'ledger knows budget, show, verify, void, not "shwo"; did you mean "show"?'),
        ("budget", "usage: uudp ledger budget NAME"),
        ("show a b", "usage: uudp ledger show [NAME]"),
        ("void", "usage: uudp ledger void RUN"),
        ("budget mails --epsilon 1", "ledger budget needs --epsilon and --delta"),
        ("budget mails --epsilon 0 --delta 1e-5", "--epsilon: must be above 0 and at most 1e6, found 0"),
        ("budget mails --epsilon nan --delta 1e-5", "--epsilon: must be above 0 and at most 1e6, found nan"),
        ("budget mails --epsilon 1 --delta 1", "--delta: must be above 0 and below 1, found 1"),
        ("budget mails --epsilon 1 --delta 1e-5 --order 1", "--order: must be from 1.1 to 1024, found 1"),
        ("show --epsilon 1", "--epsilon, --delta and --order belong to: uudp ledger budget NAME"),
        (
            "show --url mysql://ann:s3cret@db/x",
            "the ledger's URL: must be sqlite:///FILE or postgresql://HOST/DATABASE",
        ),
        ("verify nothing", 'there is no run "nothing" in runs'),
    ],
)
def test_wrong_arguments(
    line: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UUDP_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    assert said(capsys, line, 2) == f"uudp: {what}\n"
    assert not any(tmp_path.iterdir())


def test_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("show", "verify", "void a", "budget a --epsilon 1 --delta 1e-5"):
        err = said(capsys, f"{line} --url postgresql://ann:s3cret@127.0.0.1:1/x", 4)
        assert err.startswith("uudp: the ledger postgresql://ann:***@127.0.0.1:1/x does not answer: ")
        assert err.count("\n") == 1
        assert "s3cret" not in err


def test_completion(tmp_path: Path) -> None:
    class Context:
        params: dict[str, Any]

    (tmp_path / "weekly" / "20260101-a").mkdir(parents=True)
    (tmp_path / "weekly" / "20260101-a" / "plan.json").write_text("{}")
    for given, found in (
        ([], ["budget", "show", "verify", "void"]), (["void"], ["20260101-a"]), (["verify"], ["20260101-a"]),
        (["show"], []),
    ):  # fmt: skip
        context: Any = Context()
        context.params = {"what": given, "out": tmp_path}
        assert completion.ledger_words(context, "") == found
