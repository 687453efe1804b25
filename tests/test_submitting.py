"""From a folder that holds nothing but the spec to a Ray cluster of its own: submit, follow, stop, resume, fetch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.launching import COMMAND, ROOT, WAIT, Process
from tests.tiny import made_posts, make_spec, save_base, write_posts

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]

STEPS = 16
START = "import sys; from ray.scripts.scripts import main; sys.argv = ['ray', 'start', *sys.argv[1:]]; main()"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class RayHead:
    """A Ray cluster in processes of its own, as an administrator starts it; with a token."""

    def __init__(self, folder: Path) -> None:
        self.temp = Path(tempfile.mkdtemp(prefix="uudp-ray-"))  # sockets have short paths at most
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        dashboard, client, agent, metrics = free_ports(4)
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.address = f"http://127.0.0.1:{dashboard}"
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        environment = {**os.environ, **self.access, "PYTHONPATH": str(ROOT)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        for name in ("UUDP_LEDGER", "UUDP_CACHE", "RAY_ADDRESS"):
            environment.pop(name, None)
        options = [
            "--head", "--block", "--port=0", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2",
            "--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={self.temp}",
            "--object-store-memory=100000000", f"--metrics-export-port={metrics}",
        ]  # fmt: skip
        with (folder / "ray.txt").open("wb") as out:
            command = [sys.executable, "-c", START, *options]
            self.popen = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        self.known: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < deadline, (folder / "ray.txt").read_text()
            assert self.popen.poll() is None, (folder / "ray.txt").read_text()
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            return bool(self.get("/api/version"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """What the job server says to whoever has the token."""
        request = urllib.request.Request(self.address + path)
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.popen.pid).children(recursive=True):
                self.known[child.pid] = child
        return list(self.known.values())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No step is made meanwhile: tiny ones would be over before a command has begun."""
        stopped = [one for one in self.processes() if "RayTrainWorker" in " ".join(_command(one))]
        for process in stopped:
            process.suspend()
        yield
        for process in stopped:
            process.resume()

    def close(self) -> None:
        left = self.processes()
        self.popen.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.popen.wait()
        psutil.wait_procs(left, timeout=10)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    found = RayHead(tmp_path)
    try:
        yield found
    finally:
        found.close()


