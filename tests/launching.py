"""Runs `uudp` as its users do: in a process of its own, with a Ray of its own, which can be watched and killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import harness
from tests.tiny import made_posts, make_spec, save_base, write_posts

KEY = hashlib.sha256(b"the key of tests that compare whole runs").digest()

ROOT = Path(harness.__file__).resolve().parents[1]
WAIT = 280.0
"""Seconds after which a process that should have done something is given up."""

COMMAND = (sys.executable, "-m", "harness")

SCRIPT = """\
import functools, sys
from pathlib import Path
from harness import running
from harness.cli import main

key = Path(sys.argv[1]).read_bytes()
running.run = functools.partial(running.run, _key=key)
if sys.argv[2] == "sweep":
    from harness.sweeping import flow
    flow.sweep = functools.partial(flow.sweep, _key=key)
sys.argv[1:] = sys.argv[2:]
main.main()
"""
"""The command, but a new run gets a given key: what only a test can do. The key is in a file, as it always is."""


def _is_alive(process: psutil.Process) -> bool:
    """It may end between two looks."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Process:
    """A started command. Its streams go to files, so that it never waits for a reader."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.out_path, self.err_path = folder / "stdout.txt", folder / "stderr.txt"
        self._known: dict[int, psutil.Process] = {}
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            # Its own process group, as a shell would give it: Ctrl-C reaches the whole group.
            self.popen = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=dict(environment), cwd=folder, start_new_session=True,
            )  # fmt: skip
        self.process = psutil.Process(self.popen.pid)

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def descendants(self) -> list[psutil.Process]:
        """All living processes that it started (Ray's too), remembered for `clean`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.process.children(recursive=True):
                self._known[child.pid] = child
        return [p for p in self._known.values() if _is_alive(p)]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits for something while the process runs; fails the test if it ends before."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            if value := condition():
                return value
            if self.popen.poll() is not None and not condition():
                pytest.fail(f"the process ended with {self.popen.returncode} before {what}:\n{self.err}")
            time.sleep(0.02)
        return pytest.fail(f"waited {WAIT:g} s for {what}:\n{self.err}")

    def worker(self) -> psutil.Process:
        """A Ray Train worker of it."""

        def find() -> psutil.Process | None:
            for child in self.descendants():
                with contextlib.suppress(psutil.Error):
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        return child
            return None

        found: psutil.Process = self.until(find, "a Ray worker came up")
        return found

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: SIGINT to the process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self.descendants()
        self.popen.kill()
        self.popen.wait()

    def wait(self) -> int:
        try:
            return self.popen.wait(WAIT)
        except subprocess.TimeoutExpired:
            return pytest.fail(f"still running after {WAIT:g} s:\n{self.err}")

    def clean(self) -> None:
        """Ends what is left of it, by the identity of each process."""
        left = self.descendants()
        if self.popen.poll() is None:
            self.popen.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.popen.wait()
        psutil.wait_procs(left, timeout=10)  # what still writes would keep its folder from being removed


class Workplace:
    """A folder with a spec, its data and a tiny model, and the processes that were started there."""

    def __init__(
        self,
        folder: Path,
        posts: Sequence[Mapping[str, str]] | None = None,
        *,
        blocks: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """Args: `posts`: the data; `blocks`: whole blocks of the spec; `spec`: changes to blocks of the tiny spec."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.base, self.out = folder, save_base(folder / "base"), folder / "runs"
        self.posts = write_posts(folder / "posts.jsonl", made_posts() if posts is None else posts)
        self.spec = folder / "spec.yaml"
        document = make_spec(self.base, self.posts, **spec).model_dump(mode="json", exclude_unset=True)
        # A ledger of its own: what a run's papers say of other runs does not depend on other tests.
        document["privacy"]["ledger"] = self.ledger = f"sqlite:///{folder}/ledger.db"
        self.spec.write_text(yaml.safe_dump({**document, **(blocks or {})}, sort_keys=False))
        # Sockets have short paths at most, so not below pytest's folder.
        self.ray = Path(tempfile.mkdtemp(prefix="uudp-ray-"))
        self.processes: list[Process] = []
        self.watched: dict[int, str] = {}
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
            "RAY_TMPDIR": str(self.ray),
            "UUDP_CACHE": str(folder / "cache"),
        }

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """``uudp …``."""
        return self._start([*COMMAND, *arguments], environment)

    def start_run(self, *arguments: str) -> Process:
        """``uudp run SPEC --yes …``."""
        return self.start("run", str(self.spec), *arguments, "--yes", "--out", str(self.out))

    def start_with_key(self, key: bytes, *arguments: str, verb: str = "run") -> Process:
        """``uudp run SPEC --yes …`` or ``uudp sweep …``, with a key that the test knows."""
        path = self.folder / "key-of-the-test"
        path.write_bytes(key)
        whole = (verb, str(self.spec), *arguments, "--yes", "--out", str(self.out))
        return self._start([sys.executable, "-c", SCRIPT, str(path), *whole], None)

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str] | None) -> Process:
        folder = self.folder / f"process-{len(self.processes)}"
        folder.mkdir()
        process = Process(arguments, folder, {**self.environment, **(environment or {})})
        self.processes.append(process)
        return process

    def runs(self) -> list[Path]:
        """All runs here, the oldest first."""
        return sorted(self.out.glob("*/*"))

    def run_folder(self) -> Path:
        """The only run here."""
        (folder,) = self.runs()
        return folder

    def clean(self) -> None:
        for process in self.processes:
            process.clean()
        shutil.rmtree(self.ray, ignore_errors=True)


def seen_from_outside(process: Process) -> dict[int, str]:
    """What the system shows of a command and all it started: command lines and environments, by process id."""
    seen: dict[int, str] = {}
    for one in (process.process, *process.descendants()):
        with contextlib.suppress(psutil.Error, OSError):
            seen[one.pid] = (
                " ".join(one.cmdline()) + "\n" + Path(f"/proc/{one.pid}/environ").read_text(errors="replace")
            )
    return seen


def rows(run: Path) -> list[dict[str, Any]]:
    """The released metrics so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def released_step(place: Workplace) -> int:
    """The newest released step of the only run."""
    runs = place.runs()
    return max((row["step"] for row in rows(runs[0])), default=0) if runs else 0


def adapter(run: Path) -> dict[str, Any]:
    """The adapter's weights."""
    from safetensors.torch import load_file

    return load_file(str(run / "adapter" / "adapter_model.safetensors"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


# --- the runs that several tests look at --------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One ended run: where it happened, its folder and what the command printed."""

    place: Workplace
    folder: Path
    out: str
    err: str
    code: int


def ended(place: Workplace, process: Process) -> Run:
    code = process.wait()
    return Run(place, place.run_folder(), process.out, process.err, code)


def whole_run(folder: Path) -> Workplace:
    """Public text, two groups, three bad records, an ordinary training beside the private one, a report."""
    place = Workplace(
        folder,
        name="whole",
        data={"visibility": "public", "holdout": {"users": 0.25}},
        noise={"type": "scale", "epsilon": {"free": 8, "paid": 4}},
        train={"steps": 2},
        compute={"workers": 2, "deepspeed": {"stage": 3}},
        evaluation={"ordinary": True},
        report={"html": True},
    )
    with place.posts.open("a") as file:
        file.write('{"user": "user-001", "text": ""}\nnot json\n{"text": "nobody wrote this", "plan": "free"}\n')
    return place


CANARY, PERSON = "canaryQZ", "personQZ"
"""Occur in the texts and in the user ids of `secret_posts`, and nowhere else in the world."""


def secret_posts() -> list[dict[str, str]]:
    """Texts of 67 users with 2 to 5 texts each, who all say a secret of their own."""
    return [
        {"user": f"{PERSON}-{u:03d}", "text": f"{CANARY}-{u:03d}-{p} tide lamp {'north ' * (1 + (u + p) % 4)}"}
        for u in range(67)
        for p in range(2 + u % 4)
    ]


def secret_run(folder: Path) -> Workplace:
    """Private text whose numbers are all declared (and not the true ones), groups by the users' own records."""
    place = Workplace(
        folder,
        secret_posts(),
        name="secret",
        data={
            "population": 60,
            "weights": {"few": 0.6, "many": 0.4},
            "attributes": [],
            "max_tokens": 64,
            "holdout": {"users": 0.25},
        },
        blocks={"segmentation": {"type": "usage", "edges": [3], "names": ["few", "many"]}},
        noise={"type": "scale", "epsilon": {"few": 8, "many": 6}},
        train={"steps": 16, "checkpoint_every": 2},
        compute={"workers": 2, "deepspeed": {"stage": 2}, "microbatch_tokens": 128, "retries": 2},
        report={"html": True},
    )
    with place.posts.open("a") as file:
        file.write(json.dumps({"user": f"{PERSON}-000", "text": ""}) + "\n" + f"{CANARY} is no JSON\n")
    return place
