"""Results in a folder or an object store: pyarrow's own S3 client against a small store, and what may be named."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.cli import submitted
from harness.cluster.client import JobInfo
from harness.cluster.fetching import fetch
from harness.cluster.results import MANIFEST, Results
from harness.cluster.submitting import _arguments
from harness.environment import take_keys
from harness.errors import ArgumentError, MachineError
from harness.places import place_problem
from tests.cluster.conftest import STORAGE, Laptop
from tests.s3 import Store

RUN = "20260101-100000-aaaaaa"
KEPT = PurePosixPath("runs/mails", RUN)
FILES = {"adapter/weights": bytes(range(256)) * 300, "empty": b"", "privacy.json": b"{}"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "storage" / KEPT
    for name, content in {**FILES, "private/key": b"secret", ".half": b"half"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link").symlink_to(root / "private" / "key")
    return root


def test_an_object_store_holds_what_is_released(s3: Store, run: Path) -> None:
    """Break: publish the whole folder; name what is not there yet (the manifest first)."""
    there = Results(s3.url("bucket/team one"), KEPT)
    assert list(there.files()) == []
    assert there.publish(run) == len(FILES)
    assert list(s3.objects)[-1] == f"/bucket/team one/{KEPT}/{MANIFEST}"
    assert set(s3.objects) == {f"/bucket/team one/{KEPT}/{name}" for name in (*FILES, MANIFEST)}
    assert dict(there.files()) == FILES
    assert "secret" not in str(s3.objects)
    assert "hunter2" not in str(s3.asked)


def test_large_files_go_in_parts(s3: Store, run: Path) -> None:
    content = os.urandom(12 * 1024**2)
    (run / "adapter/weights").write_bytes(content)
    there = Results(s3.url("bucket"), KEPT)
    there.publish(run)
    assert any("uploadId" in line for line in s3.asked)
    assert dict(there.files())["adapter/weights"] == content


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_holds_them_too(tmp_path: Path, run: Path, form: str) -> None:
    there = Results(form.format(tmp_path / "nfs"), KEPT)
    assert list(there.files()) == []
    there.publish(run)
    found = {path.relative_to(tmp_path / "nfs" / KEPT).as_posix() for path in (tmp_path / "nfs" / KEPT).rglob("*")}
    assert found - {"adapter"} == {*FILES, MANIFEST}
    assert dict(there.files()) == FILES


def test_what_was_changed_meanwhile_is_seen(s3: Store, run: Path) -> None:
    """Break: compare no digest; believe names."""
    there, place = Results(s3.url("bucket"), KEPT), f"/bucket/{KEPT}"
    there.publish(run)
    s3.objects[f"{place}/privacy.json"] = b"[]"
    with pytest.raises(MachineError, match=r"privacy.json is not what was published"):
        list(there.files())
    s3.objects[f"{place}/{MANIFEST}"] = json.dumps([["../../x", 2, ""]]).encode()
    with pytest.raises(MachineError, match="no run releases"):
        list(there.files())
    s3.objects[f"{place}/{MANIFEST}"] = b"nonsense"
    with pytest.raises(MachineError, match="was not written by uudp"):
        list(there.files())


def test_a_refusal_is_one_line_without_keys(s3: Store, run: Path) -> None:
    """Break: say the client's own message."""
    s3.refused = True
    there = Results(s3.url("bucket"), KEPT)
    for what in (lambda: list(there.files()), lambda: there.publish(run)):
        with pytest.raises(
            MachineError, match=r"^compute.results: s3://bucket can't be (read|written): access denied$"
        ):
            what()


def test_fetch_reads_what_was_published_there(s3: Store, run: Path, tmp_path: Path) -> None:
    """From a laptop that does not see the storage. Break: start a job for it."""
    Results(s3.url("bucket"), KEPT).publish(run)
    metadata = {"folder": str(KEPT), "storage": "/nowhere", "results": s3.url("bucket")}
    cluster: Any = None
    folder, count = fetch(cluster, JobInfo(RUN, "SUCCEEDED", metadata=metadata), tmp_path / "runs", None)
    assert count == len(FILES)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_a_store_that_is_not_reached_leaves_it_to_a_job(s3: Store, tmp_path: Path) -> None:
    """Break: give up."""
    s3.refused = True
    metadata = {"folder": str(KEPT), "storage": "/nowhere", "results": s3.url("bucket")}

    class Jobs:
        def submit(self, *_: Any) -> None:
            raise MachineError("a job was asked")

    cluster: Any = Jobs()
    with pytest.raises(MachineError, match="a job was asked"):
        fetch(cluster, JobInfo(RUN, "SUCCEEDED", metadata=metadata), tmp_path / "runs", None)