class Laptop:
    """A folder with a spec alone; the data lie elsewhere on it, the model on the cluster's storage."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self.here, self.storage, self.head = folder / "laptop", folder / "storage", head
        self.here.mkdir()
        self.storage.mkdir()
        base = save_base(self.storage / "base")
        posts = write_posts(folder / "posts.jsonl", made_posts())
        spec = make_spec(
            base, posts, name="sent", train={"steps": STEPS, "checkpoint_every": 4}, report={"html": True},
            compute={"storage": str(self.storage), "placement": "spread"},
        )  # fmt: skip
        (self.here / "sent.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
        self.environment = {
            **os.environ, **head.access, "PYTHONPATH": str(ROOT), "UUDP_CACHE": str(folder / "laptop-cache"),
            "UUDP_LEDGER": f"sqlite:///{folder}/laptop-ledger.db", "RAY_ADDRESS": "http://127.0.0.1:9",
        }  # fmt: skip
        self.folder = folder

    def run(self, *words: str, code: int = 0) -> str:
        command = [*COMMAND, *words, "--address", self.head.address]
        done = subprocess.run(
            command, cwd=self.here, env=self.environment, capture_output=True, text=True, timeout=WAIT, check=False
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def follow(self, run: str) -> Process:
        folder = self.folder / "following"
        folder.mkdir()
        return Process([*COMMAND, "logs", run, "-f", "--address", self.head.address], folder, self.environment)


def test_a_short_run_is_followed_to_its_end_and_fetched(tmp_path: Path, head: RayHead) -> None:
    """Break: end `--wait` with 0 whatever the run ended with (`exit_code`): the second command is not refused."""
    laptop = Laptop(tmp_path, head)
    # Workers are started by the interpreter that is named.
    named = ["--python", sys.executable]
    finished = laptop.run("submit", "sent.yaml", "train.steps=2", "--yes", "--send-data", "--wait", *named)
    assert "private step 2: ε spent 8.000" in finished
    run = next(line.removeprefix("submitted: ") for line in finished.splitlines() if line.startswith("submitted: "))
    again = ["submit", "sent.yaml", "train.steps=2", "--yes", "--send-data", "--wait", "--resume", run]
    assert "there is nothing to go on with" in laptop.run(*again, code=2)
    fetched = laptop.run("fetch", run)
    assert f"report: runs/sent/{run}/report.html" in fetched
    assert not (laptop.here / "runs" / "sent" / run / "private").exists()


@pytest.mark.slow
def test_submitted_followed_stopped_resumed_and_fetched(tmp_path: Path, head: RayHead) -> None:
    """All of it by the command line, under a token, with private records.

    Break: let Ray kill a stopped job after its 3 seconds (`wait` in `Cluster.submit`): it leaves no checkpoint line.
    """
    laptop = Laptop(tmp_path, head)
    assert "or say --send-data" in laptop.run("submit", "sent.yaml", "--yes", code=2)
    begun = laptop.run("submit", "sent.yaml", "--yes", "--send-data")
    run = next(line.removeprefix("submitted: ") for line in begun.splitlines() if line.startswith("submitted: "))
    again = ["submit", "sent.yaml", "--yes", "--send-data", "--resume", run]
    following = laptop.follow(run)
    try:
        following.until(lambda: "private step 4:" in following.err, "four steps were released")
        with head.paused():
            assert "is still running" in laptop.run(*again, code=2)
            assert_exported(head, run)
            laptop.run("stop", run)
            following.until(lambda: "stopping after this step" in following.err, "the job was told to stop")
        assert following.wait() == 130
    finally:
        following.clean()
    said = following.err
    assert "uudp: stopped with a checkpoint" in said
    lines = [line for line in said.splitlines() if line.startswith("private step")]
    assert len(lines) == len(set(lines)) > 1
    folder = laptop.storage / "runs" / "sent" / run
    assert json.loads((folder / "privacy.json").read_text())["status"] == "interrupted"
    (first,) = json.loads(laptop.run("jobs", "--json"))["jobs"]
    assert (first["status"], first["exit_code"], first["epsilon_reserved"]) == ("interrupted", 130, "8")
    assert 0 < float(first["epsilon_spent"]) < 8

    finished = laptop.run(*again, "--wait")
    assert f"private step {STEPS}: ε spent 8.000" in finished
    assert "there is nothing to go on with" in laptop.run(*again, "--wait", code=2)

    fetched = laptop.run("fetch", run)
    here = laptop.here / "runs" / "sent" / run
    assert f"report: runs/sent/{run}/report.html" in fetched
    assert not (here / "private").exists()
    for name in ("privacy.json", "metrics.jsonl", "adapter/adapter_model.safetensors", "report.html"):
        assert (here / name).read_bytes() == (folder / name).read_bytes()
    steps = [row["step"] for row in map(json.loads, (here / "metrics.jsonl").read_text().splitlines())]
    assert steps == sorted(set(steps))
    assert [job["status"] for job in json.loads(laptop.run("jobs", "--json"))["jobs"]] == [
        "interrupted", "finished", "refused",
    ]  # fmt: skip

    # Neither the token nor a record is where others on the cluster look.
    token, words = head.token.read_text(), made_posts()[3]["text"]
    everywhere = head.get("/api/jobs/") + " ".join(" ".join(_command(p)) for p in head.processes())
    assert token not in everywhere
    for path in head.temp.rglob("*"):
        if path.is_file() and path.suffix not in (".lock",):
            content = path.read_bytes()
            assert words.encode() not in content, path
            assert token.encode() not in content, path


def assert_exported(head: RayHead, run: str) -> None:
    """Prometheus finds what the run has released. Ray exports every ten seconds."""
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(head.metrics, timeout=30) as answer:
            own = [line for line in answer.read().decode().splitlines() if run in line]
            if {line.partition("{")[0] for line in own} >= {"ray_uudp_step", "ray_uudp_epsilon_spent"}:
                return
        assert time.monotonic() < deadline, "nothing was exported"
        time.sleep(1)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_a_sweep_and_a_suite_are_submitted_the_same_way(tmp_path: Path, head: RayHead) -> None:
    """Both are recognised, and what they release is copied to `compute.results`. Break: run whatever is submitted."""
    laptop = Laptop(tmp_path, head)
    results = tmp_path / "results"
    document = yaml.safe_load((laptop.here / "sent.yaml").read_text())
    document["compute"]["results"] = f"file://{results}"
    document["train"]["steps"] = 2
    (laptop.here / "plain.yaml").write_text(yaml.safe_dump(document))
    space = {"clipping.norm": {"choice": [0.3, 1.0]}}
    search = {"type": "optuna", "trials": 2}
    sweep = {"space": space, "search": search, "concurrent": 1}
    (laptop.here / "search.yaml").write_text(yaml.safe_dump({**document, "sweep": sweep}))
    suite = {
        "version": 1, "suite": "two", "spec": "plain.yaml", "budgets": [8], "seeds": [1],
        "policies": {"uniform": {"noise": {"type": "uniform"}}},
    }  # fmt: skip
    (laptop.here / "suite.yaml").write_text(yaml.safe_dump(suite))

    said = laptop.run("submit", "search.yaml", "--yes", "--send-data", "--wait")
    assert "what is done there: uudp sweep" in said
    run = next(line.removeprefix("submitted: ") for line in said.splitlines() if line.startswith("submitted: "))
    assert (results / "runs" / "sent" / run / "privacy.json").exists()
    assert "report: " in laptop.run("fetch", run)

    said = laptop.run("submit", "suite.yaml", "--yes", "--send-data", "--wait")
    assert "what is done there: uudp bench" in said
    assert (results / "runs" / "two" / "results.jsonl").exists()
    run = next(line.removeprefix("submitted: ") for line in said.splitlines() if line.startswith("submitted: "))
    laptop.run("fetch", run)
    assert (laptop.here / "runs" / "two" / "results.jsonl").exists()
    assert [(job["verb"], job["status"]) for job in json.loads(laptop.run("jobs", "--json"))["jobs"]] == [
        ("sweep", "finished"), ("bench", "finished"),
    ]  # fmt: skip
    assert not list(results.rglob("private"))
