"""A sweep that is killed between any two lines of its end, edited on the way, or asked again when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.data import canaries
from harness.errors import ArgumentError, MachineError, UserError
from harness.privacy.search import Trials
from harness.running import flow as run_flow
from harness.running.folders import FAILED, FINISHED, status_of
from harness.sweeping import flow, trials
from harness.sweeping.costing import SweepPlan, plan_sweep
from harness.training.job import Failure, Folder, Job
from tests.launching import Workplace, read_json
from tests.sweeping.trained import (
    Kept,
    key_of,
    kills,
    ledger_rows,
    made_place,
    quick,
    released_files,
    scored,
    train_with,
)

NUMBER = 3


class Stopped(BaseException):
    """As a kill, for what is killed right before the end."""


def _searched(place: Workplace, monkeypatch: pytest.MonkeyPatch, plan: SweepPlan, number: int = NUMBER) -> Folder:
    """A sweep whose last trial has ended, and of which nothing is released."""
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise Stopped

        patch.setattr(flow, "_release", stop)
        with pytest.raises(Stopped):
            flow.sweep(plan, out=place.out, _key=key_of(number))
    return Folder(place.run_folder())


def test_killed_between_any_two_lines_of_the_release(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then resumed: the same released files, one row in the ledger, no key and no trial's folder left.

    Break: `clean` before `promote`; `set_status(plan, folder, TRAINED)` before `write_plan`.
    """
    searches = train_with(monkeypatch, scored)
    plan = plan_sweep(place.spec)
    folder = _searched(place, monkeypatch, plan)
    kept = Kept(place, tmp_path / "kept")

    def release() -> None:
        flow.sweep(plan, out=place.out, resume=True)

    release()
    undisturbed = released_files(folder.root)
    assert {"adapter/adapter_model.safetensors", "privacy.json", "sweep.json", "spec.yaml"} <= set(undisturbed)
    assert undisturbed["adapter/adapter_model.safetensors"] == b"weights of 000001"
    outcomes = read_json(folder.private / "trials.json")
    tried = 0
    for _ in kills((flow._release.__code__, trials.promote.__code__, trials.clean.__code__), kept.put_back, release):
        tried += 1
        if status_of(folder) != FINISHED:
            release()
        assert released_files(folder.root) == undisturbed
        assert read_json(folder.private / "trials.json") == outcomes
        assert ledger_rows(place) == [(folder.root.name, "finished", 8.0)]
        assert not list(folder.root.rglob("key"))
        assert not (folder.private / "sweep").exists()
    assert tried > 20
    assert searches == [[0, 1, 2]]


def test_the_winner_is_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its trial's folder is gone, all that attacks and prompts need is the sweep's: whatever the search cost.

    Break: `promote` without the trial's job.
    """
    found = made_place(tmp_path / "place", audit={"extraction": {"secrets": 4}})
    monkeypatch.setenv("UUDP_CACHE", found.environment["UUDP_CACHE"])
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    train_with(monkeypatch, scored)
    audited: list[Job] = []

    def examine(plan: Any, folder: Folder, observer: Any) -> None:
        assert not list(folder.private.glob("sweep/*"))
        assert len(canaries.load(folder.canaries)) == 4
        audited.append(Job.load(folder.root))

    monkeypatch.setattr(run_flow, "examine", examine)
    flow.sweep(plan_sweep(found.spec), out=found.out, _key=key_of(NUMBER))
    (job,) = audited
    assert job.mechanism.to_dict() == read_json(found.run_folder() / "privacy.json")["mechanism"]
    assert sum(group.canaries for group in job.mechanism.groups) == 4
    found.clean()


def test_killed_where_nothing_is_released(place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every trial failed: killed on the way, resumed, it says so in the end and stays charged.

    Break: `set_status(…, FAILED)` first.
    """

    def failing(folder: Folder, place: int) -> None:
        Failure("the loss on hold-out users is not finite", 1).save(folder.root)

    searches = train_with(monkeypatch, failing)
    plan = plan_sweep(place.spec)
    folder = _searched(place, monkeypatch, plan)
    kept = Kept(place, tmp_path / "kept")

    def release() -> None:
        with pytest.raises(UserError, match="nothing is released"):
            flow.sweep(plan, out=place.out, resume=True)

    tried = 0
    for _ in kills((flow._release.__code__, trials.clean.__code__), kept.put_back, release):
        tried += 1
        if status_of(folder) != FAILED:
            release()
        assert status_of(folder) == FAILED
        assert ledger_rows(place) == [(folder.root.name, "finished", 8.0)]
        assert not list(folder.root.rglob("key"))
        assert not (folder.private / "sweep").exists()
        assert "adapter" not in {path.name for path in folder.root.iterdir()}
    assert tried > 8
    assert searches == [[0, 1, 2]]


