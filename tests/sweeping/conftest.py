"""A sweep's workplace, for tests that go through it without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching import Workplace
from tests.sweeping.trained import made_place, quick


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """A spec with a search, its data and a tiny model; the current folder is above it."""
    found = made_place(tmp_path / "place")
    monkeypatch.setenv("UUDP_CACHE", found.environment["UUDP_CACHE"])
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    yield found
    found.clean()
