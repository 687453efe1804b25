"""The script that begins a job on the cluster, run as Ray runs it, with another uudp or none in the way."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import environment, errors
from harness.cluster import begin

HARNESS = """\
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "here": os.getcwd(), "ledger": os.environ["UUDP_LEDGER"],
    "cache": os.environ["UUDP_CACHE"], "ray": json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]),
    "token": os.environ.get("HF_TOKEN"), "submitted": os.environ["UUDP_SUBMITTED"]}))
sys.exit(3)
"""


class Place:
    """What Ray unpacked, a storage, and an installed `harness` of a version."""

    def __init__(self, folder: Path, version: str | None) -> None:
        self.bundle, self.storage, self.installed = folder / "bundle", folder / "storage", folder / "installed"
        for path in (self.bundle / "data", self.storage, self.installed):
            path.mkdir(parents=True)
        shutil.copyfile(begin.__file__, self.bundle / "uudp_job.py")
        (self.bundle / "data" / "posts.jsonl").write_text("private words")
        (self.bundle / "spec.yaml").write_text("")
        job = {"uudp": "1.2.3", "id": "20260101-100000-aaaaaa", "storage": str(self.storage)}
        self.tell(**job, arguments=["harness", "run", "spec.yaml"])
        if version is not None:
            (self.installed / "harness").mkdir()
            (self.installed / "harness" / "__init__.py").write_text(f"__version__ = {version!r}")
            (self.installed / "harness" / "__main__.py").write_text(HARNESS)
            for module in (environment, errors):
                shutil.copy(str(module.__file__), self.installed / "harness")

    def tell(self, **job: Any) -> None:
        (self.bundle / "job.json").write_text(json.dumps(job))

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        config = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"A": "1"}}, "metadata": {"b": "2"}}
        variables = {
            "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(self.bundle), str(self.installed)]),
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(config), **variables,
        }  # fmt: skip
        command = [sys.executable, "-S", "uudp_job.py"]
        return subprocess.run(command, cwd=self.bundle, env=variables, capture_output=True, text=True, check=False)


def test_it_moves_what_was_sent_and_becomes_the_command(tmp_path: Path) -> None:
    """Break: leave the data where Ray unpacked them; make them readable for others."""
    place = Place(tmp_path, "1.2.3")
    done = place.run()
    assert done.returncode == 3, done.stderr
    first, said = done.stdout.splitlines()
    assert first == f"uudp 1.2.3 on the cluster, in {place.storage}"
    found = json.loads(said)
    moved = place.storage / "submitted" / "20260101-100000-aaaaaa"
    assert found["arguments"] == ["run", "spec.yaml"]
    assert found["here"] == str(moved)
    assert found["ledger"] == f"sqlite:///{place.storage}/ledger.db"
    assert found["cache"] == f"{place.storage}/cache"
    assert found["ray"]["metadata"] == {"b": "2"}
    told = {"PYTHONPATH": f"{moved}:${{PYTHONPATH}}", "UUDP_SECRETS": f"{place.storage}/secrets.env"}
    assert found["ray"]["runtime_env"] == {"env_vars": {"A": "1", **told}}
    assert (moved / "data" / "posts.jsonl").read_text() == "private words"
    assert sorted(path.name for path in place.bundle.iterdir() if path.name != "__pycache__") == [
        "job.json",
        "uudp_job.py",
    ]
    for path in (moved, moved.parent, moved / "data", moved / "data" / "posts.jsonl"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("1.2.4", "uudp: the cluster has uudp 1.2.4, and this was submitted by uudp 1.2.3: install the same on both"),
        (None, 'uudp: the cluster has no uudp for {python}: pip install "uudp[train]==1.2.3" there'),
    ],
)
def test_another_version_touches_nothing(tmp_path: Path, version: str | None, line: str) -> None:
    """Break: compare after moving; leave the data where Ray unpacked them, for everybody's eyes."""
    place = Place(tmp_path, version)
    done = place.run()
    assert (done.returncode, done.stdout) == (4, line.format(python=sys.executable) + "\n")
    assert list(place.storage.iterdir()) == []
    assert {path.name for path in place.bundle.iterdir()} - {"__pycache__"} == {"job.json", "uudp_job.py"}


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    """Break: make it, on a disk that goes with the machine."""
    place = Place(tmp_path, "1.2.3")
    shutil.rmtree(place.storage)
    done = place.run()
    assert done.returncode == 4
    assert done.stdout == f"uudp: compute.storage: there is no folder {place.storage} on the cluster\n"
    assert not place.storage.exists()


