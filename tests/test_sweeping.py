"""Whole sweeps through the command line: one budget, one ledger row, one release, whatever is killed on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.privacy.ledger import Ledger
from harness.privacy.randomness import Randomness
from harness.privacy.search import Trials, curve_of
from harness.sweeping.laws import draw_number
from tests.launching import Process, Workplace, adapter, read_json
from tests.launching import rows as released

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TRIALS = Trials("geometric", 5.0)
SPACE = {
    "clipping.norm": {"loguniform": [0.1, 2.0]},
    "train.optimizer.lr": {"loguniform": [1e-3, 5e-2]},
    "train.steps": {"choice": [4, 6]},
    "noise.type": {"choice": ["scale", "sample"]},
}


def _key(number: int) -> bytes:
    """A key with which so many trials are drawn."""
    for n in itertools.count():
        key = hashlib.sha256(b"sweep %d" % n).digest()
        if draw_number(TRIALS, Randomness(key)) == number:
            return key
    raise AssertionError


NUMBER = 6
KEY = _key(NUMBER)


def _place(folder: Path, **changes: Any) -> Workplace:
    search = {"type": "random", "trials": {"law": TRIALS.law, "mean": TRIALS.mean}}
    noise = {"type": "scale", "epsilon": {"free": 8, "paid": 4}}
    space = {**SPACE, "noise.epsilon": {"choice": [noise["epsilon"]]}}
    return Workplace(
        folder,
        name="swept",
        noise=noise,
        train={"steps": 6, "checkpoint_every": 2},
        compute={"retries": 2},
        blocks={"sweep": {"space": space, "search": search, **changes}},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workplace, Process]]:
    place = _place(tmp_path_factory.mktemp("undisturbed"))
    process = place.start_with_key(KEY, verb="sweep")
    assert process.wait() == 0, process.err
    yield place, process
    place.clean()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    found = _place(tmp_path / "place")
    yield found
    found.clean()


def _trials(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(run / "private" / "trials.json")["trials"]
    return found


def _released_text(run: Path) -> str:
    """Everything that whoever gets the run's folder without its private part can read."""
    files = [p for p in run.rglob("*") if p.is_file() and "private" not in p.relative_to(run).parts]
    return "\n".join(p.read_text(errors="replace") for p in files)


def test_the_best_trial_is_released_and_nothing_else(undisturbed: tuple[Workplace, Process]) -> None:
    """Of a private search: no other candidate, and not how many there were, in any released file or on the console.

    Red when `released_document` shows all trials, or the console tells how far the search is.
    """
    place, process = undisturbed
    run = place.run_folder()
    trials = _trials(run)
    assert [one["place"] for one in trials] == list(range(NUMBER))
    finished = [one for one in trials if one["status"] == "finished"]
    best = min(finished, key=lambda one: (one["score"], one["place"]))
    document = read_json(run / "sweep.json")
    assert document["winner"] == {"candidate": best["candidate"], "score": best["score"]}
    assert document["shown"] is None
    last = max(released(run), key=lambda row: int(row["step"]))
    assert last["eval/loss"] == best["score"]
    text = _released_text(run) + process.out + process.err
    for one in trials:
        if one["place"] != best["place"]:
            assert repr(one["candidate"]["clipping.norm"]) not in text
            assert one["score"] is None or repr(one["score"]) not in text
    assert f"{NUMBER} trials" not in text
    assert all(value.any() for value in adapter(run).values())
    assert not list(run.rglob("key"))
    assert not (run / "private" / "sweep").exists()
    assert not list(place.ray.rglob("artifacts"))
    assert list(place.ray.rglob("logs"))  # Ray's own folder is where it was looked for


