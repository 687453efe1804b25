"""The tests' own rules: what is missing is skipped by name, and fails where nothing may be skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BODY = """
import pytest
from conftest import require

def test_needs_something():
    require(False, "a thing was not found")

def test_skips_by_itself():
    pytest.skip("for no reason")

def test_passes():
    require(True, "nothing")
"""


def outcome(folder: Path, **environment: str) -> tuple[int, str]:
    """Runs a small suite under the project's conftest."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder / "conftest.py")
    (folder / "test_it.py").write_text(BODY)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UUDP_", "PYTEST_"))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept | environment, cwd=folder)
    return done.returncode, done.stdout


def test_what_is_missing_is_skipped_and_named(tmp_path: Path) -> None:
    code, output = outcome(tmp_path)
    assert code == 0
    assert "1 passed, 2 skipped" in output
    assert "a thing was not found" in output


def test_nothing_is_skipped_where_all_is_required(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, UUDP_REQUIRE_ALL="1")
    assert code == 1
    assert "1 passed" in output
    assert "2 failed" in output
    assert "skipped, and UUDP_REQUIRE_ALL=1" in output


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "UUDP_CACHE"])
def test_the_suite_has_its_environment(name: str) -> None:
    assert os.environ[name]
