"""From events to ε, by dp-accounting: privacy loss distributions by default, Rényi DP where asked.

Every ε that the harness shows is computed here from the `Mechanism`'s own events. A PLD is discretised, always to
the pessimistic side; the grid is refined until halving it changes ε by less than 0.01 % (of many steps: 0.1 %).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.privacy.mechanism import Charge, Mechanism
from harness.privacy.remembering import remembered
from harness.privacy.search import Curve, Searched

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

OneRun = Literal["pld", "rdp"]
Accountant = OneRun | Searched
"""Of a run by itself, or of the whole search that it is a trial of."""
KEPT = 1e-9
"""Of the log of Rényi DP over what a trial may have: rounding of s / C_p may move it so far."""
GRID_TOLERANCE = 1e-4
COARSEST = 800
"""Of a first grid: ε divided by this, so that few halvings follow."""
MANY_STEPS = 20_000
"""From here on the grid is refined until halving it changes ε by less than `MANY_STEPS_TOLERANCE`."""
MANY_STEPS_TOLERANCE = 1e-3
MOST_VALUES = 5e6
"""Of the loss of one step; a finer grid would take gigabytes."""
LARGEST_PLD = 1e3
"""Above it ε says nothing, and a PLD would not fit into memory: RDP, a valid upper bound, answers."""


def rdp_epsilon(event: DpEvent, delta: float) -> float:
    """ε at `delta` by Rényi DP (Mironov 2017; conversion as in dp-accounting)."""
    from harness.privacy.renyi import accountant

    return float(accountant().compose(event).get_epsilon(delta))


@functools.lru_cache(maxsize=4096)  # a search and a check of the grid ask for the same ones
def pld_epsilon(event: DpEvent, delta: float, grid: float) -> float:
    """ε at `delta` by a privacy loss distribution discretised at `grid` (nats); an upper bound at any grid."""
    return float(composed_pld(event, grid).get_epsilon(delta))


def composed_pld(event: DpEvent, grid: float) -> Any:
    """dp-accounting's accountant after this event, at this grid or a finer one that the event needs."""
    import numpy as np

    from harness.privacy.mixture import accountant

    # Overflow to infinity and the like are part of how it bounds tails.
    with np.errstate(all="ignore"):
        return accountant(_dense(event, grid)).compose(event)


def _dense(event: DpEvent, grid: float) -> float:
    """`grid`, or a finer one where there are many steps: so fine that one step's loss has over a thousand values.

    dp-accounting keeps fewer values than that in a dictionary, and then spends seconds on size ** steps.

    Raises:
        ValueError: One step's loss would have more values than memory holds.
    """
    for step, count in parts(event):
        widest = _one_step(step)
        if widest is not None and count >= MANY_STEPS:
            grid = min(grid, 2.0 ** math.floor(math.log2(widest / 1100)))
        if widest is not None and widest / grid > MOST_VALUES:
            raise ValueError("the privacy loss distribution needs too fine a grid; use accountant: rdp")
    return grid


def parts(event: DpEvent) -> list[tuple[DpEvent, int]]:
    """The releases that an event of a `Mechanism` is composed of, each with how often it happens."""
    if hasattr(event, "events"):
        return [part for each in event.events for part in parts(each)]
    if hasattr(event, "count"):
        return [(each, count * event.count) for each, count in parts(event.event)]
    return [(event, 1)]


def _steps(event: DpEvent) -> int:
    return max((count for _, count in parts(event)), default=1)


def _one_step(step: DpEvent) -> float | None:
    """How far apart the losses of one step are (nats), as far as 10 standard deviations of the noise; None: unknown."""
    if hasattr(step, "sensitivities"):
        furthest = max(c for c, p in zip(step.sensitivities, step.sampling_probs, strict=True) if p > 1e-16)
        far = float(furthest / step.standard_deviation)
        return 20 * far + far**2
    sigma, rate = getattr(getattr(step, "event", None), "noise_multiplier", 0), getattr(step, "sampling_probability", 0)
    if not sigma or not rate:
        return None
    furthest = 10 / sigma + 0.5 / sigma**2
    # log(1 + q (e^x - 1)), which is x + log q where e^x is past all numbers.
    most = math.log1p(rate * math.expm1(furthest)) if furthest < 700 else max(furthest + math.log(rate), 0.0)
    return most - math.log1p(rate * math.expm1(-min(furthest, 30)))


