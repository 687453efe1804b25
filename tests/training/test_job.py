"""What workers are told, and where things lie."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import MachineError
from harness.training.job import Failure, Folder, Job
from tests.tiny import make_mechanism


def test_a_job_is_read_back_as_it_was(new_run: Callable[..., Path]) -> None:
    run_dir = new_run(mechanism=make_mechanism(noise_std=0.25))
    job = Job.load(run_dir)
    assert job.mechanism == make_mechanism(noise_std=0.25)
    assert job.mechanism.digest == make_mechanism(noise_std=0.25).digest
    assert job.epsilon_by_step == ((0, 0.0), (1, 0.1), (2, 0.2), (3, pytest.approx(0.3)))
    again = dataclasses.replace(job, device="cuda", mechanism=job.mechanism.without_privacy())
    again.save(run_dir)
    assert Job.load(run_dir) == again
    assert math.isinf(Job.load(run_dir).mechanism.groups[0].clip_norm)


def test_its_file_is_private_and_holds_no_key(new_run: Callable[..., Path]) -> None:
    """Broken by writing it with the usual mode: it names the data's place."""
    run_dir = new_run(key=b"k" * 32)
    path = Folder(run_dir).private / "job.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "kkkk" not in path.read_text()
    assert b"k".hex() * 32 not in path.read_text()
    assert Folder(run_dir).key.read_bytes() == b"k" * 32


def test_the_spent_epsilon_is_never_too_small(new_run: Callable[..., Path]) -> None:
    """Between two points of the curve, the later one counts. Broken by the earlier one."""
    job = Job.load(new_run(mechanism=make_mechanism(steps=3, noise_std=1.0)))
    job = dataclasses.replace(job, epsilon_by_step=((0, 0.0), (5, 1.0), (10, 1.5)))
    assert [job.epsilon_after(t) for t in (0, 1, 5, 6, 10)] == [0.0, 1.0, 1.0, 1.5, 1.5]


def test_a_run_without_privacy_has_no_epsilon(new_run: Callable[..., Path]) -> None:
    assert Job.load(new_run()).epsilon_after(1) is None


def test_a_failure_is_left_for_the_driver(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    assert Failure.load(tmp_path) is None
    Failure("no more disk", 4).save(tmp_path)
    assert Failure.load(tmp_path) == Failure("no more disk", 4)
    written = {"message": "no more disk", "exit_code": 4, "stuck": False}
    assert json.loads(Folder(tmp_path).failure.read_text()) == written
    assert stat.S_IMODE(Folder(tmp_path).failure.stat().st_mode) == 0o600


def test_everything_private_lies_in_the_private_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    private = [folder.key, folder.members, folder.progress, folder.failure, folder.stop, folder.checkpoints("private")]
    private += [folder.canaries, folder.observed]
    assert all(p.is_relative_to(folder.private) for p in private)
    assert not any(p.is_relative_to(folder.private) for p in (folder.metrics, folder.adapter))


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"spec": {}}', "\x00"])
def test_a_damaged_job_is_one_line(text: str, tmp_path: Path) -> None:
    """Break: let what json and the models raise through."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "job.json").write_text(text)
    with pytest.raises(MachineError, match=r"job\.json is damaged") as caught:
        Job.load(tmp_path)
    assert "\n" not in str(caught.value)
