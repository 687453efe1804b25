"""SIGKILL at random moments, of a worker, the driver or the raylet: the run ends as if nothing had happened.

A disturbed run is killed several times, each time at a moment drawn from the test's seed, and gone on with as its
messages say. It must end in bitwise the same adapter and the same released rows as an undisturbed run with the same
key, charged once. To repeat a failure, run the test of its seed again: victims, moments and delays are printed.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.privacy.ledger import Ledger
from harness.training.job import Folder
from tests import launching
from tests.launching import KEY, Process, Run, Workplace, adapter, ended, read_json, rows

pytestmark = [pytest.mark.timeout(7200), pytest.mark.ray]

STEPS, EVERY, RETRIES = 40, 4, 6
SHAPES: dict[str, dict[str, Any]] = {
    "one worker": {"compute": {"workers": 1, "deepspeed": {"stage": 0}}},
    "one worker, ZeRO 2, examples": {
        "compute": {"workers": 1, "deepspeed": {"stage": 2}},
        "sampling": {"unit": "example", "examples_per_user": 2},
    },
    "two workers, an ordinary series": {
        "compute": {"workers": 2, "deepspeed": {"stage": 0}},
        "evaluation": {"ordinary": True},
        "data": {"visibility": "public"},
    },
    "two workers, ZeRO 2, adaptive clip": {
        "compute": {"workers": 2, "deepspeed": {"stage": 2}},
        "blocks": {"clipping": {"type": "adaptive", "quantile": 0.5, "initial": 0.5}},
    },
    "two workers, ZeRO 3, examples": {
        "compute": {"workers": 2, "deepspeed": {"stage": 3}},
        "sampling": {"unit": "example", "examples_per_user": 2},
    },
}
PICKLED = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt"}
FEW_SEED = 100
SEEDS = range(12)
KILLS = 5
"""Of a run in the long tests: 60 in all, but for the few runs that end before their last one."""


def workplace(folder: Path, shape: str) -> Workplace:
    """A run of some steps, with a report at its end."""
    changes = SHAPES[shape]
    compute = {**changes["compute"], "retries": RETRIES}
    train = {"steps": STEPS, "checkpoint_every": EVERY}
    return Workplace(folder, **{"train": train, "report": {"html": True}, **changes, "compute": compute})


# --- moments ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after a condition on the run's folder or output first holds."""

    when: Callable[[Workplace, Process], Any]
    longest: float


def _folder(place: Workplace) -> Folder | None:
    runs = place.runs()
    return Folder(runs[-1]) if runs else None


def _begins_to_prepare(place: Workplace, process: Process) -> bool:
    return "model: " in process.err


def _starts_ray(place: Workplace, process: Process) -> bool:
    return "training: " in process.err


