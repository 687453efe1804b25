"""Ctrl-C and SIGTERM before and during training, sent to a real process. See also `tests/test_running.py`."""

from __future__ import annotations

import os
import signal
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.run import resume_command
from harness.privacy.ledger import Ledger
from tests.launching import Process, Workplace, read_json, released_step

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]

SLOW = '''\
import time
from pathlib import Path

from harness.data.sources.jsonl import Jsonl


def wait(what):
    Path(__file__).with_name(what).touch()
    time.sleep(600)


class SlowPlan(Jsonl):
    """Stays where users are counted."""

    def located(self, base_dir):
        return type(self)(super().located(base_dir).parameters)

    def public(self, columns):
        wait("planning")
        yield from ()


class SlowData(SlowPlan):
    """Stays where texts are read."""

    def public(self, columns):
        yield from Jsonl.public(self, columns)

    def records(self, columns):
        for number, record in enumerate(Jsonl.records(self, columns)):
            yield record
            if number == 5:
                wait("building")
'''


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    found = Workplace(tmp_path / "place", train={"steps": 40, "checkpoint_every": 2})
    (found.folder / "slow_sources.py").write_text(SLOW)
    yield found
    found.clean()


def stop(process: Process, how: signal.Signals) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the command alone."""
    if how == signal.SIGINT:
        process.interrupt()
    else:
        os.kill(process.popen.pid, how)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("source", "stage"), [("SlowPlan", "planning"), ("SlowData", "building")])
def test_before_training_nothing_is_left(place: Workplace, source: str, stage: str, how: signal.Signals) -> None:
    """130, one line, no run's folder, no half of a corpus. Breaks: leave SIGTERM to the system; keep the folder."""
    process = place.start_run(f"data.source={{type: 'slow_sources:{source}', path: {place.posts}}}")
    process.until((place.folder / stage).exists, f"it was {stage}")
    stop(process, how)
    assert process.wait() == 130
    assert "Traceback" not in process.err
    assert place.runs() == []
    assert not any(run.counts for run in Ledger(place.ledger).account("made").runs)  # nothing was spent
    corpora = place.folder / "cache" / "corpora"
    assert not corpora.exists() or [p for p in corpora.iterdir() if p.is_dir()] == []
    last = process.err.splitlines()[-1]
    assert last in ("uudp: interrupted", "uudp: stopped before training; nothing was spent, and nothing is left")
    assert "--resume" not in last  # there is nothing to go on with


def test_sigterm_in_training_leaves_a_checkpoint(place: Workplace) -> None:
    """Break: let Ray keep its own handler of SIGTERM, which ends the workers at once."""
    process = place.start_run("train.steps=12")
    process.until(lambda: released_step(place) >= 2, "step 2 was released")
    stop(process, signal.SIGTERM)
    assert process.wait() == 130
    folder = place.run_folder()
    assert read_json(folder / "privacy.json")["status"] == "interrupted"
    taken = read_json(folder / "private" / "progress.json")["step"]
    assert (folder / "private" / "checkpoints" / "private" / f"step-{taken:08d}").exists()
    said, how = process.err.splitlines()[-2:]
    assert said == f"uudp: stopped with a checkpoint ({folder})"
    assert how.startswith(f"uudp: go on with: uudp run {place.spec} train.steps=12 --resume --run {folder.name} --yes ")


def test_an_interrupted_conversion_leaves_no_half_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: leave the partial folder to the next conversion."""
    import transformers

    from harness.training import model

    class Converted:
        hf_quantizer = None
        config = types.SimpleNamespace(quantization_config={})

        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: Converted())
    with pytest.raises(KeyboardInterrupt):
        model._from_package("json", "tiny.gguf", tmp_path)
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["tiny.lock"]


def test_the_resume_command_repeats_what_was_asked() -> None:
    overrides = ["name=a b", "train.steps=3"]
    assert resume_command("my spec.yaml", overrides, "20260101-000000-abc", True, True, Path("else where")) == (
        "uudp run 'my spec.yaml' 'name=a b' train.steps=3 --resume --run 20260101-000000-abc "
        "--yes --not-private --out 'else where'"
    )
    plain = resume_command("s.yaml", [], "20260101-000000-abc", False, False, Path("runs"))
    assert plain == "uudp run s.yaml --resume --run 20260101-000000-abc"
