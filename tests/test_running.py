"""A run that is disturbed ends as if it had not been: kills, Ctrl-C, resumes; nothing is released twice.

All runs here do the same as the undisturbed `secret_run`, with the same key, in a process of their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from harness import running
from harness.cli import main
from harness.errors import ArgumentError, MachineError
from harness.files import is_locked
from harness.planning import make_plan
from harness.privacy.ledger import Ledger
from harness.running import folders, interrupting
from harness.training import ray
from harness.training.job import Folder
from tests import launching
from tests.launching import KEY, Run, Workplace, adapter, read_json, released_step, rows
from tests.s3 import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]
STEPS = 16


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    workplace = launching.secret_run(tmp_path / "place")
    monkeypatch.setenv("UUDP_CACHE", workplace.environment["UUDP_CACHE"])  # for commands within this process
    yield workplace
    workplace.clean()


def refused(place: Workplace, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What a resume within this process says that must be refused with exit code 2."""
    capsys.readouterr()
    assert main.run_app(["run", str(place.spec), *more, "--resume", "--yes", "--out", str(place.out)]) == 2
    return capsys.readouterr().err


def mid_run(place: Workplace, *more: str) -> launching.Process:
    """The run, begun with the given key and past its first checkpoints."""
    process = place.start_with_key(KEY, *more)
    process.until(lambda: released_step(place) >= 2, "step 2 was released")
    return process


def assert_same_releases(run: Path, undisturbed: Path) -> None:
    places = [(row["series"], row["step"]) for row in rows(run)]
    assert len(places) == len(set(places)), "a step was released twice"
    assert rows(run) == rows(undisturbed)
    ours, theirs = read_json(run / "privacy.json"), read_json(undisturbed / "privacy.json")
    assert ours.pop("ledger") != theirs.pop("ledger")  # receipts of two runs
    assert ours == theirs


def assert_same_adapter(run: Path, undisturbed: Path) -> None:
    ours, theirs = adapter(run), adapter(undisturbed)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_undisturbed_run(secret_run: Run) -> None:
    """What the others are compared with is a real, finished, noisy run."""
    assert secret_run.code == 0, secret_run.err
    assert [row["step"] for row in rows(secret_run.folder)] == list(range(0, STEPS + 1, 2))
    assert all(value.any() for value in adapter(secret_run.folder).values())


