"""How ε of a run grows step by step, and what (ε, δ) at one δ hides: drawn from above, to half a percent.

What a run is accounted with is in `accounting`; here is what is only shown.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from harness.privacy.accounting import (
    LARGEST_PLD,
    OneRun,
    choice_epsilon,
    composed_pld,
    pld_epsilon,
    rdp_epsilon,
    rough_epsilon,
    settled,
    total_epsilon,
)
from harness.privacy.mechanism import Mechanism
from harness.privacy.remembering import remembered

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

DRAFT_TOLERANCE, DRAFT_COARSEST = 5e-3, 100
"""Half a percent is enough for a curve: of ε, and of ε over a first grid."""


def epsilon_curve(mechanism: Mechanism, delta: float, accountant: OneRun, every: int) -> list[tuple[int, float]]:
    """ε after 0, `every`, 2·`every`, … and all steps: public, since it comes from the mechanism alone.

    At 0 it is that of the answers before training. At most 21 points, evenly chosen among those steps, so that a long
    run does not make a slow plan.
    """
    releases = -(-mechanism.steps // every)
    shown = min(20, releases)
    places = {round(i * (releases - 1) / max(1, shown - 1)) for i in range(shown)} | {releases - 1}
    marks = sorted(min((i + 1) * every, mechanism.steps) for i in places)
    total = total_epsilon(mechanism, delta, accountant)
    at = (0, *marks[:-1])
    spent = _spent(mechanism, list(at), delta, accountant)
    return [*((t, min(e, total)) for t, e in zip(at, spent, strict=True)), (mechanism.steps, total)]


@remembered
def _spent(mechanism: Mechanism, marks: list[int], delta: float, accountant: OneRun) -> list[float]:
    """ε of any user after so many steps each, to half a percent from above."""
    left, before = delta - mechanism.choice_delta, choice_epsilon(mechanism, accountant)
    exposed = _most_exposed(mechanism)
    curves = []
    for i in exposed:
        curves.append(_drafted_curve(list(dict.fromkeys(mechanism.event(i, t) for t in marks)), left, accountant))
    found = []
    for t in marks:
        found.append(before + max(curve[mechanism.event(i, t)] for i, curve in zip(exposed, curves, strict=True)))
    return found


def _drafted_curve(events: list[DpEvent], delta: float, accountant: OneRun) -> dict[DpEvent, float]:
    """ε of each of these events, which grow, to about half a percent from above.

    The grid is settled for the first and the last one that cost anything; between them it is the finer one of the two.
    """
    free = next((i for i, event in enumerate(events) if rough_epsilon(event, delta) > 0), len(events))
    found, left = dict.fromkeys(events[:free], 0.0), events[free:]
    if not left:
        return found
    if accountant == "rdp" or not rough_epsilon(left[-1], delta) <= LARGEST_PLD:
        return found | {event: _drafted(event, delta, accountant) for event in left}
    ends = {e: settled(e, delta, DRAFT_TOLERANCE, DRAFT_COARSEST) for e in (left[0], left[-1])}
    grid = min(grid for _, grid in ends.values())
    return found | {e: ends[e][0] if e in ends else pld_epsilon(e, delta, grid) for e in left}


def _most_exposed(mechanism: Mechanism) -> list[int]:
    """Indices of the groups to which no other one is exposed at least as much, whatever the step."""
    found: list[int] = []
    numbers = [(g.clip_norm, g.sampling_rate, g.steps, g.examples_per_user) for g in mechanism.groups]
    for i, one in enumerate(numbers):
        # Evenly spread steps: at no time has a group with fewer of them taken part more often.
        others = [n for j, n in enumerate(numbers) if n != one or j < i]
        if not any(all(a >= b for a, b in zip(other, one, strict=True)) for other in others):
            found.append(i)
    return found


@functools.lru_cache(maxsize=4096)
def _drafted(event: DpEvent, delta: float, accountant: OneRun) -> float:
    """ε to half a percent, from above: enough for a curve."""
    scale = rough_epsilon(event, delta)
    if accountant == "rdp" or scale == 0 or not scale <= LARGEST_PLD:
        return rdp_epsilon(event, delta)
    return settled(event, delta, DRAFT_TOLERANCE, DRAFT_COARSEST)[0]


def trade_offs(mechanism: Mechanism, delta: float, accountant: OneRun) -> tuple[tuple[tuple[float, float], ...], ...]:
    """What (ε, δ) at one δ hides where groups are sampled differently: per group, δ at a few ε.

    Args:
        mechanism: The finished mechanism.
        delta: δ of the guarantee.
        accountant: With which δ(ε) is computed; an upper bound by either.

    Returns:
        Per group, points (ε, δ) at the same round ε for all, from ε = 0 to a quarter above the largest group's; empty
        where all groups have one sampling rate, number of steps and number of examples.
    """
    if len({(g.sampling_rate, g.steps, g.examples_per_user) for g in mechanism.groups}) == 1:
        return ()
    found = _shown_deltas(mechanism, delta, accountant)
    return tuple(tuple((point[0], point[1]) for point in curve) for curve in found)


@remembered
def _shown_deltas(mechanism: Mechanism, delta: float, accountant: OneRun) -> list[list[list[float]]]:
    events = [mechanism.event(i) for i in range(len(mechanism.groups))]
    largest = max(_drafted(event, delta, accountant) for event in events)
    if not math.isfinite(largest):
        return []
    step = _round_step(largest / 8)
    marks = [step * i for i in range(math.ceil(1.25 * largest / step) + 1)]
    return [
        [[mark, value] for mark, value in zip(marks, _deltas(event, marks, delta, accountant), strict=True)]
        for event in events
    ]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not (by much) below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.99 * least)


def _deltas(event: DpEvent, marks: list[float], delta: float, accountant: OneRun) -> list[float]:
    """δ at each ε, from above."""
    from harness.privacy import renyi

    scale = rough_epsilon(event, delta)
    if accountant == "rdp" or scale > LARGEST_PLD:
        composed: Any = renyi.accountant().compose(event)
    else:
        composed = composed_pld(event, max(scale, 1e-4) / 1000)
    return [float(composed.get_delta(mark)) for mark in marks]