def test_secrets_come_from_the_storage_and_are_not_shown(tmp_path: Path) -> None:
    """Break: read a file that others read too; let it win over what the cluster sets."""
    place = Place(tmp_path, "1.2.3")
    path = place.storage / "secrets.env"
    path.write_text("# of the hub\nHF_TOKEN=hf_abc\nUUDP_LEDGER=postgresql://me:pw@db/ledger\n")
    path.chmod(0o644)
    done = place.run()
    assert (done.returncode, done.stdout) == (4, f"uudp: {path} must be yours alone: chmod 600\n")
    path.chmod(0o600)
    found = json.loads(place.run().stdout.splitlines()[1])
    assert found["token"] == "hf_abc"
    assert found["ledger"] == "postgresql://me:pw@db/ledger"
    assert "hf_abc" not in json.dumps(found["ray"])
    place.tell(uudp="1.2.3", id="20260101-100000-bbbbbb", storage=str(place.storage), arguments=["harness"])
    assert json.loads(place.run(HF_TOKEN="own").stdout.splitlines()[1])["token"] == "own"


@pytest.mark.parametrize("kind", ["a dangling link", "a loop", "a folder"])
def test_secrets_that_can_not_be_read_are_never_passed_over(tmp_path: Path, kind: str) -> None:
    """The default ledger would be charged instead. Break: take whatever fails for a file that is not there."""
    place = Place(tmp_path, "1.2.3")
    path = place.storage / "secrets.env"
    if kind == "a folder":
        path.mkdir(mode=0o700)
    else:
        path.symlink_to("/nowhere/secrets.env" if kind == "a dangling link" else path)
    done = place.run()
    assert done.returncode == 4
    assert done.stdout.startswith(f"uudp: {path} can't be read (")
    assert not done.stderr
    assert not (place.bundle / "data").exists()


@pytest.mark.parametrize(
    "line", ["export UUDP_LEDGER=postgresql://db/x", "postgresql://db/x", "=x", "A=\0", "\udcff=x"]
)
def test_a_secret_that_is_no_line_of_its_own_is_never_passed_over(tmp_path: Path, line: str) -> None:
    """The default ledger would be charged instead of the one that it names. Break: take what stands before `=`."""
    place = Place(tmp_path, "1.2.3")
    path = place.storage / "secrets.env"
    path.write_bytes(b"# x\n\n" + line.encode(errors="surrogateescape"))
    path.chmod(0o600)
    done = place.run()
    assert (done.returncode, done.stdout) == (4, f"uudp: {path}: line 3 is not NAME=value (without export)\n")
    assert not done.stderr


def test_a_job_that_the_head_has_forgotten_is_begun_beside_it(tmp_path: Path) -> None:
    """Ray may give an id twice when its head was restarted. Break: make the folder as if it could not be there."""
    place = Place(tmp_path, "1.2.3")
    own = place.storage / "submitted" / "20260101-100000-aaaaaa"
    own.mkdir(parents=True)
    assert json.loads(place.run().stdout.splitlines()[1])["here"] == f"{own}.2"


def test_a_ledger_that_goes_with_the_machine_is_refused(tmp_path: Path) -> None:
    """By default the cluster's UUDP_LEDGER is charged. Break: take it as it is; say it."""
    place = Place(tmp_path, "1.2.3")
    job = {"uudp": "1.2.3", "id": "20260101-100000-aaaaaa", "storage": str(place.storage), "arguments": ["harness"]}
    place.tell(**job, default_ledger=True)
    for url in ("sqlite:////root/secret.db", f"sqlite:///{place.storage}/../secret.db", "sqlite:///~/secret.db"):
        done = place.run(UUDP_LEDGER=url, HOME="/root")
        assert done.returncode == 4
        assert done.stdout.startswith("uudp: UUDP_LEDGER on the cluster names an sqlite: file that is not in ")
        assert "secret" not in done.stdout
    place.tell(**job, default_ledger=False)
    assert place.run(UUDP_LEDGER="sqlite:////root/secret.db").returncode == 3
    place.tell(**{**job, "id": "20260101-100000-bbbbbb"}, default_ledger=True)
    assert place.run(UUDP_LEDGER=f"sqlite:///{place.storage}/other.db").returncode == 3


def test_workers_are_started_by_the_interpreter_that_was_named(tmp_path: Path) -> None:
    """Break: leave them to the one that Ray runs in."""
    place = Place(tmp_path, "1.2.3")
    job = {"uudp": "1.2.3", "storage": str(place.storage), "arguments": ["harness"]}
    place.tell(**job, id="20260101-100000-aaaaaa", named_python=True)
    assert json.loads(place.run().stdout.splitlines()[1])["ray"]["runtime_env"]["py_executable"] == sys.executable
