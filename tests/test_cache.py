"""Where corpora are kept, and how private files are written."""

from __future__ import annotations

import stat
import threading

import pytest

from harness import cache, files
from harness.errors import MachineError


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("UUDP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.default_cache_dir() == tmp_path / ".cache" / "uudp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache.default_cache_dir() == tmp_path / ".cache" / "uudp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_cache_dir() == tmp_path / "xdg" / "uudp"
    monkeypatch.setenv("UUDP_CACHE", "~/mine")
    assert cache.default_cache_dir() == tmp_path / "mine"


def test_the_key_is_random_and_then_stays(tmp_path):
    (tmp_path / "other").mkdir()
    key = cache.secret_key(tmp_path)
    assert len(key) == 32
    assert cache.secret_key(tmp_path) == key
    assert cache.secret_key(tmp_path / "other") != key
    assert stat.S_IMODE((tmp_path / "fingerprint.key").stat().st_mode) == 0o600


def test_all_who_ask_for_the_key_at_once_get_the_same(tmp_path):
    keys, gate = [], threading.Barrier(8)

    def ask():
        gate.wait()
        keys.append(cache.secret_key(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_damaged_key_is_named(tmp_path):
    (tmp_path / "fingerprint.key").write_bytes(b"short")
    with pytest.raises(MachineError, match=r"fingerprint\.key is damaged"):
        cache.secret_key(tmp_path)


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with files.locked(tmp_path / "lock") as first, files.locked(tmp_path / "lock", wait=False) as second:
        assert (first, second) == (True, False)
    with files.locked(tmp_path / "lock", wait=False) as free:
        assert free


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("old and open to all")
    path.chmod(0o644)
    files.write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]
    with pytest.raises(FileExistsError):
        files.create_private(path)
