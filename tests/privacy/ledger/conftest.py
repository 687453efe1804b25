from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.privacy.ledger import Ledger, Request

BOTH = [pytest.param("sqlite", id="sqlite"), pytest.param("postgresql", marks=pytest.mark.postgres, id="postgresql")]


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, on either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/books/ledger.db"
    return str(request.getfixturevalue("postgres_server").new_database())


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url)


@pytest.fixture
def asking() -> Callable[..., Request]:
    """A request of a run, on the data set `posts` unless told otherwise."""

    def make(run: str, epsilon: float = 1.0, delta: float = 1e-6, **more: object) -> Request:
        fields = {"data_set": "posts", "steps": 10, "mechanism": "d" * 64, "spec": "tiny", **more}
        return Request(run, epsilon=epsilon, delta=delta, **fields)

    return make
