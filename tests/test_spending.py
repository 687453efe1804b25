"""A run and its ledger: reserved before anything is read, charged once, given back only untouched, never lost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import running
from harness.cli import main
from harness.errors import ArgumentError, BudgetError, MachineError
from harness.planning import Plan, make_plan
from harness.privacy.ledger import Account, Ledger
from harness.running import flow, folders, spending
from harness.running.folders import entry_of
from harness.training import ray
from harness.training.job import Folder
from tests import plans
from tests.launching import Process, Workplace, read_json, released_step

STEPS = 60
Written = Callable[..., str]


class Listening(running.Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def spec(tmp_path: Path, ledger: Ledger) -> str:
    """A spec whose ledger is `ledger`; its model does not exist."""
    return str(plans.write_spec(tmp_path, privacy={"ledger": str(ledger.address.url)}))


def a_folder(tmp_path: Path, number: int = 0) -> Folder:
    """The folder of a new run."""
    made = Folder(tmp_path / "runs" / "tiny" / f"20260101-10000{number}-abcdef")
    made.private.mkdir(parents=True)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return a_folder(tmp_path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    workplace = Workplace(tmp_path / "place")
    monkeypatch.setenv("UUDP_CACHE", workplace.environment["UUDP_CACHE"])
    yield workplace
    workplace.clean()


def statuses(account: Account) -> list[str]:
    return [run.status for run in account.runs]


# --- reserve and refund, without a model --------------------------------------------------------------------


def ends(plan: Plan, folder: Folder, how: Callable[[], None], observer: running.Observer | None = None) -> None:
    """A run that reserves and ends like this."""
    with spending.entered(plan, folder, False, observer or Listening()):
        how()


def test_a_run_that_does_not_begin_gets_all_back(spec: str, ledger: Ledger, tmp_path: Path) -> None:
    """Red when nothing is refunded, or when what had begun is."""
    plan = make_plan(spec)
    for number, kind in enumerate((KeyboardInterrupt, ArgumentError, MachineError)):

        def fail(kind: type[BaseException] = kind) -> None:
            assert statuses(ledger.account("posts"))[-1] == "reserved"
            raise kind("why")

        with pytest.raises(kind, match="why"):
            ends(plan, a_folder(tmp_path, number), fail)
    assert statuses(ledger.account("posts")) == ["refunded"] * 3
    begun = a_folder(tmp_path, 9)

    def begin() -> None:
        (begun.private / "run.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ends(plan, begun, begin)
    assert statuses(ledger.account("posts")) == ["refunded"] * 3 + ["reserved"]


def test_what_is_reserved(spec: str, ledger: Ledger, folder: Folder) -> None:
    """The maximum over groups of ε, the δ, the whole of the steps. Red when another group's ε is taken."""
    plan = make_plan(
        spec,
        [
            "segmentation={type: attribute, column: plan, values: [free, paid]}",
            "data.weights={free: 0.6, paid: 0.3, other: 0.1}",
            "noise={type: scale, epsilon: {free: 2, paid: 8, other: 4}}",
            "data.holdout.users=0.2",
        ],
    )
    with spending.entered(plan, folder, False, Listening()) as spent:
        (run,) = ledger.account("posts").runs
        held, entry = run.reservation, entry_of(folder)
        assert held.epsilon == repr(plan.guarantee.total)
        assert 7.9 < float(held.epsilon) <= 8
        assert held.delta == repr(1e-5)
        assert held.content["mechanism"] == plan.mechanism.digest
        assert held.content["holdout_fraction"] == "0.2"
        assert held.run == folder.root.name
        assert entry is not None
        assert (entry.sequence, entry.hash, entry.url) == (held.sequence, held.hash, ledger.shown)
        assert ledger.holdout("posts") == (0.0, False)
        spent.touch()
        assert ledger.holdout("posts") == (0.2, False)


def test_an_order_charges_the_largest_rdp(spec: str, ledger: Ledger, folder: Folder) -> None:
    """RDP of the run's own events at the budget's order. Red when ε is charged, or the least of the groups."""
    from dp_accounting.rdp import RdpAccountant

    ledger.set_budget("posts", 50.0, 1e-5, 4.0)
    weights = "data.weights={free: 0.6, paid: 0.3, other: 0.1}"
    plan = make_plan(
        spec,
        [
            "segmentation={type: attribute, column: plan, values: [free, paid]}", weights,
            "noise={type: scale, epsilon: {free: 1, paid: 3, other: 2}}",
        ],
    )  # fmt: skip
    costs = [
        float(RdpAccountant(orders=[4.0]).compose(plan.mechanism.event(i)).rdp[0])
        for i in range(len(plan.mechanism.groups))
    ]
    assert max(costs) > 1.5 * min(costs)
    with spending.entered(plan, folder, False, Listening()):
        (run,) = ledger.account("posts").runs
        assert run.reservation.rdp == repr(max(costs))


