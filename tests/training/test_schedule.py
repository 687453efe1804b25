"""The learning rate of every step."""

from __future__ import annotations

from typing import Any

import pytest

from harness.spec.models import OptimizerBlock, ScheduleBlock, TrainBlock
from harness.training.schedule import learning_rate


def rates(steps: int, **schedule: Any) -> list[float]:
    train = TrainBlock(steps=steps, optimizer=OptimizerBlock(lr=2.0), schedule=ScheduleBlock(**schedule))
    return [learning_rate(train, step) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [2, 2, 2, 2]),
        ({"warmup": 2}, [1, 2, 2, 2]),
        ({"type": "linear"}, [2, 1.5, 1, 0.5]),
        ({"type": "linear", "warmup": 2}, [1, 2, 2, 1]),
        ({"type": "cosine"}, [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5]),
        ({"type": "cosine", "warmup": 3}, [2 / 3, 4 / 3, 2, 2]),
    ],
)
def test_it_rises_and_falls_as_the_spec_says(schedule: dict[str, Any], expected: list[float]) -> None:
    """Every step learns: the rate is never 0. Broken by a warmup that begins at 0."""
    assert rates(4, **schedule) == pytest.approx(expected)
    assert min(rates(4, **schedule)) > 0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_it_falls_to_almost_nothing(kind: str, warmup: int) -> None:
    found = rates(100, type=kind, warmup=warmup)
    assert found[max(0, warmup - 1) :] == sorted(found[max(0, warmup - 1) :], reverse=True)
    assert 0 < found[-1] < 0.03