@functools.lru_cache(maxsize=4096)
def rough_epsilon(event: DpEvent, delta: float) -> float:
    """About how large ε is: an upper bound from a few Rényi orders, in milliseconds."""
    from harness.privacy.renyi import accountant

    # Of several examples, Rényi DP explodes at orders at which a loss that hardly ever happens counts most.
    several = any(hasattr(step, "sensitivities") for step, _ in parts(event))
    orders = (1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 16, 32, 64) if several else (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
    return float(accountant(orders).compose(event).get_epsilon(delta))


def settled_grid(event: DpEvent, delta: float) -> float:
    """The grid (nats) below which halving it no longer changes ε by more than `GRID_TOLERANCE`.

    Raises:
        ValueError: There is none within reason.
    """
    return settled(event, delta)[1]


def settled(
    event: DpEvent, delta: float, tolerance: float = GRID_TOLERANCE, coarsest: int = COARSEST
) -> tuple[float, float]:
    """ε, and a grid (nats) so fine that halving it changes ε by less than `tolerance`.

    Args:
        event: Any composition of the events that `Mechanism.event` makes.
        delta: In (0, 1).
        tolerance: Relative.
        coarsest: Of the first grid: ε divided by this.

    Raises:
        ValueError: There is none within reason.
    """
    many = _steps(event) >= MANY_STEPS
    if many:
        tolerance = max(tolerance, MANY_STEPS_TOLERANCE)
    # A power of two, so that nearby mechanisms are accounted on the same grid.
    grid = _dense(event, 2.0 ** math.floor(math.log2(max(rough_epsilon(event, delta), 1e-6) / coarsest)))
    coarse, gap = pld_epsilon(event, delta, grid), math.inf
    # Where Rényi DP was loose, the first grid is too coarse to begin with.
    if coarse > 0 and math.isfinite(coarse):
        grid = min(grid, 2 * _dense(event, 2.0 ** math.floor(math.log2(coarse / coarsest))))
    for _ in range(12):
        grid /= 2
        fine = pld_epsilon(event, delta, grid)
        # Both bound ε from above, so the smaller one holds; agreement says that it is also tight.
        if abs(coarse - fine) <= tolerance * fine:
            return min(coarse, fine), grid
        if many and abs(coarse - fine) > gap:
            break  # rounding of so many steps is larger than what a finer grid gains
        coarse, gap = fine, abs(coarse - fine)
    raise ValueError("the privacy loss distribution does not settle on any grid; use accountant: rdp")


def answering(event: DpEvent, delta: float, accountant: Accountant) -> Literal["pld", "rdp"]:
    """The accountant that gives `epsilon` of an event: the one asked for, or RDP where PLD can't."""
    return "rdp" if accountant != "pld" or rough_epsilon(event, delta) > LARGEST_PLD else "pld"


@remembered
def epsilon(event: DpEvent, delta: float, accountant: Accountant = "pld") -> float:
    """ε(`delta`) of an event; never below the true value.

    Args:
        event: Any composition of the events that `Mechanism.event` makes.
        delta: In (0, 1).
        accountant: ``pld`` (tight), ``rdp``, or that of a search, whose price ε is then.

    Returns:
        ε; infinity for an event without privacy.

    Raises:
        ValueError: `delta` is not in (0, 1), or no grid settles.
    """
    return _epsilon(event, delta, accountant)


@functools.lru_cache(maxsize=4096)
def _epsilon(event: DpEvent, delta: float, accountant: Accountant) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta={delta} < 1")
    if isinstance(accountant, Searched):
        return accountant.epsilon(event, delta)
    if accountant == "rdp":
        return rdp_epsilon(event, delta)
    scale = rough_epsilon(event, delta)
    if scale == 0 or not math.isfinite(scale):
        return scale
    if scale > LARGEST_PLD:
        return rdp_epsilon(event, delta)
    return settled(event, delta)[0]


# --- of a mechanism: remembered by its fields, so that what is known needs neither events nor the libraries ---


def group_epsilon(
    mechanism: Mechanism, group: int, delta: float, accountant: Accountant = "pld", steps: int | None = None
) -> float:
    """ε of one group's users, computed from the mechanism (of its first `steps` steps, if given).

    By basic composition with the answers that decided levers, if there are any.
    """
    left = delta - mechanism.choice_delta
    return choice_epsilon(mechanism, accountant) + later_epsilon(mechanism, group, left, accountant, steps)


@remembered
def later_epsilon(
    mechanism: Mechanism, group: int, delta: float, accountant: Accountant, steps: int | None = None
) -> float:
    """ε of one group's users without the answers that decided levers, at what they left of δ."""
    return _epsilon(mechanism.event(group, steps), delta, accountant)


def group_within(mechanism: Mechanism, group: int, target: float, delta: float, accountant: Accountant) -> float:
    """ε of one group's users, to be compared with a target: in a search, the target itself where the trial keeps it.

    A trial keeps a target where its curve lies under what that allows, at the orders that matter for it. One that does
    not has more than the target, whatever its own price is: trials under different curves would cost more together.
    """
    if not isinstance(accountant, Searched):
        return group_epsilon(mechanism, group, delta, accountant)
    if accountant.excess(mechanism.event(group), accountant.allowed(target, delta)) <= KEPT:
        return target
    return max(group_epsilon(mechanism, group, delta, accountant), target * (1 + 1e-6))


def largest_epsilon(mechanism: Mechanism, delta: float, accountant: Accountant = "pld") -> float:
    """ε of any user, also where the group that they are in depends on noisy answers."""
    left = delta - mechanism.choice_delta
    return choice_epsilon(mechanism, accountant) + _dominating_epsilon(mechanism, left, accountant)


@remembered
def _dominating_epsilon(mechanism: Mechanism, delta: float, accountant: Accountant) -> float:
    return _epsilon(mechanism.dominating_event(), delta, accountant)


def choice_epsilon(mechanism: Mechanism, accountant: Accountant = "pld") -> float:
    """ε, at their own δ, of the answers that decide levers; it is part of every group's ε."""
    return charges_epsilon(mechanism.choice, mechanism.choice_delta, accountant)


@remembered
def charges_epsilon(charges: tuple[Charge, ...], delta: float, accountant: Accountant = "pld") -> float:
    """ε of noisy answers alone, all of them together; 0 of none."""
    if not charges:
        return 0.0
    from dp_accounting import dp_event

    event = dp_event.ComposedDpEvent(tuple(charge.event() for charge in charges))
    return _epsilon(event, delta, of_answers(accountant))


def of_answers(accountant: Accountant) -> Accountant:
    """The accountant for noisy answers alone."""
    return accountant.answers() if isinstance(accountant, Searched) else accountant


@remembered
def answering_group(mechanism: Mechanism, group: int, delta: float, accountant: Accountant) -> Literal["pld", "rdp"]:
    """The accountant that gives `group_epsilon`."""
    return answering(mechanism.event(group), delta - mechanism.choice_delta, accountant)


def total_epsilon(
    mechanism: Mechanism, delta: float, accountant: Accountant = "pld", steps: int | None = None
) -> float:
    """The run's stated ε: the maximum over its groups."""
    return max(group_epsilon(mechanism, i, delta, accountant, steps) for i in range(len(mechanism.groups)))


def search_rdp_at(searched: Searched, curves: Sequence[Curve], holdout: Curve | None, order: float) -> float:
    """RDP (nats) of a whole search at one Rényi order: the maximum over its users.

    Args:
        searched: The search.
        curves: That trials are held under, of all groups.
        holdout: The same of private hold-out users, at the orders of noisy answers alone; None: there are none.
        order: The order, above 1.
    """
    values = [searched.rdp(curve, order) for curve in curves]
    if holdout is not None:
        values.append(searched.answers().rdp(holdout, order))
    return max(values)


@remembered
def rdp_at(mechanism: Mechanism, order: float, steps: int | None = None, *, any_group: bool = False) -> float:
    """RDP (nats) of a run at one Rényi order: the maximum over its users; infinity where it has none.

    Where levers wait for noisy answers, the run's RDP is not known beforehand: then it has none.

    Args:
        mechanism: What is executed.
        order: The order, above 1.
        steps: Only the first so many steps; None: all.
        any_group: Which group a user is in follows from noisy answers.
    """
    from harness.privacy import renyi

    if not mechanism.private or mechanism.choice:
        return math.inf
    events = {mechanism.holdout_event()} | ({mechanism.dominating_event()} if any_group else set())
    events |= {mechanism.event(i, steps) for i in range(len(mechanism.groups))}
    return max(renyi.rdp_at(event, order) for event in events)


def bound_epsilon(mechanism: Mechanism, delta: float, accountant: Accountant, grid: float, steps: int) -> float:
    """ε of a run's first steps, from above and in a fraction of a second: on one grid (nats), not refined.

    Args:
        mechanism: What is executed.
        delta: δ.
        accountant: With which ε is computed.
        grid: Of the privacy loss distribution.
        steps: So many first steps.
    """
    found, left = [], delta - mechanism.choice_delta
    for event in {mechanism.event(i, steps) for i in range(len(mechanism.groups))}:
        if isinstance(accountant, Searched):
            found.append(accountant.epsilon(event, left))
            continue
        scale = rough_epsilon(event, left)
        by_rdp = accountant == "rdp" or not 0 < scale <= LARGEST_PLD or _steps(event) >= MANY_STEPS
        found.append(rdp_epsilon(event, left) if by_rdp else pld_epsilon(event, left, grid))
    return choice_epsilon(mechanism, accountant) + max(found)
