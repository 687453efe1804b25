"""From a folder that holds nothing but the spec to a Ray cluster of its own: submit, follow, stop, resume, fetch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.clusters import KEYS, STEPS, Laptop, RayHead, command_of
from tests.s3 import Store
from tests.tiny import made_posts

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]


def test_submitted_followed_stopped_resumed_and_fetched(tmp_path: Path, s3: Store, head: RayHead) -> None:
    """All of it by the command line, under a token, with private records; prepared, they lie in an object store.

    Breaks: let Ray kill a stopped job after its 3 seconds (`wait` in `Cluster.submit`): it leaves no checkpoint line;
    end `--wait` with 0 whatever the run ended with (`exit_code`): the last command is not refused; let workers look
    for keys in their environment alone (`take_keys`).
    """
    laptop = Laptop(tmp_path, head)
    secrets = laptop.storage / "secrets.env"
    secrets.touch(mode=0o600)
    secrets.write_text("".join(f"{name}={os.environ[name]}\n" for name in KEYS))
    assert "or say --send-data" in laptop.run("submit", "sent.yaml", "--yes", code=2)
    where = f"compute.prepare.store={s3.url('bucket')}"
    begun = laptop.run("submit", "sent.yaml", where, "--yes", "--send-data")
    run = next(line.removeprefix("submitted: ") for line in begun.splitlines() if line.startswith("submitted: "))
    again = ["submit", "sent.yaml", where, "--yes", "--send-data", "--resume", run]
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

    # Workers are started by the interpreter that is named.
    finished = laptop.run(*again, "--wait", "--python", sys.executable)
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

    # The driver wrote them there, and every worker read from there, with keys that they found in the storage.
    assert {line.partition(" ")[0] for line in s3.asked} >= {"PUT", "GET"}
    assert all("Credential=AKIATEST/" in line for line in s3.asked)
    # Neither the token, nor a key, nor a record is where others on the cluster look.
    token, key, words = head.token.read_text(), os.environ[KEYS[1]], made_posts()[3]["text"]
    everywhere = head.get("/api/jobs/") + " ".join(" ".join(command_of(p)) for p in head.processes())
    assert token not in everywhere
    assert key not in everywhere
    for path in head.temp.rglob("*"):
        if path.is_file() and path.suffix not in (".lock",):
            content = path.read_bytes()
            assert words.encode() not in content, path
            assert token.encode() not in content, path
            assert key.encode() not in content, path


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
