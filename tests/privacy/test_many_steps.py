"""Many steps: the distribution that dp-accounting composes fast is still a bound, and between its neighbours."""

from __future__ import annotations

import math

from harness.privacy.accounting import LARGEST_PLD, MANY_STEPS, answering, epsilon, rdp_epsilon
from harness.privacy.calibration import noise_multiplier
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import GroupMechanism, Mechanism


def _event(rate: float, sigma: float, steps: int) -> object:
    group = GroupMechanism("all", 1.0, rate, 1.0, steps, 1)
    return Mechanism(steps, sigma, (group,), "add_or_remove").event(0)


def test_many_steps_go_on_from_few() -> None:
    """ε of one step more is the same but for the grid: no jump where the grid's rule changes; below RDP's.

    Break: start the fine grids a hundred times coarser.
    """
    values = [epsilon(_event(0.01, 3.0, t), 1e-6) for t in (MANY_STEPS - 1, MANY_STEPS + 1)]
    assert math.isclose(values[0], values[1], rel_tol=2e-3)
    assert values[1] < rdp_epsilon(_event(0.01, 3.0, MANY_STEPS + 1), 1e-6)


def test_fifty_thousand_plain_steps_are_one_gaussian() -> None:
    """Without sampling, T steps of σ√T are one step of σ: 4.377178 exactly for σ = 1. Never below it.

    Break: halve the range of one step's loss in `_one_step`; or let the tolerance be 0.1.
    """
    value = epsilon(_event(1.0, math.sqrt(50_000), 50_000), 1e-5)
    assert 4.377178 * (1 - 1e-6) <= value <= 4.377178 * 1.002


def test_the_largest_budgets_are_met_by_the_accountant_that_reports() -> None:
    """At ε = 1000, PLD and RDP take turns. Break: return the smallest multiplier without asking again."""
    sigma = noise_multiplier(1000.0, Exposure(0.016, 1, 0.1))
    event = _event(0.016, sigma, 1)
    assert epsilon(event, 0.1) <= LARGEST_PLD
    assert answering(event, 0.1, "pld") in ("pld", "rdp")
