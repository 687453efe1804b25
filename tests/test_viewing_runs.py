"""Runs whose plugins use the base model: what is charged when, what an interrupt leaves, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import running
from harness.data.corpus import Corpus
from harness.data.views import KeptViews
from harness.errors import Interrupted, MachineError
from harness.planning import make_plan
from harness.privacy.ledger import Ledger
from harness.running import answers, spending
from harness.running import viewing as run_viewing
from harness.training import model, ray, viewing
from harness.training.job import Folder
from harness.training.viewing import Viewer
from tests.launching import CANARY, PERSON, Workplace, read_json, secret_posts

EXPOSURE = {
    "scores": [{"type": "exposure", "measure": "loss", "low": 4.25, "high": 6.25}],
    "tiers": {"edges": [0.5], "names": ["low", "high"]},
}


def work(folder: Path, **data: Any) -> Workplace:
    return Workplace(
        folder,
        secret_posts(),
        name="seen",
        data={"population": 60, "weights": {"low": 0.5, "high": 0.5}, "attributes": [], "max_tokens": 32} | data,
        blocks={"segmentation": {"type": "none"}, "sensitivity": EXPOSURE},
        noise={"type": "scale", "epsilon": {"low": 8, "high": 6}},
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """Private text with tiers by the base model's view; nothing is trained."""
    made = work(tmp_path / "place")
    stop_before_training(made, monkeypatch)
    yield made
    made.clean()


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """The same where a session asks for the tiers' sizes, so that a run begins before users are seen."""
    made = work(tmp_path / "place", weights="noisy")
    stop_before_training(made, monkeypatch)
    yield made
    made.clean()


