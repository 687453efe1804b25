"""What comes back: released files alone, each as it left."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import fetching, sending
from harness.cluster.client import JobInfo
from harness.cluster.fetching import fetch, received
from harness.cluster.sending import MARK, digest, send
from harness.errors import ArgumentError, MachineError

RUN = "20260101-100000-aaaaaa"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    root = tmp_path / "storage" / "runs" / "mails" / RUN
    (root / "private").mkdir(parents=True)
    (root / "private" / "key").write_text("secret")
    (root / "adapter").mkdir()
    (root / "adapter" / "weights").write_bytes(bytes(range(256)) * 300)
    (root / "privacy.json").write_text("{}")
    (root / ".half").write_text("half")
    (root / "link").symlink_to(root / "private" / "key")
    (root / "linked").symlink_to(root / "private")
    return tmp_path / "storage"


def job(storage: Path, **changes: str) -> JobInfo:
    return JobInfo(RUN, "RUNNING", metadata={"folder": f"runs/mails/{RUN}", "storage": str(storage), **changes})


def there(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


RELEASED = {"adapter/weights", "privacy.json"}


def test_a_storage_that_is_seen_is_copied(storage: Path, tmp_path: Path) -> None:
    """Break: copy the whole tree; follow links."""
    cluster: Any = None
    folder, count = fetch(cluster, job(storage), tmp_path / "runs", "python")
    assert (folder, count) == (tmp_path / "runs" / "mails" / RUN, 2)
    assert there(folder) == RELEASED
    assert (folder / "adapter/weights").read_bytes() == bytes(range(256)) * 300
    with pytest.raises(ArgumentError, match="is the cluster's own folder"):
        fetch(cluster, job(storage), storage / "runs", "python")


def test_a_job_prints_released_files_alone(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: enter private/; follow links."""
    assert send(storage / "runs" / "mails" / RUN) == 0
    text = "something of Ray's\n" + capsys.readouterr().out
    found = dict(received(text))
    assert set(found) == RELEASED
    assert found["adapter/weights"] == bytes(range(256)) * 300
    assert "secret" not in text


def test_of_a_suite_no_private_folder_is_sent(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: leave out the topmost private/ alone."""
    assert send(storage / "runs") == 0
    assert {name.partition(RUN + "/")[2] for name, _ in received(capsys.readouterr().out)} == RELEASED


def test_too_much_for_a_log(storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LARGEST", 1000)
    assert send(storage / "runs" / "mails" / RUN) == 4
    assert "too much for a job's log" in capsys.readouterr().out
    assert send(storage / "nothing") == 2


def message(files: list[Any], content: bytes) -> str:
    text = base64.b64encode(zlib.compress(content)).decode()
    return f"{MARK}{json.dumps(files)}\n{MARK}{text}\n{MARK}\n"


GOOD = ["a", 3, digest(b"abc")]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (message([["a", 3, digest(b"abd")]], b"abc"), "did not arrive as it was sent"),
        (message([["a", 2, digest(b"ab")]], b"abc"), "not whole"),
        (message([["../a", 3, digest(b"abc")]], b"abc"), "no run releases"),
        (message([["/a", 3, digest(b"abc")]], b"abc"), "no run releases"),
        (message([["private/a", 3, digest(b"abc")]], b"abc"), "no run releases"),
        (message([GOOD], b"abc").rsplit(MARK, 1)[0], "not whole"),
        (f"{MARK}nonsense\n{MARK}x\n{MARK}\n", "not whole"),
        ("", "not whole"),
    ],
)
def test_what_is_wrong_is_not_written(text: str, wrong: str) -> None:
    """Break: trust names; compare no digest."""
    with pytest.raises(MachineError, match=wrong):
        received(text)
    assert dict(received(message([GOOD], b"abc"))) == {"a": b"abc"}


def test_a_bomb_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: decompress whatever comes."""
    monkeypatch.setattr(fetching, "LARGEST", 1000)
    with pytest.raises(MachineError, match="not whole"):
        received(message([["a", 10**7, digest(bytes(10**7))]], bytes(10**7)))


@pytest.mark.parametrize("folder", ["", "runs", "runs/../x", "/etc/x", "other/mails/x", "runs/a/b/c"])
def test_others_can_say_anything_of_their_jobs(storage: Path, tmp_path: Path, folder: str) -> None:
    """Break: take a job's folder as it is."""
    cluster: Any = None
    with pytest.raises(ArgumentError, match="was not submitted by uudp"):
        fetch(cluster, job(storage, folder=folder), tmp_path / "runs", "python")


def test_a_place_that_can_t_be_written_is_one_line(storage: Path, tmp_path: Path) -> None:
    """Break: let the system's error out."""
    (tmp_path / "runs").write_text("a file")
    cluster: Any = None
    with pytest.raises(MachineError, match=r"^the folder .*runs/mails/\S+ can't be used: "):
        fetch(cluster, job(storage), tmp_path / "runs", "python")