def test_the_whole_search_costs_the_budget(undisturbed: tuple[Workplace, Process]) -> None:
    """ε of the ledger's only row is that of privacy.json: the budget to 1 %, and never more.

    It is computed again from the reference curves in privacy.json, by dp-accounting alone. Red when a trial's own ε is
    stated, or the curves are those of one run without a search.
    """
    from dp_accounting.rdp import RdpAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import _compute_rdp_repeat_and_select, compute_epsilon

    run = undisturbed[0].run_folder()
    stated = read_json(run / "privacy.json")
    search = stated["search"]
    assert (search["law"], search["mean"]) == (TRIALS.law, TRIALS.mean)
    for group, curve in zip(stated["groups"], search["curves"], strict=True):
        values = [float("inf") if value is None else value for value in curve]
        composed = _compute_rdp_repeat_and_select(search["orders"], values, search["mean"], 1.0)
        epsilon, _ = compute_epsilon(search["orders"], composed, stated["delta"])
        assert 0.99 * group["epsilon"] <= epsilon <= group["epsilon"] * (1 + 1e-9)
    assert {g["name"]: g["epsilon"] for g in stated["groups"]} == {"free": 8.0, "paid": 4.0}
    assert stated["epsilon"] == 8.0
    assert "a whole search" in stated["statement"]
    (row,) = Ledger(undisturbed[0].ledger).accounts()[0].runs
    assert (row.status, float(row.reservation.epsilon)) == ("finished", 8.0)
    # Whoever won lies under its group's curve.
    from harness.privacy.mechanism import Mechanism
    from harness.spec import load_spec
    from harness.sweeping.costing import plan_sweep
    from harness.sweeping.space import Candidate

    sweep = plan_sweep(undisturbed[0].spec)
    winner = read_json(run / "sweep.json")["winner"]["candidate"]
    mechanism = sweep.plan_of(Candidate(tuple(winner.items()))).mechanism
    assert isinstance(mechanism, Mechanism)
    assert mechanism.digest == read_json(run / "plan.json")["mechanism_digest"]
    assert load_spec(run / "spec.yaml").spec.sweep is None
    for i, curve in enumerate(search["curves"]):
        # dp-accounting's own Rényi DP is far too high between whole orders, where much is sampled.
        own = curve_of(mechanism.event(i), tuple(search["orders"]))
        theirs = RdpAccountant(orders=search["orders"]).compose(mechanism.event(i)).rdp
        for order, a, b, limit in zip(search["orders"], own, theirs, curve, strict=True):
            assert limit is None or (b if order == int(order) else a) <= limit * (1 + 1e-9)


def _begun(place: Workplace, count: int) -> list[Path]:
    """Trials with a checkpoint."""
    return [p for run in place.runs() for p in run.glob("private/sweep/*/private/checkpoints/private/step-*")][:count]


def _same(one: Path, other: Path) -> None:
    a, b = adapter(one), adapter(other)
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
    assert [row for row in released(one)] == [row for row in released(other)]
    assert _trials(one) == _trials(other)


def test_a_killed_driver_changes_neither_result_nor_charge(
    undisturbed: tuple[Workplace, Process], place: Workplace
) -> None:
    """SIGKILL in the middle, then --resume: bitwise the same adapter, metrics and scores, and one row in the ledger.

    Nobody else can look into Tune's record of the trials meanwhile. Red when a trial's key is drawn anew, K is drawn
    again, or `_closed_artifacts` closes another folder than Tune's.
    """
    process = place.start_with_key(KEY, verb="sweep")
    process.until(lambda: _begun(place, 1), "a trial had a checkpoint")
    records = {path.resolve() for path in place.ray.rglob("artifacts")}
    assert [path.stat().st_mode & 0o777 for path in records] == [0o700]
    process.kill()
    process.clean()
    folder = place.run_folder()
    assert not (folder / "adapter").exists()
    assert read_json(folder / "privacy.json")["steps_completed"] == 0
    for change in ("train.checkpoint_every=3", "sweep.space.clipping.norm.loguniform=[0.2,2.0]"):
        other = place.start("sweep", str(place.spec), change, "--resume", "--yes", "--out", str(place.out))
        assert other.wait() == 2
        assert "it can't be resumed" in other.err
    # What changes speed alone may change.
    resumed = place.start(
        "sweep",
        str(place.spec),
        "compute.retries=1",
        "sweep.concurrent=1",
        "--resume",
        "--yes",
        "--out",
        str(place.out),
    )
    assert resumed.wait() == 0, resumed.err
    _same(place.run_folder(), undisturbed[0].run_folder())
    (row,) = Ledger(place.ledger).accounts()[0].runs
    assert (row.reservation.run, row.status) == (folder.name, "finished")