def test_resuming_needs_the_same_reservation(spec: str, ledger: Ledger, folder: Folder, tmp_path: Path) -> None:
    """Red when a resumed run trusts its folder: voided, or of another ledger, it would train without being charged."""
    plan = make_plan(spec)
    with spending.entered(plan, folder, False, Listening()):
        pass
    with spending.entered(plan, folder, True, Listening()):
        assert statuses(ledger.account("posts")) == ["reserved"]
    elsewhere = make_plan(spec, [f"privacy.ledger=sqlite:///{tmp_path}/other.db"])
    Ledger(f"sqlite:///{tmp_path}/other.db").set_budget("posts", 8.0, 1e-4)
    with pytest.raises(ArgumentError, match="does not hold the reservation of run"):
        spending.entered(elsewhere, folder, True, Listening()).__enter__()
    with pytest.raises(ArgumentError, match=r"was begun with a ledger: go on with that ledger \(sqlite:"):
        spending.entered(make_plan(spec, ["privacy.ledger=null"]), folder, True, Listening()).__enter__()
    ledger.void(folder.root.name)
    with pytest.raises(BudgetError, match=r"given back by a person \(uudp ledger void\)"):
        spending.entered(plan, folder, True, Listening()).__enter__()
    bare = Folder(tmp_path / "bare")
    bare.private.mkdir(parents=True)
    with pytest.raises(ArgumentError, match=r"without a ledger: go on with privacy\.ledger=null"):
        spending.entered(plan, bare, True, Listening()).__enter__()


def test_a_refund_that_fails_is_told(spec: str, ledger: Ledger, folder: Folder, tmp_path: Path) -> None:
    listening = Listening()

    def lose() -> None:
        (tmp_path / "ledger.db").rename(tmp_path / "away.db")
        raise ArgumentError("bad data")

    with pytest.raises(ArgumentError, match="bad data"):
        ends(make_plan(spec), folder, lose, listening)
    assert listening.notes == [
        f"its reservation still stands (the ledger {ledger.shown} can't be opened, or is no longer there); "
        f"give it back with: uudp ledger void {folder.root.name}"
    ]
    (tmp_path / "away.db").rename(tmp_path / "ledger.db")
    assert statuses(ledger.account("posts")) == ["reserved"]


def killed_while_preparing(plan: Plan, ledger: Ledger, out: Path, number: int) -> Folder:
    """What SIGKILL leaves of a run that had reserved and not begun, a while ago."""
    folder = Folder(out / plan.spec.name / f"20260101-10000{number}-abcdef")
    folder.private.mkdir(parents=True)
    folder.lease.touch()
    spending._reserve(plan, folder, ledger)
    folder.key.write_bytes(bytes(32))
    (folder.private / ".run.json.0123").write_text("{")
    os.utime(folder.private, (0, 0))
    return folder


def test_a_run_that_was_killed_before_it_began_gets_all_back(spec: str, ledger: Ledger, tmp_path: Path) -> None:
    """By the next one of its name. Red when nothing is given back, or too much."""
    plan, out, listening = make_plan(spec), tmp_path / "runs", Listening()
    dead, begun, alive, young = (killed_while_preparing(plan, ledger, out, number) for number in range(4))
    (begun.private / "run.json").write_text("{}")
    os.utime(begun.private, (0, 0))
    os.utime(young.private)
    first = out / plan.spec.name / "20260101-100009-abcdef" / "private"  # killed before it had its lease
    first.mkdir(parents=True)
    os.utime(first, (0, 0))
    with folders.lease(alive):
        spending.give_back_unbegun(plan.loaded, out, listening)
    assert statuses(ledger.account("posts")) == ["refunded", "reserved", "reserved", "reserved"]
    assert [folder.root.exists() for folder in (dead, begun, alive, young)] == [False, True, True, True]
    assert not first.parent.exists()
    assert begun.key.exists()
    assert listening.notes == [f"{dead.root.name} was killed before it began: what it reserved is given back"]


