"""Checkpoints are whole or absent, checked when read, few, owner-only, and without pickle."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import MachineError
from harness.training import checkpoints, gathered
from harness.training.checkpoints import Checkpoint, load_newest, save
from harness.training.initial import digest_of

FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json", "sha256.json")


def made(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4, generator=generator), "b.weight": torch.randn(2, 2, generator=generator)}
    state = {f"exp_avg/{n}": torch.randn(v.shape, generator=generator) for n, v in weights.items()}
    rows = tuple(
        {"series": "private", "step": s, "epsilon": 0.1 * s, "eval/loss": 1 / (s + 1)} for s in range(step + 1)
    )
    return Checkpoint(step, weights, state, 7 + step, rows, "initial")


def assert_equal(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert replace(found, parameters={}, optimizer={}) == replace(expected, parameters={}, optimizer={})
    for one, other in ((found.parameters, expected.parameters), (found.optimizer, expected.optimizer)):
        assert set(one) == set(other)
        assert all(torch.equal(one[n], other[n]) for n in other)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "checkpoints" / "private"
    assert load_newest(folder) is None
    save(folder, made(3))
    assert_equal(load_newest(folder), made(3))


def test_the_first_checkpoint_has_no_optimizer_state(tmp_path: Path) -> None:
    first = replace(made(0), optimizer={}, optimizer_steps=0)
    save(tmp_path, first)
    assert_equal(load_newest(tmp_path), first)


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (0, 9, 10, 99, 100):
        save(tmp_path, made(step))
        assert_equal(load_newest(tmp_path), made(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000099", "step-00000100"]


class Crash(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("kind", ["replace", "fsync", "mkdir"])
def test_a_crash_while_saving_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: int
) -> None:
    """Broken by writing into the final place."""
    save(tmp_path, made(1))
    calls = 0
    real = getattr(os, kind)

    def crash(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, kind, crash)
        try:
            save(tmp_path, made(2))
        except Crash:
            assert_equal(load_newest(tmp_path), made(1))
        else:
            assert_equal(load_newest(tmp_path), made(2))  # it makes no so many calls
    save(tmp_path, made(2))
    assert_equal(load_newest(tmp_path), made(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "zeroed", "removed", "flipped"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    """Broken by trusting the files: half a checkpoint would be resumed from."""
    save(tmp_path, made(1))
    save(tmp_path, made(2))
    path = tmp_path / "step-00000002" / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "flipped":
        # One digit of a released number or of a digest, one bit of a weight: nobody would see it.
        old, new = (
            (b"0.3333", b"0.3334")
            if name == "state.json"
            else (content[-9:-6], bytes([content[-9] ^ 1, *content[-8:-6]]))
        )
        assert old in content
        path.write_bytes(content.replace(old, new))
    else:
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "emptied": b"", "zeroed": bytes(len(content))}[damage]
        )
    assert_equal(load_newest(tmp_path), made(1))


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"step": 2}', '"text"'])
@pytest.mark.parametrize("name", ["state.json", "sha256.json"])
def test_a_document_that_is_something_else_is_passed_over(tmp_path: Path, name: str, content: str) -> None:
    save(tmp_path, made(1))
    save(tmp_path, made(2))
    (tmp_path / "step-00000002" / name).write_text(content)
    assert_equal(load_newest(tmp_path), made(1))


def test_the_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    """Broken by leaving out a mode: weights before noise was averaged out, and metrics before their release."""
    before = os.umask(0)
    try:
        save(tmp_path / "new", made(1))
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "step-00000001"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new", folder)] == [0o700, 0o700]
    files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    assert files == dict.fromkeys(
        ("parameters.safetensors", "optimizer.safetensors", "state.json", "sha256.json"), 0o600
    )


def test_loading_runs_no_pickle(tmp_path: Path) -> None:
    """Broken by torch.load: whoever can write a checkpoint could run code."""
    save(tmp_path, made(1))
    assert {p.suffix for p in (tmp_path / "step-00000001").iterdir()} == {".safetensors", ".json"}
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "from harness.training.checkpoints import load_newest\n"
        "import torch, safetensors.torch\n"
        "def refuse(*a, **k): raise SystemExit(3)\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        f"sys.exit(0 if load_newest(Path({str(tmp_path)!r})).step == 1 else 1)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# --- more than one file takes -------------------------------------------------------------------------------

MANY = (
    "parameters.safetensors",
    "parameters-00002.safetensors",
    "optimizer.safetensors",
    "optimizer-00002.safetensors",
)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two weights in a file of its own: the first is as large as one may be."""
    monkeypatch.setattr(gathered, "FILE_BYTES", 48)


