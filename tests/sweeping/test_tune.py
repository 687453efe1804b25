"""What Ray Tune leaves on the machine while a search goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.sweeping.tune import _closed_artifacts


def _node(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(get_session_dir_path=lambda: str(session)))


@pytest.mark.parametrize("made_before", [True, False])
def test_tunes_record_of_all_trials_is_closed_and_not_kept(
    made_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many trials there were could be counted there. Break: the folder's mode 0755; no removal after an error."""
    _node(tmp_path, monkeypatch)
    record = tmp_path / "artifacts"
    if made_before:
        record.mkdir(mode=0o755)
    closed = _closed_artifacts(True)
    closed.__enter__()
    assert record.stat().st_mode & 0o777 == 0o700
    (record / "trial-1").mkdir()
    stopped = KeyboardInterrupt()
    assert not closed.__exit__(KeyboardInterrupt, stopped, None)
    assert not record.exists()


def test_the_record_of_somebody_elses_ray_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' trials are in there as well. Break: `ours` ignored."""
    _node(tmp_path, monkeypatch)
    record = tmp_path / "artifacts"
    record.mkdir(mode=0o755)
    with _closed_artifacts(False):
        assert record.stat().st_mode & 0o777 == 0o755
    assert record.exists()