def test_the_end_of_a_run_is_killed_too(place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`finish`, which a sweep shares with runs. Break: `set_status(…, FINISHED)` before the model's card."""
    train_with(monkeypatch, scored)
    plan = plan_sweep(place.spec)
    folder = _searched(place, monkeypatch, plan)
    kept = Kept(place, tmp_path / "kept")

    def release() -> None:
        flow.sweep(plan, out=place.out, resume=True)

    release()
    undisturbed = released_files(folder.root)
    for _ in kills((run_flow.finish.__code__,), kept.put_back, release):
        if status_of(folder) != FINISHED:
            release()
        assert released_files(folder.root) == undisturbed
        assert ledger_rows(place) == [(folder.root.name, "finished", 8.0)]


# --- another spec ---------------------------------------------------------------------------------------------


def test_an_edited_spec_is_refused(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edited while it searches, or between the sweep and its resume; put right, it goes on.

    Break: `_check_unchanged` without its comparison; `_digest` without the sweep block.
    """
    searches = train_with(monkeypatch, scored)
    plan, text = plan_sweep(place.spec), place.spec.read_text()
    monkeypatch.undo()
    monkeypatch.setenv("UUDP_CACHE", place.environment["UUDP_CACHE"])

    def edit(what: Any, parts: Any, prepare: Any, ended: Any, tick: Any) -> None:
        found = parts[0].source.next()
        assert found is not None
        place.spec.write_text(text.replace("norm: 0.5", "norm: 0.6"))
        prepare(*found)

    monkeypatch.setattr(flow, "search", edit)
    with pytest.raises(MachineError, match="has changed since the sweep began; undo that") as caught:
        flow.sweep(plan, out=place.out, _key=key_of(NUMBER))
    assert caught.value.run_id == place.run_folder().name
    # What would be another claim, another space, another search.
    for old, new in (("epsilon: 8", "epsilon: 9"), ("- 2.0", "- 3.0"), ("mean: 3.0", "mean: 4.0")):
        assert old in text
        place.spec.write_text(text.replace(old, new))
        with pytest.raises(ArgumentError, match="it can't be resumed with this spec"):
            flow.sweep(plan_sweep(place.spec), out=place.out, resume=True)
    place.spec.write_text(text)
    searches = train_with(monkeypatch, scored)
    flow.sweep(plan_sweep(place.spec), out=place.out, resume=True)
    assert searches == [[0, 1, 2]]
    assert status_of(Folder(place.run_folder())) == FINISHED


# --- on public data -------------------------------------------------------------------------------------------


@pytest.fixture
def by_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    posts = tmp_path / "place" / "posts.jsonl"
    proxy = {"source": {"type": "jsonl", "path": str(posts)}}
    search = {"type": "random", "trials": {"law": "geometric", "mean": 3.0}}
    found = made_place(tmp_path / "place", search=search, proxy=proxy)
    monkeypatch.setenv("UUDP_CACHE", found.environment["UUDP_CACHE"])
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    yield found
    found.clean()


def test_a_search_on_public_data_is_asked_again(
    by_proxy: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed on its way out, and when it is over: it says the same again, and trains nothing.

    Break: `_found_before` without its look at the status; `set_status(…, FINISHED)` before the keys are destroyed.
    """
    searches = train_with(monkeypatch, scored)
    plan = plan_sweep(by_proxy.spec)

    def again(resume: bool = True) -> Any:
        return flow.search_by_proxy(plan, out=by_proxy.out, resume=resume)

    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise Stopped

        patch.setattr(trials, "clean", stop)
        with pytest.raises(Stopped):
            again(resume=False)
    (run,) = (by_proxy.out / "made-proxy").iterdir()
    folder = Folder(run)
    by_proxy.folder.joinpath("ledger.db").touch()
    kept = Kept(by_proxy, tmp_path / "kept")
    first = again()
    assert again() == first
    tried = 0
    for _ in kills((flow.search_by_proxy.__code__, trials.clean.__code__), kept.put_back, again):
        tried += 1
        assert again() == first
        assert status_of(folder) == FINISHED
        assert not list(folder.root.rglob("key"))
    assert tried > 8
    assert len(searches) == 1
    _claims_nothing(run)
    # Another search is not taken for this one.
    by_proxy.spec.write_text(by_proxy.spec.read_text().replace("mean: 3.0", "mean: 4.0"))
    with pytest.raises(ArgumentError, match="searched something else"):
        flow.search_by_proxy(plan_sweep(by_proxy.spec), out=by_proxy.out, resume=True)


def _claims_nothing(run: Path) -> None:
    """Break: the guarantee of one trial, which `plan_sweep` has at hand."""
    stated, planned = read_json(run / "privacy.json"), read_json(run / "plan.json")
    assert (stated["private"], stated["public_trials"], stated["epsilon"], stated["delta"]) == (False, True, None, None)
    assert {group["epsilon"] for group in stated["groups"]} == {None}
    assert stated["statement"].startswith("NOTHING IS CLAIMED. Several trials")
    assert "satisfied" not in stated["statement"]
    assert (planned["epsilon"], planned["epsilon_by_step"]) == (None, [])


def test_a_search_of_no_trial_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisson's law gives none as well. Break: K drawn again until there is one."""
    law = Trials("poisson", 1.0)
    found = made_place(tmp_path / "place", law)
    monkeypatch.setenv("UUDP_CACHE", found.environment["UUDP_CACHE"])
    monkeypatch.chdir(tmp_path)
    searches = train_with(monkeypatch, scored)
    with pytest.raises(UserError, match="nothing is released"):
        flow.sweep(plan_sweep(found.spec), out=found.out, _key=key_of(0, law))
    assert searches == [[]]
    assert status_of(Folder(found.run_folder())) == FAILED
    found.clean()
