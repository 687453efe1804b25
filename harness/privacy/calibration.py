"""From target budgets to levers, and back: every calibrated mechanism is accounted again from its own events."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from harness.errors import ArgumentError, BudgetError
from harness.privacy.accounting import Accountant, charges_epsilon, group_within, rough_epsilon
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import Mechanism
from harness.privacy.remembering import remembered
from harness.privacy.roots import falling_root
from harness.privacy.terms import Levers, Terms

LARGEST_MULTIPLIER = 1e6
SMALLEST_MULTIPLIER = 0.02
"""Below it, a release says practically everything, and no accountant has anything to say."""
COARSE = 400
"""ε over the grid of a first search."""
DRAFT, FINE = 1e-3, 3e-7
"""Of log σ: tolerance of the first search and of the last one."""


@functools.lru_cache(maxsize=1024)
@remembered
def noise_multiplier(target: float, exposure: Exposure) -> float:
    """The smallest noise multiplier σ with which a user exposed like this stays within `target`.

    Args:
        target: ε > 0, the charges of a session included.
        exposure: Everything but the noise.

    Returns:
        σ, within a relative 1e-5 of the smallest; ε at σ is at most `target`. At least `SMALLEST_MULTIPLIER`.

    Raises:
        BudgetError: No σ up to 10⁶ is enough.
    """
    sigma, slope = _drafted(target, exposure)
    if sigma > SMALLEST_MULTIPLIER and exposure.accountant == "pld":
        sigma, _ = _solved(target, exposure, exposure.settled_grid(sigma), sigma, slope, FINE)
    return _within(exposure, sigma, target)


@remembered
def drafted_multiplier(target: float, exposure: Exposure) -> float:
    """`noise_multiplier` to about two percent, in a fraction of the time: to compare, never to train with."""
    return _drafted(target, exposure)[0]


def _drafted(target: float, exposure: Exposure) -> tuple[float, float]:
    """σ on a coarse grid (by RDP: as fine as it gets), and ∂ log ε / ∂ log σ there."""
    _check_reach(target, exposure)
    # Never so coarse that e^grid overflows.
    grid, tolerance = (min(target / COARSE, 0.5), DRAFT) if exposure.accountant == "pld" else (0.0, FINE)
    return _solved(target, exposure, grid, _first_guess(target, exposure), -1.5, tolerance)


def _solved(
    target: float, exposure: Exposure, grid: float, start: float, slope: float, tolerance: float
) -> tuple[float, float]:
    """The least σ with which ε on this grid (nats) is within `target`, not below it, and the slope there."""
    found = falling_root(
        lambda x: exposure.log_excess(math.exp(x), target, grid),
        math.log(start),
        slope,
        tolerance,
        math.log(SMALLEST_MULTIPLIER),
        math.log(LARGEST_MULTIPLIER),
    )
    if found is None:
        raise BudgetError(
            f"no noise reaches ε = {target:g} at δ = {exposure.delta:g} in {exposure.steps} steps "
            f"at rate {exposure.rate:g}"
        )
    return math.exp(found[0]), found[1]


def _log_ratio(value: float, target: float) -> float:
    """log(ε / target): about a straight line in log σ. Where δ alone covers a release, ε is 0, without a logarithm."""
    return min(max(math.log(max(value, 1e-300) / target), -3.0), 3.0)


def _first_guess(target: float, exposure: Exposure) -> float:
    """σ to begin with, by a few Rényi orders, of the plain run that is most like this one."""
    # A user with a few small chances per step is much like one with a single larger one.
    plain = exposure.of(
        rate=min(1.0, exposure.rate * exposure.examples), unit="user", examples=1, schedule=(), charges=()
    )
    found = falling_root(
        lambda x: _log_ratio(rough_epsilon(plain.event(math.exp(x)), plain.delta), target),
        0.0,
        -1.5,
        0.05,
        math.log(SMALLEST_MULTIPLIER),
        math.log(LARGEST_MULTIPLIER),
    )
    if found is None:
        return LARGEST_MULTIPLIER
    # Small losses add up by their squares.
    mean = sum(s.steps * (s.clip / s.noise) ** 2 for s in exposure.schedule) / exposure.steps
    return math.exp(found[0]) * (math.sqrt(mean) if exposure.schedule else 1.0)


def _check_reach(target: float, exposure: Exposure) -> None:
    least = exposure.least()
    if least >= target:
        raise BudgetError(
            f"the noisy answers before training alone come to ε = {least:.4g}, which leaves nothing of {target:g}; ask "
            "for less, or with more noise (privacy.session.noise_multiplier)"
        )


def _within(exposure: Exposure, sigma: float, target: float) -> float:
    """`sigma`, or as little more as brings ε to the target: the last word is with the accountant that reports it."""
    step = 1e-6
    while not exposure.keeps(sigma, target):
        sigma *= 1 + step
        step *= 2
    return sigma


# --- levers -------------------------------------------------------------------------------------------------


def by_clip_norm(targets: Mapping[str, float], terms: Terms) -> Mechanism:
    """Brings each group to its target by its own clip norm; noise and sampling rate are the same for all.

    σ_p is the multiplier that gives ε_p; equal targets give one clip norm for all.

    Args:
        targets: ε_p per group; the order of the groups is its order.
        terms: What they share.

    Returns:
        The mechanism, not yet verified (`verify`).

    Raises:
        BudgetError: A target can't be reached.
    """
    return terms.build({p: Levers(noise_multiplier(target, terms.exposure)) for p, target in targets.items()})


def by_steps(targets: Mapping[str, float], terms: Terms) -> Mechanism:
    """Brings each group to its target by the number of steps it takes part in, T_p; all else is the same for all.

    The group with the highest target takes part in all steps, and its target sets the noise. Every other one takes part
    in as many steps, evenly spread over the run, as its target allows. Equal targets give all steps to all.

    Raises:
        BudgetError: A target can't be reached even with one step.
    """
    sigma = noise_multiplier(max(targets.values()), terms.exposure)

    def fits(target: float, steps: int) -> bool:
        return _kept(terms.exposure.of(taken=steps), sigma, target)

    levers = {}
    for p, target in targets.items():
        steps = terms.steps if target == max(targets.values()) else _most(fits, target, terms.steps)
        if steps == 0:
            raise BudgetError(
                f'noise: a single step already costs "{p}" more than ε = {target:g}; raise that target, lower the '
                "highest one, or lower the sampling rate"
            )
        levers[p] = Levers(sigma, steps=steps)
    return terms.build(levers)


def by_examples(targets: Mapping[str, float], terms: Terms) -> Mechanism:
    """Brings each group to its target by the number of examples that its users keep, G_p; all else is the same for all.

    The group with the highest target keeps ``sampling.examples_per_user``, and its target sets the noise. Every other
    one keeps as many as its target allows. Equal targets keep the same.

    Raises:
        ArgumentError: Users are sampled, not examples: how many of theirs enter a step does not change their ε.
        BudgetError: A target can't be reached even with one example.
    """
    if terms.unit != "example":
        raise ArgumentError("noise: contribution needs sampling.unit: example")
    sigma = noise_multiplier(max(targets.values()), terms.exposure)

    def fits(target: float, examples: int) -> bool:
        return _kept(terms.exposure.of(examples=examples), sigma, target)

    levers = {}
    for p, target in targets.items():
        highest = target == max(targets.values())
        examples = terms.examples_per_user if highest else _most(fits, target, terms.examples_per_user)
        if examples == 0:
            raise BudgetError(
                f'noise: a single example already costs "{p}" more than ε = {target:g}; raise that target, lower the '
                "highest one, or raise sampling.examples_per_user (which raises the noise)"
            )
        levers[p] = Levers(sigma, examples=examples)
    return terms.build(levers)


@remembered
def _kept(exposure: Exposure, sigma: float, target: float) -> bool:
    return exposure.keeps(sigma, target)


def _most(fits: Callable[[float, int], bool], target: float, limit: int) -> int:
    """The largest n ≤ `limit` that fits, by bisection; 0 if none does."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(target, middle):
            low = middle
        else:
            high = middle
    return low


# --- accounted again ----------------------------------------------------------------------------------------


def verify(
    mechanism: Mechanism, targets: Mapping[str, float], budget: float, delta: float, accountant: Accountant
) -> tuple[float, ...]:
    """ε of every group, computed again from the finished mechanism.

    Raises:
        BudgetError: One exceeds its target or the budget by more than a relative 1e-9.
    """
    values: Sequence[float] = [
        group_within(mechanism, i, min(targets[g.name], budget), delta, accountant)
        for i, g in enumerate(mechanism.groups)
    ]
    for group, value in zip(mechanism.groups, values, strict=True):
        limit = min(targets[group.name], budget)
        # Rounding of s/C_p may move σ_p by an ulp; anything more is a mistake of ours.
        if not value <= limit * (1 + 1e-9):
            raise BudgetError(
                f"the plan is refused: group {group.name} comes to ε = {value:.6g}, above its target {limit:g}"
            )
    exposed = charges_epsilon(() if mechanism.holdout is None else (mechanism.holdout,), delta, accountant)
    if not exposed <= budget * (1 + 1e-9):
        raise BudgetError(f"the plan is refused: hold-out users come to ε = {exposed:.6g}, above {budget:g}")
    return tuple(values)