@pytest.mark.slow
def test_a_killed_trial_repeats_its_draws(undisturbed: tuple[Workplace, Process], place: Workplace) -> None:
    """SIGKILL to a process that trains: Tune starts the trial again, from its checkpoint. Red with `retries: 0`."""
    process = place.start_with_key(KEY, verb="sweep")
    process.until(lambda: _begun(place, 1), "a trial had a checkpoint")

    def trainer() -> psutil.Process | None:
        for child in process.descendants():
            try:
                if "ImplicitFunc" in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    process.until(trainer, "a trial's process was there").kill()
    assert process.wait() == 0, process.err
    _same(place.run_folder(), undisturbed[0].run_folder())


@pytest.mark.slow
def test_ctrl_c_leaves_a_sweep_to_go_on_with(undisturbed: tuple[Workplace, Process], place: Workplace) -> None:
    """130, with the command that goes on; nothing is released before, and the same afterwards."""
    process = place.start_with_key(KEY, verb="sweep")
    process.until(lambda: _begun(place, 1), "a trial had a checkpoint")
    process.interrupt()
    assert process.wait() == 130
    folder = place.run_folder()
    assert f"--resume --run {folder.name}" in process.err
    assert not (folder / "adapter").exists()
    assert not (folder / "sweep.json").exists()
    resumed = place.start("sweep", str(place.spec), "--resume", "--yes", "--out", str(place.out), "--json")
    assert resumed.wait() == 0, resumed.err
    assert json.loads(resumed.out)["run"] == str(folder)
    _same(folder, undisturbed[0].run_folder())


CRASHING = """\
import os, sys

if any("default_worker" in argument for argument in sys.orig_argv):
    import harness.training.loop

    whole = harness.training.loop.Series._step

    def dying(self, step):
        if step == 1 and "/sweep/000002" in str(self.folder.root):
            os._exit(7)
        return whole(self, step)

    harness.training.loop.Series._step = dying
"""
"""In Ray's workers alone: of the third trial, the process dies in the second step, however often it is tried."""


@pytest.mark.slow
def test_a_trial_that_always_dies_ends_as_a_failed_one(
    undisturbed: tuple[Workplace, Process], place: Workplace
) -> None:
    """In the second invocation, without a word of it; the others are as ever. Red with `MOST_CRASHES` beyond 2."""
    (place.folder / "sitecustomize.py").write_text(CRASHING)
    process = place.start_with_key(KEY, "compute.retries=1", verb="sweep")
    assert process.wait() == 4, process.err
    assert "the search has not come to its end" in process.err
    resumed = place.start("sweep", str(place.spec), "compute.retries=1", "--resume", "--yes", "--out", str(place.out))
    assert resumed.wait() == 0, resumed.err
    mine, theirs = _trials(place.run_folder()), _trials(undisturbed[0].run_folder())
    assert [one["status"] for one in mine] == [*["finished"] * 2, "failed", *["finished"] * (NUMBER - 3)]
    assert [one["candidate"] for one in mine] == [one["candidate"] for one in theirs]
    assert [one for one in mine if one["place"] != 2] == [one for one in theirs if one["place"] != 2]
    for text in (process.err, resumed.err, resumed.out, _released_text(place.run_folder())):
        assert "crash" not in text
        assert "trial 3" not in text
    (row,) = Ledger(place.ledger).accounts()[0].runs
    assert (float(row.reservation.epsilon), row.status) == (8.0, "finished")


def test_of_no_trials_nothing_is_released_and_all_is_charged(tmp_path: Path) -> None:
    """Poisson's law gives 0 as well. Red when K is drawn again until there is one."""
    law = Trials("poisson", 1.0)
    key = next(
        key
        for key in (hashlib.sha256(b"none %d" % n).digest() for n in itertools.count())
        if draw_number(law, Randomness(key)) == 0
    )
    place = _place(tmp_path / "place", search={"type": "random", "trials": {"law": "poisson", "mean": 1}})
    try:
        process = place.start_with_key(key, verb="sweep")
        assert process.wait() == 1
        assert "nothing is released; what the search cost stays charged" in process.err
        (row,) = Ledger(place.ledger).accounts()[0].runs
        assert float(row.reservation.epsilon) == 8.0
        assert row.status in ("touched", "finished")
        folder = place.run_folder()
        assert not (folder / "adapter").exists()
        assert not list(folder.rglob("key"))
    finally:
        place.clean()
