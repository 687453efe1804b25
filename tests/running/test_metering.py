"""What is exported to Prometheus: what was released, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from harness.running.metering import TAGS, Metered, metered
from harness.running.watching import Observer

Set = tuple[str, float, dict[str, str]]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Set]:
    import ray
    from ray.util import metrics

    found: list[Set] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description.isascii()  # Ray takes nothing else
            assert tag_keys == TAGS
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            found.append((self.name, value, tags))

    monkeypatch.setattr(metrics, "Gauge", Gauge)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return found


class Told(Observer):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def released(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


ROW = {"series": "private", "step": 4, "epsilon": 2.5, "eval/loss": 4.25, "eval/loss/free": 4.5, "words": "x"}


def test_three_released_numbers(exported: list[Set]) -> None:
    """Break: export every number of a row, or progress between released steps."""
    told = Told()
    one = Metered(told, "mails", "20260101-100000-aaaaaa")
    one.released(ROW)
    one.released({"series": "ordinary", "step": 8, "epsilon": None, "eval/loss": float("nan")})
    own = {"name": "mails", "run": "20260101-100000-aaaaaa"}
    assert exported == [
        ("uudp_step", 4.0, {**own, "series": "private"}),
        ("uudp_epsilon_spent", 2.5, {**own, "series": "private"}),
        ("uudp_eval_loss", 4.25, {**own, "series": "private"}),
        ("uudp_step", 8.0, {**own, "series": "ordinary"}),
    ]
    assert len(told.rows) == 2


def test_a_ray_that_is_not_well_stops_nothing(exported: list[Set], monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: let its error through."""
    import ray

    def fails() -> bool:
        raise RuntimeError("gone")

    monkeypatch.setattr(ray, "is_initialized", fails)
    told = Told()
    Metered(told, "mails", "x").released(ROW)
    assert told.rows == [ROW]
    assert exported == []


def test_only_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break: export always."""
    told = Told()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert metered(told, "mails", "x") is told
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert isinstance(metered(told, "mails", "x"), Metered)
