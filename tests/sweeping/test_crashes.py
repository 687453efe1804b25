"""A trial whose training always crashes is a failed one; a machine on which nothing goes fails no trial."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from harness.errors import MachineError
from harness.running import Observer
from harness.running.folders import FINISHED, INTERRUPTED, status_of
from harness.sweeping import flow, worker
from harness.sweeping.costing import plan_sweep
from harness.sweeping.trials import trial_folder
from harness.sweeping.tune import OUTAGE, Places
from harness.training import loop, process
from harness.training.job import Failure, Folder
from tests.launching import Workplace, read_json
from tests.sweeping.trained import key_of, ledger_rows, released_files, scored, train_with

NUMBER = 4
BAD = 2
"""The trial that crashes. Trial 1 is the best of the others."""


class Heard(Observer):
    """All that a console is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def _candidates(run: Path) -> list[dict[str, Any]]:
    return [one["candidate"] for one in read_json(run / "private" / "trials.json")["trials"]]


def _swept(place: Workplace, heard: Observer, resume: bool) -> Any:
    return flow.sweep(plan_sweep(place.spec), out=place.out, resume=resume, observer=heard, _key=key_of(NUMBER))


def _undisturbed(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], bytes]:
    """The candidates of the same key, and what was released of a sweep in which nothing crashed."""
    with monkeypatch.context() as patch:
        train_with(patch, scored)
        run = flow.sweep(plan_sweep(place.spec), out=place.folder / "other", _key=key_of(NUMBER)).folder
    return _candidates(run), released_files(run)["adapter/adapter_model.safetensors"]


def _died(folder: Folder, place: int) -> Any:
    return "crashed" if place == BAD else scored(folder, place)


def _stuck(folder: Folder, place: int) -> Any:
    """Out of memory with one example at a time: the worker gives up, and says so."""
    if place != BAD:
        return scored(folder, place)
    Failure("out of memory with one example at a time", 4, stuck=True).save(folder.root)
    return "ended"


