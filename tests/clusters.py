"""Ray clusters of several processes on this machine, and laptops from which runs are sent to them."""

from __future__ import annotations

import contextlib
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
import yaml

from tests import launching
from tests.launching import COMMAND, ROOT, WAIT, Process
from tests.tiny import made_posts, make_spec, save_base, write_posts

STEPS = 16
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
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
        self.folder = folder
        self.temp = Path(tempfile.mkdtemp(prefix="uudp-ray-"))  # sockets have short paths at most
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self._ports = free_ports(4)
        self.metrics = f"http://127.0.0.1:{self._ports[3]}/metrics"
        self.address = f"http://127.0.0.1:{self._ports[0]}"
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        self.start()

    def start(self) -> None:
        """Also again, after `kill`: at the same address, and with nothing of what was there before."""
        dashboard, client, agent, metrics = self._ports
        environment = {**os.environ, **self.access, "PYTHONPATH": str(ROOT)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        for name in ("UUDP_LEDGER", "UUDP_CACHE", "RAY_ADDRESS", *KEYS):
            environment.pop(name, None)
        options = [
            "--head", "--block", "--port=0", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2",
            "--include-dashboard=true", "--disable-usage-stats", f"--temp-dir={self.temp}",
            "--object-store-memory=100000000", f"--metrics-export-port={metrics}",
        ]  # fmt: skip
        said = self.folder / "ray.txt"
        with said.open("wb") as out:
            command = [sys.executable, "-c", START, *options]
            self.popen = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        self.known: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < deadline, said.read_text()
            assert self.popen.poll() is None, said.read_text()
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
        stopped = [one for one in self.processes() if "RayTrainWorker" in " ".join(command_of(one))]
        for process in stopped:
            process.suspend()
        yield
        for process in stopped:
            with contextlib.suppress(psutil.Error):  # whoever lost the machine meanwhile
                process.resume()

    def kill(self) -> None:
        """The machine of the head is lost, with all that ran there."""
        left = self.processes()
        self.popen.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.popen.wait()
        psutil.wait_procs(left, timeout=10)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.temp, ignore_errors=True)


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Laptop:
    """A folder with a spec alone; the data lie elsewhere on it, the model on the cluster's storage."""

    def __init__(self, folder: Path, head: RayHead, storage: Path | None = None) -> None:
        """Args: `storage`: the cluster's, where several laptops share it; None: one of its own."""
        self.here, self.storage, self.head = folder / "laptop", storage or folder / "storage", head
        self.here.mkdir(parents=True)
        self.storage.mkdir(exist_ok=True)
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
        found, text = self.try_to(*words)
        assert found == code, text
        return text

    def try_to(self, *words: str) -> tuple[int, str]:
        """The exit code of a command, and what it printed."""
        command = [*COMMAND, *words, "--address", self.head.address]
        done = subprocess.run(
            command, cwd=self.here, env=self.environment, capture_output=True, text=True, timeout=WAIT, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def follow(self, run: str) -> Process:
        folder = self.folder / "following"
        folder.mkdir()
        return Process([*COMMAND, "logs", run, "-f", "--address", self.head.address], folder, self.environment)


# --- several nodes -------------------------------------------------------------------------------------------

NODES = """\
import contextlib, psutil, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
print(cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    if line.startswith("add"):
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        node = nodes.pop()
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        children = raylet.children(recursive=True)
        cluster.remove_node(node, allow_graceful=False)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
    print(len(nodes), flush=True)
cluster.shutdown()
"""
"""A cluster that is told on stdin to take a node more or to lose one; none has any core but those that it adds."""


class Nodes:
    """A cluster in a process of its own. Each node that is added holds one worker."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        environment = {**os.environ, "RAY_TMPDIR": str(folder), "PYTHONPATH": str(launching.ROOT)}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.popen.stdout is not None
        answer = self.popen.stdout.readline().strip()
        assert answer, "the cluster has ended"
        return answer

    def tell(self, what: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(what + "\n")
        self.popen.stdin.flush()
        self._answer()

    def add(self) -> None:
        """A node joins."""
        self.tell("add")

    def lose(self) -> None:
        """The youngest node's processes are killed."""
        self.tell("lose")

    def workers(self) -> list[psutil.Process]:
        """The Ray Train workers that live on the nodes."""
        found = []
        for process in psutil.Process(self.popen.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The run makes no step meanwhile: tiny ones would be over before a node is lost or found."""
        stopped = self.workers()
        for process in stopped:
            process.suspend()
        yield
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.resume()

    def close(self) -> None:
        left = psutil.Process(self.popen.pid).children(recursive=True)
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(30)
        self.popen.kill()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)