@pytest.mark.usefixtures("small_files")
def test_what_is_saved_in_many_files_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, made(3))
    folder = tmp_path / "step-00000003"
    assert {p.name for p in folder.iterdir()} == {*MANY, "state.json", "sha256.json"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    assert_equal(load_newest(tmp_path), made(3))


def test_a_part_holds_no_more_than_a_file_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a weight that is larger by itself. Each is looked up once, in order."""
    monkeypatch.setattr(gathered, "FILE_BYTES", 40)
    sizes = {"a": 4, "b": 6, "c": 1, "d": 30, "e": 2, "f": 0}
    asked: list[str] = []

    def gather(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.full((sizes[name],), 2.0, dtype=torch.float64)

    tensors = gathered.Gathered(list(sizes), gather)
    parts = [{n: (len(t), t.dtype) for n, t in part.items()} for part in gathered.in_parts(tensors)]
    assert [list(part) for part in parts] == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert {dtype for part in parts for _, dtype in part.values()} == {torch.float32}
    assert asked == list(sizes)
    assert "a" in tensors
    assert "g" not in tensors
    assert asked == list(sizes)
    assert list(gathered.in_parts({})) == [{}]


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "flipped", "forgotten"])
def test_a_damaged_file_of_many_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    """Broken by looking at the first of a kind alone, and by going by a list of digests that lacks a file."""
    save(tmp_path, made(1))
    save(tmp_path, made(2))
    path = tmp_path / "step-00000002" / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "forgotten":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        digests = json.loads((path.parent / "sha256.json").read_text())
        del digests[name]
        (path.parent / "sha256.json").write_text(json.dumps(digests))
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"truncated": content[:-8], "emptied": b"", "flipped": flipped}[damage])
    assert_equal(load_newest(tmp_path), made(1))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_crash_between_files_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Broken by writing into the final place."""
    save(tmp_path, made(1))
    calls = 0
    real = checkpoints._write_part

    def crash(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write_part", crash)
        with pytest.raises(Crash):
            save(tmp_path, made(2))
    assert_equal(load_newest(tmp_path), made(1))
    save(tmp_path, made(2))
    assert_equal(load_newest(tmp_path), made(2))


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_is_full_between_files_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are looked up all the same, since other ranks gather them too. Broken by giving up at once."""
    save(tmp_path, made(1))
    asked: list[str] = []
    later = made(2)

    def gather(name: str) -> torch.Tensor:
        asked.append(name)
        return later.optimizer[name]

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_part", full)
    with pytest.raises(MachineError, match="step-00000002 could not be written: No space left on device"):
        save(tmp_path, replace(later, optimizer=gathered.Gathered(list(later.optimizer), gather)))
    assert asked == list(later.optimizer)
    assert_equal(load_newest(tmp_path), made(1))


def test_a_folder_with_another_steps_name_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, made(1))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009")
    assert_equal(load_newest(tmp_path), made(1))


# --- what a user is told ------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """Files beyond 4 KiB are refused by the system. Broken by catching only Python's own errors of writing."""
    save(tmp_path, made(1))
    large = replace(made(2), parameters={"a.weight": torch.zeros(10_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(MachineError) as caught:
            save(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{tmp_path}/step-00000002 could not be written: ")
    assert "File too large" in str(caught.value)
    assert_equal(load_newest(tmp_path), made(1))


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        save(tmp_path / "file" / "private", made(1))
    where = tmp_path / "file" / "private"
    assert str(caught.value) == f"{where}/step-00000001 could not be written: Not a directory"


def test_the_digest_is_of_names_and_bytes() -> None:
    weights = dict(made(1).parameters)
    digest = digest_of(weights)
    assert digest == digest_of(dict(reversed(weights.items())))
    assert digest != digest_of({**weights, "a.weight": weights["a.weight"] + 1e-7})
    assert digest != digest_of({n + "x": v for n, v in weights.items()})
    assert checkpoints.KEPT == 2
