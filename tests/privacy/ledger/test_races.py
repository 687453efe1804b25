"""Processes that want the last of a budget at the same moment: exactly what fits is admitted, on both databases."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest

from harness.errors import BudgetError
from harness.privacy.ledger import Ledger, Request

SPAWN = multiprocessing.get_context("spawn")


def racer(url: str, number: int, races: int, start: Any, answers: Any) -> None:
    """Waits for the others before each race, and asks for its share: 0.3 of a budget of 1 that holds three of them."""
    ledger, admitted = Ledger(url), []
    try:
        for race in range(races):
            request = Request(f"race-{race}-{number}", f"set-{race}", 0.3, 1e-6, 1, "d" * 64, "race")
            start.wait()
            with contextlib.suppress(BudgetError):
                ledger.reserve(request, lambda order: 0.3)
                admitted.append(race)
    except Exception as error:
        start.abort()
        answers.put(repr(error))
    answers.put(admitted)


@contextlib.contextmanager
def raced(url: str, processes: int, races: int) -> Iterator[list[int]]:
    """So many races of so many processes; yields in how many each process was admitted."""
    start, answers = SPAWN.Barrier(processes), SPAWN.Queue()
    started = [SPAWN.Process(target=racer, args=(url, n, races, start, answers)) for n in range(processes)]
    for one in started:
        one.start()
    try:
        found = [answers.get(timeout=800) for _ in started]
        assert [answer for answer in found if isinstance(answer, str)] == []
        yield [race for answer in found for race in answer]
    finally:
        for one in started:
            one.join(10)
            one.kill()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("processes", "races"),
    [(2, 100), pytest.param(2, 1000, marks=pytest.mark.slow), pytest.param(8, 1000, marks=pytest.mark.slow)],
)
def test_races_for_the_last_of_a_budget(url: str, processes: int, races: int) -> None:
    """Red when a reservation looks at what is left outside the transaction, or the transaction takes no lock at first.

    Budgets of 0.5 hold one run of 0.3 (two processes race for it); budgets of 1.0 hold three (of eight).
    """
    ledger, fits = Ledger(url), 1 if processes == 2 else 3
    for race in range(races):
        ledger.set_budget(f"set-{race}", 0.5 if processes == 2 else 1.0, 1e-4)
    with raced(url, processes, races) as admitted:
        assert [admitted.count(race) for race in range(races)] == [fits] * races
    count, problems = ledger.verify()
    assert problems == []
    assert count == races * (1 + fits)
    for race in (0, races // 2, races - 1):
        assert len(ledger.account(f"set-{race}").runs) == fits