def _has_workers(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    return folder is not None and (folder.private / "ray").exists() and bool(workers_of(process))


def _trains(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    return folder is not None and folder.progress.exists() and "training: " in process.err


def _writes_a_checkpoint(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    return folder is not None and any((folder.private / "checkpoints").glob("*/.step-*.partial"))


def _evaluates(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    if folder is None or not folder.progress.exists():
        return False
    with contextlib.suppress(OSError, ValueError):
        now = read_json(folder.progress)
        newest = max((row["step"] for row in rows(folder.root) if row["series"] == now["series"]), default=-1)
        every = read_json(folder.private / "job.json")["spec"]["train"]["checkpoint_every"]
        return bool(now["step"] % every == 0 and now["step"] > newest)
    return False


def _saves_the_adapter(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    return folder is not None and (folder.adapter.exists() or (folder.root / ".adapter.partial").exists())


def _reports(place: Workplace, process: Process) -> bool:
    folder = _folder(place)
    if folder is None:
        return False
    with contextlib.suppress(OSError, ValueError):
        return read_json(folder.private / "run.json")["status"] in ("trained", "finished")
    return False


MOMENTS = {
    "while the command starts": Moment(lambda *_: True, 4.0),
    "in preparation": Moment(_begins_to_prepare, 0.5),
    "while Ray starts": Moment(_starts_ray, 6.0),
    "while workers start": Moment(_has_workers, 5.0),
    "between steps": Moment(_trains, 0.8),
    "in a checkpoint": Moment(_writes_a_checkpoint, 0.01),
    "in an evaluation": Moment(_evaluates, 0.005),
}
LAST = {"at the adapter": Moment(_saves_the_adapter, 0.3), "in the report": Moment(_reports, 0.2)}
"""After these nothing of the run may be left to kill."""
OF_WORKERS = ("while workers start", "between steps", "in a checkpoint", "in an evaluation", "at the adapter")
OF_RAY = ("while Ray starts", *OF_WORKERS)


def workers_of(process: Process) -> list[psutil.Process]:
    """The living Ray Train workers of a command."""
    return _named(process, "RayTrainWorker")


def _named(process: Process, name: str) -> list[psutil.Process]:
    found = []
    for one in process.descendants():
        with contextlib.suppress(psutil.Error):
            if name in " ".join(one.cmdline()[:1]):
                found.append(one)
    return found


def wait_for(place: Workplace, process: Process, moment: Moment, delay: float) -> bool:
    """Waits for a moment, or for the last one at which anything can be killed; False: the command ended before."""
    deadline = time.monotonic() + launching.WAIT
    while not moment.when(place, process):
        if process.popen.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"waited {launching.WAIT:g} s:\n{process.err}"
        time.sleep(0.002)
    until = time.monotonic() + delay
    while time.monotonic() < until and process.popen.poll() is None:
        if moment not in LAST.values() and _reports(place, process):
            break
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))
    return process.popen.poll() is None


# --- killing, and going on ----------------------------------------------------------------------------------


class Disturbed:
    """A run that is killed again and again, and always gone on with."""

    def __init__(self, place: Workplace, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.process: Process | None = None
        self.finished = False
        self.kills = 0
        self.released: list[dict[str, Any]] = []
        print(f"seed {seed}")

    def living(self) -> Process:
        """The command that works on the run now; started, or gone on with, if it does not run."""
        if self.process is None:
            self.process = self.place.start_with_key(KEY, *(["--resume"] if self.place.processes else []))
        return self.process

    def kill(self, *, last: bool) -> None:
        """One kill at a random moment, unless the run ends before."""
        victim = self.random.choice(("worker", "worker", "driver", "raylet"))
        names = {"driver": tuple(MOMENTS), "worker": OF_WORKERS, "raylet": OF_RAY}[victim]
        late = tuple(LAST) if victim == "driver" else ("at the adapter",)
        if last and self.random.random() < 0.5:
            name = self.random.choice(late)
        else:
            name = self.random.choice([n for n in names if n not in LAST])
        moment = {**MOMENTS, **LAST}[name]
        delay = self.random.uniform(0, moment.longest)
        while not wait_for(self.place, self.living(), moment, delay):
            self.ends()
            if self.finished:
                print(f"  the run ended before: {victim}, {name} + {delay:.3f} s")
                return
        self._strike(victim, f"{name} + {delay:.3f} s")
        self.kills += 1
        self._look()

    def _strike(self, victim: str, when: str) -> None:
        process = self.living()
        named = {"worker": "RayTrainWorker", "raylet": "/raylet", "driver": ""}[victim]
        found = _named(process, named) if named else []
        if not found:
            print(f"  kill of the driver, {when}")
            process.kill()
            self.process = None
            return
        print(f"  kill of a {victim}, {when}")
        with contextlib.suppress(psutil.Error):
            self.random.choice(found).kill()
        if victim == "raylet":
            self.ends()

    def ends(self) -> None:
        """Waits for the command. One that fails says so in a line, says how to go on, and is gone on with next."""
        process = self.living()
        code = process.wait()
        self.process, self.finished = None, code == 0
        print(f"  the command ended with {code}")
        unfinished = "there is no unfinished run"
        if code == 2 and unfinished in process.err:  # it was killed before it began: a user starts again
            self.process = self.place.start_with_key(KEY)
        elif code != 0:
            assert code == 4, (code, process.err, _errors(self.place))
            said, how = process.err.splitlines()[-2:]
            assert said.startswith("uudp: "), process.err
            assert "--resume" in how, process.err
        assert "Traceback" not in process.err

    def _look(self) -> None:
        """What is released stays released, as it was."""
        folder = _folder(self.place)
        if folder is None:
            return
        now = rows(folder.root)
        assert now[: len(self.released)] == self.released
        self.released = now
        files = {path.name for path in folder.private.glob("checkpoints/*/step-*/*")}
        assert files <= {"parameters.safetensors", "optimizer.safetensors", "state.json", "sha256.json"}
        for series in folder.private.glob("checkpoints/*"):
            assert len(list(series.glob("step-*"))) <= 3  # two, and for a moment the one that replaces the older
        assert not [path for path in folder.root.rglob("*") if path.suffix in PICKLED]


def _errors(place: Workplace) -> str:
    """What workers and driver left of their failures."""
    return "\n".join(path.read_text() for path in place.out.glob("*/*/private/*error.log"))


def disturb(place: Workplace, seed: int, kills: int) -> Path:
    """Runs with so many kills (fewer if it ends before); returns the finished run's folder."""
    disturbed = Disturbed(place, seed)
    for i in range(kills):
        if not disturbed.finished:
            disturbed.kill(last=i == kills - 1)
    while not disturbed.finished:
        assert len(place.processes) < 4 * kills, "it does not come to an end"
        disturbed.ends()
    print(f"  kills: {disturbed.kills}")
    assert disturbed.kills
    (folder,) = place.runs()
    return folder


def assert_undisturbed(place: Workplace, folder: Path, undisturbed: Path) -> None:
    """The same weights, bit for bit; the same rows; charged once; nothing is left that should be gone."""
    ours, theirs = adapter(folder), adapter(undisturbed)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    privacy, other = read_json(folder / "privacy.json"), read_json(undisturbed / "privacy.json")
    assert privacy.pop("ledger")["run"] == folder.name
    other.pop("ledger")
    assert privacy == other
    ledger = Ledger(place.ledger)
    (account,) = ledger.accounts()
    charged = [(run.reservation.run, run.status) for run in account.runs if run.status != "refunded"]
    assert charged == [(folder.name, "finished")]
    assert ledger.verify()[1] == []
    assert left_behind(folder) == left_behind(undisturbed) == []
    assert {p.name for p in folder.iterdir()} == {p.name for p in undisturbed.iterdir()}


def left_behind(run: Path) -> list[str]:
    """What must not outlive a run: key, checkpoints, Ray's own state, half-written files, anything pickled."""
    gone = [run / "private" / name for name in ("key", "checkpoints", "ray")]
    halves = [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix in PICKLED]
    return [str(path.relative_to(run)) for path in (*gone, *halves) if path.exists()]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is slow on a busy machine is not one that hangs."""
    monkeypatch.setattr(launching, "WAIT", 1500.0)


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A finished run of each shape that nobody disturbed."""
    known: dict[str, Run] = {}

    def get(shape: str) -> Run:
        if shape not in known:
            place = workplace(tmp_path_factory.mktemp("undisturbed"), shape)
            try:
                known[shape] = ended(place, place.start_with_key(KEY))
            finally:
                place.clean()
            assert known[shape].code == 0, known[shape].err
        return known[shape]

    return get


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Callable[[str], Workplace]]:
    """Makes the workplace of a shape, and ends what is left of it."""
    made: list[Workplace] = []

    def make(shape: str) -> Workplace:
        made.append(workplace(tmp_path / f"place-{len(made)}", shape))
        return made[-1]

    yield make
    for place in made:
        place.clean()
        shutil.rmtree(place.folder, ignore_errors=True)


def test_a_few_kills(secret_run: Run, tmp_path: Path) -> None:
    """Two of them, every day; two workers, ZeRO 2."""
    place = launching.secret_run(tmp_path / "place")
    try:
        assert_undisturbed(place, disturb(place, FEW_SEED, 2), secret_run.folder)
    finally:
        place.clean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_many_kills(seed: int, undisturbed: Callable[[str], Run], new_place: Callable[[str], Workplace]) -> None:
    shape = list(SHAPES)[seed % len(SHAPES)]
    place = new_place(shape)
    folder = disturb(place, seed, KILLS)
    assert_undisturbed(place, folder, undisturbed(shape).folder)