@pytest.mark.parametrize("code", [0, 3, 130])
def test_a_submitted_run_publishes_and_ends_with_its_own_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    """Also one that was stopped. Break: publish what has finished alone; end with 0."""
    monkeypatch.setattr("harness.cli.main.run_app", lambda words: code if words == ["run", "spec.yaml"] else 1)
    storage, url = str(tmp_path / "storage"), str(tmp_path / "nfs")
    assert submitted.submitted(url, storage, str(KEPT), ["run", "spec.yaml"]) == code
    assert dict(Results(url, KEPT).files()) == FILES
    assert capsys.readouterr().err == f"copied: {len(FILES)} released files to {url}\n"
    (tmp_path / "file").write_text("")
    assert submitted.submitted(str(tmp_path / "file"), storage, str(KEPT), ["run", "spec.yaml"]) == (code or 4)
    assert f"the files are in {storage}/{KEPT}" in capsys.readouterr().err


def test_what_begins_there(laptop: Laptop) -> None:
    own = laptop.submission(compute={"results": "s3://bucket/x"})
    assert _arguments(own, RUN, Path(STORAGE))[:6] == [
        "harness.cli.submitted", "s3://bucket/x", STORAGE, f"runs/mails/{RUN}", "run", "spec.yaml",
    ]  # fmt: skip
    assert _arguments(laptop.submission(), RUN, Path(STORAGE))[:3] == ["harness", "run", "spec.yaml"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://bucket/x", None),
        ("s3://bucket", None),
        ("s3://bucket/x?region=eu-west-1&endpoint_override=minio:9000&scheme=http", None),
        ("/mnt/results", None),
        ("file:///mnt/results", None),
        ("s3://AKIA:hunter2@bucket/x", "holds a key"),
        ("s3://bucket/x?secret_key=hunter2", "found secret_key"),
        ("s3://bucket/x?endpoint_override=http://me:hunter2@h", "endpoint_override must be"),
        ("s3://bucket/x?scheme=hunter2", "scheme must be"),
        ("s3://bucket/../x", "can't hold .."),
        ("s3://bucket/%2e%2e/x", "can't hold .."),
        ("s3:///x", "must be s3://BUCKET"),
        ("gs://bucket/x", "must be s3://BUCKET"),
        ("file://host/x", "must be s3://BUCKET"),
        ("results", "must be s3://BUCKET"),
        ("/", "must be s3://BUCKET"),
        ("s3://bucket/x#y", "holds blanks"),
        ("s3://[x/", "can't be read"),
    ],
)
def test_urls(url: str, problem: str | None) -> None:
    """What is wrong is said without the URL, which may hold a key."""
    found = place_problem(url)
    assert (found is None) if problem is None else (found is not None and problem in found)
    assert "hunter2" not in (found or "")
    if problem:
        with pytest.raises(ArgumentError, match=r"compute.results: "):
            Results(url, KEPT)


def test_workers_take_keys_of_object_stores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks: take every secret; or one part of a key beside another's."""
    path = tmp_path / "secrets.env"
    key = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SESSION_TOKEN": "theirs"}
    others = {"AWS_REGION": "theirs", "UUDP_LEDGER": "sqlite:///x"}
    path.write_text("".join(f"{name}={value}\n" for name, value in (key | others).items()))
    path.chmod(0o600)
    for own, taken in (({"AWS_SECRET_ACCESS_KEY": "own"}, {}), ({}, key), ({"AWS_REGION": "own"}, key)):
        told = {"UUDP_SECRETS": str(path), **own}
        monkeypatch.setattr(os, "environ", dict(told))
        take_keys()
        assert os.environ == {"AWS_REGION": "theirs", **told, **taken}
    path.chmod(0o644)
    with pytest.raises(MachineError, match="must be yours alone"):
        take_keys()
