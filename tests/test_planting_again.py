"""Canaries of a run that is gone on with: the very same as before, whatever became of their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.data import canaries
from harness.errors import ArgumentError, MachineError
from harness.planning import Plan, make_plan
from harness.privacy.randomness import create_key
from harness.running.planting import plant
from harness.training.job import Folder
from harness.training.model import Base, find_base
from tests.launching import Workplace
from tests.tiny import KEY

AUDIT = {"one_run": {"canaries": 40}, "extraction": {"secrets": 4}}


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Plan, Base, Folder]:
    place = Workplace(tmp_path / "place", blocks={"audit": AUDIT})
    plan = make_plan(str(place.spec))
    folder = Folder(tmp_path / "run")
    folder.private.mkdir(parents=True)
    create_key(folder.key, KEY)
    base = find_base(str(place.base), tmp_path, tmp_path)
    plant(plan, base, folder)
    return plan, base, folder


def test_removed_they_are_drawn_again_and_left_alone_they_stay(planted: tuple[Plan, Base, Folder]) -> None:
    """Break: any draw of theirs that is not a function of the key."""
    plan, base, folder = planted
    before, made = folder.canaries.read_bytes(), folder.canaries.stat().st_mtime_ns
    assert len(canaries.load(folder.canaries)) == 44
    plant(plan, base, folder)
    assert folder.canaries.stat().st_mtime_ns == made
    folder.canaries.unlink()
    plant(plan, base, folder)
    assert folder.canaries.read_bytes() == before


@pytest.mark.parametrize("what", ["included", "code", "examples"])
def test_edited_they_are_refused(planted: tuple[Plan, Base, Folder], what: str) -> None:
    """Another user would be in the steps that are left, and the audit would judge by another truth.

    Break: `plant` that returns where there is a file.
    """
    plan, base, folder = planted
    document = json.loads(folder.canaries.read_text())
    last = document["canaries"][-1]
    last[what] = {"included": not last["included"], "code": "000000", "examples": [[1, 2, 3]]}[what]
    folder.canaries.write_text(json.dumps(document))
    with pytest.raises(ArgumentError, match="are not those that the run's key draws"):
        plant(plan, base, folder)
    folder.canaries.write_text(folder.canaries.read_text()[:-9])
    with pytest.raises(MachineError, match="are missing or damaged"):
        plant(plan, base, folder)
