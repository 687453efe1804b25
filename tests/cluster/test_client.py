"""The job server's client: whose address wins, and one line for whatever goes wrong."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness.cluster.client import Cluster, JobInfo, server
from harness.cluster.listing import _SPENT
from harness.errors import ArgumentError, MachineError


class Server(http.server.ThreadingHTTPServer):
    """Answers like a job server, as far as it is told."""

    answers: dict[str, tuple[int, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        code, body = self.server.answers.get(self.path, (404, "not there"))  # type: ignore[attr-defined]
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def jobs() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}
    found.answers = {"/api/version": (200, version)}
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def test_the_address_that_was_given_wins(jobs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client prefers its variables. Break: leave them in place."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Cluster(server(jobs.url)).ray == "2.60.0"
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"
    assert server(None) == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("head:8265", "must be the address"),
        ("ray://head:10001", "must be the address"),
        ("http://", "must be the address"),
        ("http://me:secret@head:8265", "holds a password"),
        ("http://head:99999", "can't be read"),
        ("http://head:8265?token=1", "must be the address"),
    ],
)
def test_addresses(given: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"--address: {message}") as caught:
        server(given)
    assert "secret" not in str(caught.value)


def test_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ArgumentError, match="--address: must be given"):
        server(None)


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(MachineError, match=r"^the job server at http://127.0.0.1:9 does not answer$"):
        Cluster("http://127.0.0.1:9")


def test_a_server_that_never_answers_is_given_up(jobs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client waits for ever. Break: no timeout."""
    monkeypatch.setattr("harness.cluster.client.SECONDS", (0.3, 0.3))
    waiting = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: waiting.wait(5))
    with pytest.raises(MachineError, match="took too long to answer"):
        Cluster(jobs.url)
    waiting.set()


def test_another_ray_is_refused(jobs: Server) -> None:
    """Break: look at nothing but whether it answers."""
    for version in ("2.9.3", "3.1.0"):
        jobs.answers["/api/version"] = (200, {"ray_version": version, "version": "4"})
        with pytest.raises(MachineError, match=f"runs Ray {version}; uudp needs"):
            Cluster(jobs.url)


def test_a_token_is_asked_for(jobs: Server) -> None:
    jobs.answers["/api/version"] = (401, "Unauthorized: Missing authentication token")
    with pytest.raises(MachineError, match="wants a token: set RAY_AUTH_MODE=token"):
        Cluster(jobs.url)


def test_a_job_that_is_not_there(jobs: Server) -> None:
    with pytest.raises(ArgumentError, match="there is no job 20260101 at"):
        Cluster(jobs.url).info("20260101")


def test_only_jobs_of_ours_are_listed(jobs: Server) -> None:
    """Others can say anything of theirs. Break: list all; trust what a job says of its run."""

    def one(name: str, metadata: dict[str, str]) -> dict[str, Any]:
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": "RUNNING",
            "entrypoint": "x",
            "metadata": metadata,
        }

    ours, run = {"uudp": "0.1.0", "run": "20260101-100000-aaaaaa"}, "20260101-100000-aaaaaa"
    jobs.answers["/api/jobs/"] = (
        200,
        [
            one(run, ours), one(f"{run}-r1", ours), one("b", {}), one("c", {"uudp-fetch": "0.1.0"}),
            one("d", {"uudp": "0.1.0"}), one("20260101-100000-bbbbbb", ours), one("e", {**ours, "run": "../../x"}),
            one(f"{run}-rx", ours), one(f"{run}-r1\n", ours),
        ],
    )  # fmt: skip
    assert [job.id for job in Cluster(jobs.url).jobs()] == [run, f"{run}-r1"]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0), ("STOPPED", None, 130), ("FAILED", 3, 3), ("FAILED", 130, 130), ("FAILED", None, 4),
        ("FAILED", 127, 4),
    ],
)  # fmt: skip
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    assert JobInfo("x", status, code).exit_code == expected


@pytest.mark.parametrize(
    "log",
    [
        "private step 2: ε spent 1.500, hold-out loss 4.2\nuudp: stopped",
        '{"level": "info", "message": "private step 2: ε spent 1.500, hold-out loss 4.2", "released": {"step": 2}}',
    ],
)
def test_what_was_spent_is_read_from_plain_and_structured_lines(log: str) -> None:
    """Break: look for plain lines alone."""
    assert _SPENT.findall("Running\n" + log) == ["1.500"]