def test_a_killed_driver(secret_run: Run, place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL to the driver: `--resume` ends in bitwise the same adapter; a changed spec or data can't go on.

    Breaks: draw the noise from `os.urandom`; do not restore the optimizer's state; leave `optimizer`, `schedule` or
    `data` out of `run_digest`; no lease.
    """
    process = mid_run(place)
    folder = place.run_folder()
    assert "another process is working on" in refused(place, capsys)
    process.kill()
    orphans = [p for p in process.descendants() if _is_worker(p)]
    assert _finished(folder) is False
    assert Folder(folder).key.read_bytes() == KEY
    began = (folder / "private" / "run.json").read_bytes()

    for change, part in {
        "train.optimizer.lr=0.02": "optimizer", "train.steps=17": "mechanism and guarantee", "seed=4": "seed",
        "clipping.norm=0.6": "mechanism and guarantee", "model.adapter.alpha=9": "adapter",
        "train.schedule.type=linear": "schedule",
    }.items():  # fmt: skip
        assert f"was begun with another {part}: it can't be resumed with this" in refused(place, capsys, change)
    data = place.posts.read_bytes()
    place.posts.write_bytes(data.replace(b"tide", b"tidy", 1))
    assert "was begun with another data: it can't be resumed" in refused(place, capsys)
    place.posts.write_bytes(data)
    assert (folder / "private" / "run.json").read_bytes() == began  # being refused changes nothing
    assert not _finished(folder)

    # Workers that outlived their driver would go on writing beside those of the resumed run.
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert [p for p in alive if p.is_running() and _is_worker(p)] == []
    resumed = place.start_run("--resume")
    assert resumed.wait() == 0, resumed.err
    assert place.runs() == [folder]
    assert_same_adapter(folder, secret_run.folder)
    assert_same_releases(folder, secret_run.folder)
    assert not Folder(folder).key.exists()
    (charged,) = Ledger(place.ledger).accounts()[0].runs  # once
    assert (charged.reservation.run, charged.status) == (folder.name, "finished")


def test_a_killed_worker(secret_run: Run, s3: Store, place: Workplace) -> None:
    """SIGKILL to a Ray worker: Ray starts the workers again, and they end in bitwise the same adapter.

    Its data lie in an object store. What is changed there ends a run, whoever's tokens they are now.

    Breaks: append the checkpoint's rows to the released ones without looking which are there; read without looking at
    digests.
    """
    where = f"compute.prepare.store={s3.url('bucket')}"
    process = mid_run(place, where)
    folder = place.run_folder()
    first = [p for p in process.descendants() if _is_worker(p)]
    before = released_step(place)
    process.worker().kill()
    process.until(
        lambda: [p for p in process.descendants() if _is_worker(p) and p not in first], "Ray started new workers"
    )
    assert before < STEPS
    assert process.wait() == 0, process.err
    assert_same_releases(folder, secret_run.folder)
    assert_same_adapter(folder, secret_run.folder)

    (name,) = [name for name in s3.objects if name.endswith("/examples.arrow")]
    assert any(line.startswith(f"GET {name} ") for line in s3.asked)
    s3.objects[name] = s3.objects[name][::-1]
    process = place.start_with_key(KEY, where, "name=again")
    assert process.wait() == 4, process.err
    assert "compute.prepare.store: a file of the prepared data in s3://bucket is not what was written" in process.err
    assert "Traceback" not in process.err
    assert "hunter2" not in process.err + "".join(s3.asked)


def test_ctrl_c_and_other_workers(secret_run: Run, place: Workplace) -> None:
    """Ctrl-C leaves a checkpoint and says how to go on; one worker without sharding then ends where two would have.

    Break: let Ray Train take over the signal; put workers or stage into `run_digest`.
    """
    process = mid_run(place)
    process.interrupt()
    assert process.wait() == 130
    folder = place.run_folder()
    said, how = process.err.splitlines()[-2:]
    assert said == f"uudp: stopped with a checkpoint ({folder})"
    assert how == f"uudp: go on with: uudp run {place.spec} --resume --run {folder.name} --yes --out {place.out}"
    assert "stopping after this step, with a checkpoint; press Ctrl-C again to stop at once" in process.err
    assert "Traceback" not in process.err
    privacy = read_json(folder / "privacy.json")
    assert privacy["status"] == "interrupted"
    assert privacy["steps_completed"] < STEPS
    taken = read_json(folder / "private" / "progress.json")["step"]
    (newest,) = sorted((folder / "private" / "checkpoints" / "private").glob("step-*"))[-1:]
    assert newest.name == f"step-{taken:08d}"  # nothing that was computed is lost

    words = shlex.split(how.removeprefix("uudp: go on with: uudp "))
    resumed = place.start(*words, "compute.workers=1", "compute.deepspeed.stage=0")
    assert resumed.wait() == 0, resumed.err
    assert place.runs() == [folder]
    ours, theirs = adapter(folder), adapter(secret_run.folder)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)
    assert [(row["series"], row["step"]) for row in rows(folder)] == [
        (row["series"], row["step"]) for row in rows(secret_run.folder)
    ]


def test_a_second_ctrl_c_leaves_at_once(place: Workplace) -> None:
    process = place.start_with_key(KEY)
    process.until(lambda: "training: 2 worker(s)" in process.err, "training began")
    process.interrupt()
    process.until(lambda: "press Ctrl-C again" in process.err, "the first Ctrl-C was noticed")
    asked = time.monotonic()
    process.interrupt()
    assert process.wait() == 130
    folder = place.run_folder()
    assert time.monotonic() - asked < 60  # and not after the workers' first step; generous, for a busy machine
    said, how = process.err.splitlines()[-2:]
    assert said.startswith("uudp: stopped; what was durable is kept (")
    assert how == f"uudp: go on with: uudp run {place.spec} --resume --run {folder.name} --yes --out {place.out}"
    assert "Traceback" not in process.err
    assert read_json(folder / "privacy.json")["status"] == "interrupted"


def test_a_second_ctrl_c_that_a_library_swallows_is_not_lost(tmp_path: Path) -> None:
    """Raised in a callback of C code, an exception is printed and forgotten. Break: raise it in the handler alone."""
    folder = Folder(tmp_path)
    folder.private.mkdir()
    with interrupting.first_interrupt_asks(folder, running.Observer()) as check:
        os.kill(os.getpid(), signal.SIGINT)
        assert folder.stop.exists()
        check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()


# --- the ends of a run, without Ray -------------------------------------------------------------------------


@pytest.fixture
def trained(secret_run: Run, tmp_path: Path) -> Path:
    """A copy of a run as it is after training, before its report: killed in between."""
    folder = tmp_path / "runs" / "secret" / secret_run.folder.name
    shutil.copytree(secret_run.folder, folder)
    (folder / "report.html").unlink()
    (folder / "adapter" / "README.md").unlink()
    document = read_json(folder / "privacy.json")
    (folder / "privacy.json").write_text(json.dumps({**document, "status": "trained"}))
    path = folder / "private" / "run.json"
    path.write_text(json.dumps({**read_json(path), "status": "trained"}))
    Folder(folder).key.write_bytes(KEY)
    return folder


def test_a_kill_after_training_loses_nothing(secret_run: Run, trained: Path) -> None:
    """The report is made without training again; the key goes."""
    result = running.run(make_plan(str(secret_run.place.spec)), out=trained.parents[1], resume=True)
    assert result.folder == trained
    assert result.report == trained / "report.html"
    assert (trained / "adapter" / "README.md").exists()
    assert not Folder(trained).key.exists()
    assert read_json(trained / "privacy.json") == read_json(secret_run.folder / "privacy.json")
    assert_same_adapter(trained, secret_run.folder)


@pytest.mark.parametrize(
    "change",
    ["noise.epsilon.few=2", "train.steps=8", "privacy.delta=1e-7", "data.name=other", "train.optimizer.lr=0.9"],
)
def test_a_trained_run_keeps_its_guarantee(secret_run: Run, trained: Path, change: str) -> None:
    """A resume with another spec must not write that spec's guarantee over that of what was trained.

    Break: finish a trained run with whatever plan is given.
    """
    before = (trained / "privacy.json").read_bytes()
    with pytest.raises(ArgumentError, match="can't be finished with this spec"):
        running.run(make_plan(str(secret_run.place.spec), [change]), out=trained.parents[1], resume=True)
    assert (trained / "privacy.json").read_bytes() == before


def test_a_lost_key_is_never_replaced(secret_run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: make a new key on resume; steps released under the old one would be drawn again."""
    monkeypatch.setenv("UUDP_CACHE", secret_run.place.environment["UUDP_CACHE"])
    path = trained / "private" / "run.json"
    path.write_text(json.dumps({**read_json(path), "status": "interrupted"}))
    Folder(trained).key.unlink()
    with pytest.raises(ArgumentError, match=r"the key of .* is gone: it can't be resumed"):
        running.run(make_plan(str(secret_run.place.spec)), out=trained.parents[1], resume=True)


@pytest.mark.parametrize("change", ["model.base=/nope", "data.max_tokens=257"])
def test_a_start_that_fails_leaves_nothing(secret_run: Run, tmp_path: Path, change: str) -> None:
    """Break: leave the folder, which nothing would ever list or go on with."""
    with pytest.raises(ArgumentError):
        running.run(make_plan(str(secret_run.place.spec), [change]), out=tmp_path)
    assert list(tmp_path.glob("*/*")) == []


def test_a_machine_that_can_not_run_it_leaves_a_run_to_go_on_with(
    secret_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: leave it as running, with its key, and say nothing of it."""

    def refuse(*_: object) -> None:
        raise MachineError("compute.workers: too many")

    monkeypatch.setenv("UUDP_CACHE", secret_run.place.environment["UUDP_CACHE"])
    monkeypatch.setattr(ray, "fit", refuse)
    with pytest.raises(MachineError) as caught:
        running.run(make_plan(str(secret_run.place.spec)), out=tmp_path)
    (folder,) = tmp_path.glob("*/*")
    assert caught.value.run_id == folder.name
    assert read_json(folder / "privacy.json")["status"] == "interrupted"
    assert Folder(folder).key.exists()


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: no lock, or one that outlives its process; a look at the lease that takes it away from a run."""
    monkeypatch.setattr(folders, "LEASE_SECONDS", 0.3)
    folder = Folder(tmp_path)
    folder.private.mkdir()
    assert is_locked(folder.lease) is False
    with folders.lease(folder):
        assert is_locked(folder.lease) is True
        with pytest.raises(ArgumentError, match="another process is working on"), folders.lease(folder):
            pass
        assert folder.lease.stat().st_mode & 0o777 == 0o600
    assert is_locked(folder.lease) is False
    look = os.open(folder.lease, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [look]).start()
    with folders.lease(folder):  # `uudp runs` looked, for a moment
        assert is_locked(folder.lease) is True


def test_without_locks_a_run_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: take every error of a lock for "somebody has it", or go on without."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = Folder(tmp_path)
    folder.private.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match="file system without locks"), folders.lease(folder):
        pass


def test_which_run_goes_on(secret_run: Run, tmp_path: Path) -> None:
    """The newest of the same mechanism that nobody works on, or the one that is named. Break: take the newest."""
    plan = make_plan(str(secret_run.place.spec))

    def made(run_id: str, status: str, digest: str) -> Path:
        root = tmp_path / plan.spec.name / run_id
        (root / "private").mkdir(parents=True)
        parts = {"mechanism": folders._sha256(digest)}
        (root / "private" / "run.json").write_text(json.dumps({"status": status, "parts": parts}))
        return root

    def found(run_id: str | None = None) -> str:
        return folders.find_unfinished(plan, tmp_path, run_id).root.name

    same = plan.mechanism.digest
    with pytest.raises(ArgumentError, match="there is no unfinished run"):
        found()
    made("20260101-a", "interrupted", "another")
    assert found() == "20260101-a"  # which will be refused, with the reason
    made("20260102-b", "interrupted", same)
    made("20260103-c", "interrupted", same)
    made("20260104-d", "running", "another")
    made("20260105-e", "finished", same)
    assert found() == "20260103-c"
    with folders.lease(Folder(tmp_path / plan.spec.name / "20260103-c")):
        assert found() == "20260102-b"
        assert found("20260103") == "20260103-c"  # and is refused, being worked on
    assert found("20260101-a") == "20260101-a"
    for wrong, message in {
        "2026": "several runs begin with", "20260105-e": "is finished: there is nothing to go on with",
        "20260103-x": 'there is no run "20260103-x" .* did you mean "20260103-c"',
    }.items():  # fmt: skip
        with pytest.raises(ArgumentError, match=message):
            found(wrong)


def test_the_digest_tells_runs_apart(secret_run: Run) -> None:
    """Speed may change on resume, and nothing else that decides a release. Break: leave a block out of the digest."""
    from harness.data.corpus import Corpus
    from harness.training.model import find_base

    job = read_json(secret_run.folder / "private" / "job.json")
    corpus, base = Corpus.load(Path(job["corpus"])), find_base(job["base"], Path("/"), Path("/"))

    def digest(*overrides: str) -> str:
        return folders.run_digest(folders.run_parts(make_plan(str(secret_run.place.spec), overrides), corpus, base))

    same = digest()
    assert same == read_json(secret_run.folder / "private" / "run.json")["run_digest"]
    assert digest("compute.workers=7", "compute.deepspeed.stage=3", "compute.retries=9", "report.html=false") == same
    changes = (
        "train.optimizer.lr=0.02", "train.optimizer.type=sgd", "train.optimizer.weight_decay=0.1", "train.steps=8",
        "train.checkpoint_every=4", "clipping.norm=0.4", "sampling.expected=7", "sampling.examples_per_user=1",
        "noise.epsilon.few=7", "privacy.delta=1e-6", "seed=5", "model.adapter.r=2", "model.dtype=bfloat16",
        "segmentation.edges=[4]", "evaluation.users=3",
    )  # fmt: skip
    found = {change: digest(change) for change in changes}
    assert [change for change, value in found.items() if value == same] == []
    assert len(set(found.values())) == len(changes)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def _finished(folder: Path) -> bool:
    return (folder / "adapter" / "README.md").exists()