def stop_before_training(made: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("here training would begin")

    monkeypatch.setenv("UUDP_CACHE", made.environment["UUDP_CACHE"])
    monkeypatch.setattr(ray, "fit", refuse)


class Listening(running.Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def begin(made: Workplace, *, resume: bool = False) -> Listening:
    """Runs it up to where training would begin."""
    listening = Listening()
    with pytest.raises(MachineError, match="here training would begin"):
        running.run(make_plan(str(made.spec)), out=made.out, resume=resume, observer=listening)
    return listening


def charged(made: Workplace) -> str:
    (run,) = Ledger(made.ledger).accounts()[0].runs
    return run.status


def failing(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """The model fails on the user after so many."""
    whole, seen = Viewer.view, []

    def view(self: Viewer, corpus: Any, user: int) -> Any:
        seen.append(user)
        if len(seen) > after:
            raise error
        return whole(self, corpus, user)

    monkeypatch.setattr(Viewer, "view", view)


def noting(whole: Any, name: str, order: list[str]) -> Any:
    """A method that notes that it was called."""

    def noted(self: Any, *given: Any) -> Any:
        order.append(name)
        return whole(self, *given)

    return noted


def test_a_plan_loads_no_model(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: compute views where the plan is made."""

    def trap(*_: object, **__: object) -> None:
        raise AssertionError("a plan looked for the model")

    for module, name in ((viewing, "load_base"), (model, "load_base"), (model, "find_base"), (Viewer, "__init__")):
        monkeypatch.setattr(module, name, trap)
    plan = make_plan(str(place.spec))
    said = "The base model looks at users, one at a time, before groups are known; the run is charged before."
    assert said in plan.notes()


def test_users_are_seen_once_after_the_charge(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups follow from the kept views. Break: touch after the look, or before the model is there."""
    order: list[str] = []
    for cls, name in ((Viewer, "__init__"), (spending.Spending, "touch"), (Viewer, "view")):
        monkeypatch.setattr(cls, name, noting(getattr(cls, name), name, order))
    listening = begin(place)
    assert list(dict.fromkeys(order)) == ["__init__", "touch", "view"]
    folder = Folder(place.run_folder())
    corpus = Corpus.load(Path(read_json(folder.private / "job.json")["corpus"]))
    assert order.count("view") == corpus.n_users
    views, groups = KeptViews(folder.views), np.load(folder.members)
    losses = [float(np.mean(views(user).losses)) for user in range(corpus.n_users)]
    assert groups.tolist() == [int(loss >= 5.25) for loss in losses]
    assert set(groups.tolist()) == {0, 1}
    assert charged(place) == "touched"
    assert not any("%" in note for note in listening.notes)  # how many users there are is not public


def test_nothing_of_it_is_released(place: Workplace) -> None:
    """Texts, names, losses. Break: note a loss, or write the views beside the plan."""
    listening = begin(place)
    folder = Folder(place.run_folder())
    views = KeptViews(folder.views)
    figures = {f"{value:.4f}" for user in range(60) for value in (*views(user).losses, views(user).gradient_norm)}
    released = [p for p in folder.root.rglob("*") if p.is_file() and folder.private not in p.parents]
    assert {p.name for p in released} >= {"plan.json", "privacy.json", "spec.yaml"}
    shown = "\n".join([*listening.notes, *(p.read_text() for p in released)])
    assert [word for word in (CANARY, PERSON, *figures) if word in shown] == []
    assert folder.views.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.views.iterdir()} == {0o600}


def test_an_interrupt_leaves_nothing_but_the_charge(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: say that nothing was spent, or give it back."""
    failing(monkeypatch, 3, KeyboardInterrupt())
    said = "^stopped before training; what the base model may have read stays charged, and nothing is left$"
    with pytest.raises(Interrupted, match=said):
        running.run(make_plan(str(place.spec)), out=place.out)
    assert place.runs() == []
    assert charged(place) == "touched"


def test_a_failure_says_nothing_of_a_user(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: let the library's error through."""
    failing(monkeypatch, 3, RuntimeError(f"index of {CANARY} out of range"))
    with pytest.raises(MachineError) as caught:
        running.run(make_plan(str(place.spec)), out=place.out)
    assert str(caught.value) == "the base model can't be run on users' records here; see private/plugin-errors.log"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert CANARY in (place.run_folder() / "private" / "plugin-errors.log").read_text()
    assert not (place.run_folder() / "private" / "views").exists()
    assert charged(place) == "touched"


def test_a_resumed_run_keeps_its_views(noisy: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while users are seen: begun afresh. After that: never again. Break: look again on resume."""
    with monkeypatch.context() as patched:
        failing(patched, 3, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            running.run(make_plan(str(noisy.spec)), out=noisy.out)
    folder = Folder(noisy.run_folder())
    assert not folder.views.exists()
    assert charged(noisy) == "touched"
    with monkeypatch.context() as patched:
        patched.setattr(answers, "combined_scores", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(Interrupted):
            running.run(make_plan(str(noisy.spec)), out=noisy.out, resume=True)
    assert folder.views.exists()
    assert not folder.members.exists()
    before = {p.name: p.read_bytes() for p in folder.views.iterdir()}
    failing(monkeypatch, 0, AssertionError("seen again"))
    begin(noisy, resume=True)
    assert {p.name: p.read_bytes() for p in folder.views.iterdir()} == before
    assert folder.members.exists()


def test_how_far_it_is_is_told_where_users_are_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: tell it of all."""
    made = work(tmp_path / "place", population="public")
    stop_before_training(made, monkeypatch)
    monkeypatch.setattr(run_viewing, "_USERS", 7)
    listening = begin(made)
    figures = [note.strip() for note in listening.notes if "%" in note]
    assert figures == [f"{10 * tenth} % of users" for tenth in range(1, 10)]
    made.clean()


def test_a_run_without_such_plugins_looks_at_nobody(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 0, AssertionError("seen"))
    score = json.dumps([{"type": "volume"}])
    with pytest.raises(MachineError, match="here training would begin"):
        running.run(make_plan(str(place.spec), [f"sensitivity.scores={score}"]), out=place.out)
    assert not Folder(place.run_folder()).views.exists()