@pytest.mark.parametrize("crash", [_died, _stuck])
def test_what_always_crashes_is_a_failed_trial(crash: Any, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two invocations, in the second of which it had the machine to itself; the rest is as without it.

    Break: `MOST_CRASHES` 1; 3; `_search` without the part for crashed ones; the candidate drawn again.
    """
    candidates, adapter = _undisturbed(place, monkeypatch)
    searches, heard = train_with(monkeypatch, crash), Heard()
    with pytest.raises(MachineError, match="the search has not come to its end") as caught:
        _swept(place, heard, resume=False)
    folder = Folder(place.run_folder())
    assert caught.value.run_id == folder.root.name
    assert status_of(folder) == INTERRUPTED
    _swept(place, heard, resume=True)
    assert searches == [[0, 1, 2, 3], [-1, BAD]]
    outcomes = read_json(folder.private / "trials.json")["trials"]
    assert [one["status"] for one in outcomes] == ["finished", "finished", "failed", "finished"]
    assert _candidates(folder.root) == candidates
    assert released_files(folder.root)["adapter/adapter_model.safetensors"] == adapter
    assert ledger_rows(place)[-1] == (folder.root.name, "finished", 8.0)
    # Nobody who sees the console or the files learns which trial it was, how many there were, or that one crashed.
    text = "\n".join([*heard.lines, str(caught.value), *map(str, released_files(folder.root).values())])
    for told in (
        "trial 3",
        "crash",
        "some trial",
        f"{NUMBER} trials",
        "failed",
        repr(candidates[BAD]["clipping.norm"]),
    ):
        assert told not in text.replace(str(place.folder.parent), "")


def test_a_crash_that_goes_away_is_none(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it is trained to its end. Break: `MOST_CRASHES` 1."""
    _, adapter = _undisturbed(place, monkeypatch)
    times: list[int] = []

    def once(folder: Folder, place: int) -> Any:
        times.extend([place] * (place == 1))
        return "crashed" if place == 1 and len(times) == 1 else scored(folder, place)

    searches = train_with(monkeypatch, once)
    with pytest.raises(MachineError):
        _swept(place, Observer(), resume=False)
    result = _swept(place, Observer(), resume=True)
    assert searches == [[0, 1, 2, 3], [-1, 1]]
    assert released_files(result.folder)["adapter/adapter_model.safetensors"] == adapter


@pytest.mark.parametrize("trouble", ["outage", "raised", "asked"])
def test_what_is_wrong_with_the_machine_fails_no_trial(
    trouble: str, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, a lost Ray, a stop, however often: the sweep stays unfinished, and is finished afterwards.

    Break: `_note_crashes` without its look at outages; notes before the stop is looked at.
    """

    def troubled(folder: Folder, place: int) -> Any:
        if place == BAD and trouble == "asked":
            Folder(folder.root.parents[2]).stop.touch()
        if place == BAD and trouble == "raised":
            raise MachineError("Ray's own processes have ended; go on later with --resume")
        return scored(folder, place) if place < BAD else trouble if trouble == "outage" else "crashed"

    train_with(monkeypatch, troubled)
    for time in range(4):
        with pytest.raises(Exception, match=r"come to its end|have ended|stopped with checkpoints"):
            _swept(place, Observer(), resume=time > 0)
    folder = Folder(place.run_folder())
    searches = train_with(monkeypatch, scored)
    _swept(place, Observer(), resume=True)
    assert searches == [[BAD, 3]]
    assert status_of(folder) == FINISHED
    assert {one["status"] for one in read_json(folder.private / "trials.json")["trials"]} == {"finished"}


def test_of_public_data_it_is_said(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: nothing is said of public data either."""
    place.spec.write_text(
        place.spec.read_text().replace("  name: made\n  source", "  name: made\n  visibility: public\n  source")
    )
    train_with(monkeypatch, _died)
    heard = Heard()
    for resume in (False, True):
        if resume:
            _swept(place, heard, resume=True)
        else:
            with pytest.raises(MachineError):
                _swept(place, heard, resume=False)
    assert any("trial 3: failed" in line and "crashes whenever it is tried" in line for line in heard.lines)


# --- what a worker tells ----------------------------------------------------------------------------------------


def _told(folder: Path, monkeypatch: pytest.MonkeyPatch, body: Any) -> list[dict[str, Any]]:
    """What Tune is told of a trial whose training is `body`."""
    from ray import tune

    said: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", lambda row: said.append(dict(row)))
    monkeypatch.setattr(process, "prepare_process", lambda *_, **__: None)
    monkeypatch.setattr(loop, "train", lambda *_: body())
    sweep = Folder(folder)
    where = {"trial": str(trial_folder(sweep, 0).root), "stop": str(sweep.stop)}
    worker.trial({**where, "threads": 1, "room": 1.0, "tells": False, "metric": "", "mode": "min"})
    return said


def _raising(error: BaseException) -> Any:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "outage"),
    [
        (lambda: None, False),
        (lambda: Failure("the loss is not finite", 1), False),
        (lambda: Failure("out of memory with one example at a time", 4, stuck=True), False),
        (lambda: Failure("the disk is full", 4), True),
        (_raising(OSError(errno.ENOSPC, "full")), True),
    ],
)
def test_an_outage_is_told_from_a_crash(
    body: Any, outage: bool, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: `of_the_machine` whatever is stuck; a full disk as any other exception."""
    folder = _prepared(place, monkeypatch)
    (said,) = _told(folder, monkeypatch, body)
    assert bool(said.get(OUTAGE)) == outage
    assert (said["done_"] == 1) != outage


def test_a_folder_that_is_not_there_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that don't see the driver's storage. Break: `check_prepared` as a crash."""
    (said,) = _told(tmp_path, monkeypatch, lambda: None)
    assert said[OUTAGE] == 1


def test_a_crash_is_raised_without_its_words(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: the exception as it is."""
    folder = _prepared(place, monkeypatch)
    with pytest.raises(RuntimeError, match=r"^ValueError in a trial; details are in its private folder$"):
        _told(folder, monkeypatch, _raising(ValueError("what somebody wrote")))


def _prepared(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep with one trial that is ready to be trained."""

    def stop(folder: Folder, place: int) -> Any:
        raise MachineError("enough")

    with monkeypatch.context() as patch:
        train_with(patch, stop)
        with pytest.raises(MachineError, match="enough"):
            _swept(place, Observer(), resume=False)
    return place.run_folder()


def test_tune_passes_on_how_a_trial_ended() -> None:
    """Break: an error as the search's own stop."""
    ends: list[Any] = []

    class Source:
        left = 5

        def next(self) -> Any:
            self.left -= 1
            return self.left, None

        def told(self, place: int, score: float | None) -> None: ...

    told = {"tells": False, "mode": "min"}

    def where(place: int) -> Folder:
        return Folder(Path(f"/nowhere/{place}"))

    places: Places[None] = Places(
        Source(), lambda *_: True, lambda place, how: ends.append((place, how)), told, where, Path("/nowhere")
    )
    results: list[tuple[Any, bool]] = [
        ({"done_": 1}, False),
        ({"done_": 0}, False),
        ({"done_": 0, OUTAGE: 1}, False),
        ({"done_": 0}, True),
        (None, True),
    ]
    for number, (result, error) in enumerate(results):
        places.suggest(str(number))
        places.on_trial_complete(str(number), result, error)
    assert ends == [(4, "ended"), (3, "stopped"), (2, "outage"), (1, "crashed"), (0, "crashed")]