def test_looks_while_training(
    spec: str, ledger: Ledger, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that is gone, or a reservation that is, asks for a stop; once gone for a moment does not.

    Red when a look is not repeated, or what it finds is not told to the workers.
    """
    monkeypatch.setattr(spending, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(spending, "RETRY_SECONDS", 0.05)
    plan, listening, path = make_plan(spec), Listening(), tmp_path / "ledger.db"
    answers = iter([None, MachineError("busy"), None, None, MachineError("busy"), MachineError("gone")])
    with spending.entered(plan, folder, False, listening) as spent:
        monkeypatch.setattr(spent, "_problem", lambda: next(answers))
        with spent.guarded(folder, listening) as guard:
            _until(lambda: spent.lost)
            guard()
            guard()
    assert folder.stop.exists()
    assert listening.notes == ["gone; stopping after this step, with a checkpoint"]
    assert next(answers, "all asked") == "all asked"
    with pytest.raises(MachineError, match="gone; stopped with a checkpoint") as stopped:
        spent.raise_lost(folder)
    assert stopped.value.run_id == folder.root.name

    with spending.entered(plan, folder, True, listening) as spent:
        assert spent._problem() is None
        path.rename(tmp_path / "away.db")
        assert isinstance(spent._problem(), MachineError)
        (tmp_path / "away.db").rename(path)
        ledger.void(folder.root.name)
        assert isinstance(spent._problem(), BudgetError)
        with spent.guarded(folder, listening):
            _until(lambda: spent.lost)
    with pytest.raises(BudgetError, match="given back by a person"):
        spent.raise_lost(folder)


def _until(condition: Callable[[], Any]) -> None:
    import time

    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- refused, by the command --------------------------------------------------------------------------------


def test_the_budget_refuses(
    spec: str, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` says so and ends well; `run` refuses with 3, before its question, before a model is looked for."""
    ledger.set_budget("posts", 3.0, 1e-4)
    out = str(tmp_path / "runs")
    assert main.run_app(["plan", spec]) == 0
    assert 'ledger      ε = 3 and δ = 0.0001 left of the budget of "posts"' in capsys.readouterr().out
    assert main.run_app(["plan", spec, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ledger"]["fits"] is False
    assert document["ledger"]["remaining_epsilon"] == 3
    (said,) = [note for note in document["notes"] if note.startswith("THE BUDGET REFUSES")]
    needs = 'ε = 3 and δ = 0.0001 are left of the budget of "posts", and this run needs ε = 8 and δ = 1e-05. What would'
    assert needs in said
    for arguments in (["--yes"], []):
        assert main.run_app(["run", spec, *arguments, "--out", out]) == 3
        assert needs in capsys.readouterr().err.splitlines()[-1]
    assert main.run_app(["run", spec, "noise={type: none}", "--not-private", "--yes", "--out", out]) == 3
    assert "a run without noise spends an infinite ε" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert ledger.account("posts").runs == ()


def test_what_it_says_would_fit_fits(spec: str, ledger: Ledger) -> None:
    """Each advice, followed, is no longer refused; one step more is. Red when an advice is rounded up."""
    import dataclasses
    import re

    from harness.privacy.accounting import total_epsilon

    for budget in ((3.0, 1e-4), (3.0, 4e-6), (9.0, 4e-6), (20.0, 1e-5, 6.0)):
        ledger.set_budget("posts", *budget)
        plan = make_plan(spec, ["train.steps=60", "sampling.expected=5"])
        assert plan.ledger is not None
        said = str(plan.ledger.refusal)
        changes = [f"privacy.delta={m[1]}" for m in [re.search(r"privacy\.delta at most (\S+?)(?: with|$)", said)] if m]
        if found := re.search(r"privacy\.epsilon .*? at most ([0-9.e-]+)", said):
            changes.append(f"privacy.epsilon={found[1].rstrip(',')}")
        assert changes, said
        followed = make_plan(spec, ["train.steps=60", "sampling.expected=5", *changes])
        assert followed.ledger is not None
        assert followed.ledger.refusal is None, (said, changes)
        if (steps := re.search(r"(\d+) of the 60 steps", said)) and len(budget) == 2:
            delta = min(1e-5, budget[1])
            assert total_epsilon(plan.mechanism, delta, "pld", int(steps[1])) <= budget[0]
            assert total_epsilon(plan.mechanism, delta, "pld", int(steps[1]) + 2) > budget[0] * 0.99
    shorter = dataclasses.replace(plan.mechanism, noise_std=0.0)
    assert not shorter.private


def test_another_run_was_quicker(spec: str, ledger: Ledger, tmp_path: Path) -> None:
    """The plan was made before another run reserved the last of the budget. Red when only the plan is looked at."""
    ledger.set_budget("posts", 10.0, 1e-4)
    plan = make_plan(spec)
    with spending.entered(plan, a_folder(tmp_path / "elsewhere"), False, Listening()):
        pass
    with pytest.raises(BudgetError, match=r"What would fit: privacy\.epsilon"):
        running.run(plan, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/*"))
    assert statuses(ledger.account("posts")) == ["reserved"]


def test_a_ledger_that_does_not_answer(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.db").write_text("no database" * 100)
    for verb in (["plan", spec], ["run", spec, "--yes"], ["run", spec, "--yes", "privacy.ledger=postgresql://h:1/x"]):
        assert main.run_app([*verb]) == 4
        err = capsys.readouterr().err
        assert err.startswith("uudp: the ledger ")
        assert err.count("\n") == 1


# --- with a model -------------------------------------------------------------------------------------------


def test_bad_data_costs_nothing(place: Workplace) -> None:
    with place.posts.open("a") as file:
        file.write("not json\n")
    with pytest.raises(ArgumentError):
        running.run(make_plan(str(place.spec), ["data.on_bad_record=stop"]), out=place.out)
    assert statuses(Ledger(place.ledger).account("made")) == ["refunded"]


def test_touched_before_a_model_reads(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserved before the data are read, touched before workers start. Red when either comes later."""
    ledger, seen = Ledger(place.ledger), []
    build = flow.build_corpus

    def building(*arguments: Any, **more: Any) -> Any:
        seen.append(statuses(ledger.account("made")))
        return build(*arguments, **more)

    def fit(*_: Any) -> None:
        seen.append(statuses(ledger.account("made")))
        raise MachineError("no resources")

    monkeypatch.setattr(flow, "build_corpus", building)
    monkeypatch.setattr(ray, "fit", fit)
    with pytest.raises(MachineError):
        running.run(make_plan(str(place.spec)), out=place.out)
    assert seen == [["reserved"], ["touched"]]
    (account,) = ledger.accounts()
    assert statuses(account) == ["touched"]  # and stays charged
    privacy = read_json(place.run_folder() / "privacy.json")
    receipt = account.runs[0].reservation.receipt
    assert (privacy["ledger"]["sequence"], privacy["ledger"]["hash"]) == (receipt.sequence, receipt.hash)
    assert "The ledger counted no other when this run began." in " ".join(privacy["not_covered"])


LOOKING = """\
import sys
from harness.cli import main
from harness.running import spending

spending.LOOK_SECONDS = spending.RETRY_SECONDS = 0.3
main.main()
"""
"""The command, but looking at the ledger more often, so that a short run is long enough."""


def _lasting(folder: Path, url: str | None = None) -> Workplace:
    """A run of some seconds."""
    place = Workplace(folder, train={"steps": STEPS, "checkpoint_every": 5})
    if url is not None:
        place.spec.write_text(place.spec.read_text().replace(place.ledger, url))
        place.ledger = url
    return place


def _start(place: Workplace, *arguments: str) -> Process:
    whole = ["run", str(place.spec), *arguments, "--yes", "--out", str(place.out)]
    return place._start([sys.executable, "-c", LOOKING, *whole], None)


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "database",
    [pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("postgresql", marks=pytest.mark.postgres)],
)
def test_the_database_is_lost_while_training(database: str, tmp_path: Path) -> None:
    """The run stops with a checkpoint and 4; once the ledger is back it goes on, and is charged once.

    Red when nobody looks at the ledger while training goes on, or a resumed run reserves again.
    """
    from tests.privacy.ledger.databases import Server

    server = Server() if database == "postgresql" else None
    place = _lasting(tmp_path / "place", server.new_database() if server else None)
    file, away = place.folder / "ledger.db", place.folder / "away.db"
    try:
        Ledger(place.ledger).set_budget("made", 9.0, 1e-4)
        process = _start(place)
        process.until(lambda: released_step(place) >= 5, "a step was released")
        server.stop() if server else os.rename(file, away)
        assert process.wait() == 4, process.err
        folder = place.run_folder()
        assert "stopping after this step, with a checkpoint" in process.err
        said, how = process.err.splitlines()[-2:]
        assert said.endswith(f"; stopped with a checkpoint ({folder})")
        assert f"--resume --run {folder.name}" in how
        assert "Traceback" not in process.err
        assert read_json(folder / "privacy.json")["status"] == "interrupted"
        assert released_step(place) < STEPS
        refused = _start(place, "--resume")
        assert refused.wait() == 4, refused.err
        server.start() if server else os.rename(away, file)
        resumed = _start(place, "--resume")
        assert resumed.wait() == 0, resumed.err
        assert place.runs() == [folder]
        account = Ledger(place.ledger).account("made")
        assert statuses(account) == ["finished"]
        assert account.runs[0].reservation.epsilon == repr(read_json(folder / "privacy.json")["epsilon"])
        assert Ledger(place.ledger).verify()[1] == []
    finally:
        place.clean()
        if server:
            server.remove()
