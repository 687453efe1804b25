"""From target budgets to levers, and back: every calibrated mechanism is accounted again from its own events."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from harness.errors import ArgumentError, BudgetError
from harness.privacy.accounting import Accountant, charges_epsilon, group_epsilon, rough_epsilon
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import Mechanism
from harness.privacy.remembering import remembered
from harness.privacy.terms import Levers, Terms

LARGEST_MULTIPLIER = 1e6
SMALLEST_MULTIPLIER = 0.02
"""Below it, a release says practically everything, and no accountant has anything to say."""


@functools.lru_cache(maxsize=1024)
@remembered
def noise_multiplier(target: float, exposure: Exposure) -> float:
    """The smallest noise multiplier σ with which a user exposed like this stays within `target`.

    Args:
        target: ε > 0, the charges of a session included.
        exposure: Everything but the noise.

    Returns:
        σ, within a relative 1e-5 of the smallest; ε at σ is at most `target`.

    Raises:
        BudgetError: No σ up to 10⁶ is enough.
    """
    sigma, coarse = _bracketed(target, exposure)
    if sigma <= SMALLEST_MULTIPLIER:
        return _within(exposure.epsilon, sigma, target)
    on_grid = functools.cache(exposure.epsilon_on)  # the solver asks for its ends again
    fine = exposure.settled_grid(sigma) if exposure.accountant == "pld" else coarse
    # A finer grid gives a smaller ε, so the answer lies at the coarse one or below it.
    low, high, step = sigma, sigma * 1.001, 1.01
    while on_grid(low, fine) <= target and low > SMALLEST_MULTIPLIER:
        high, low, step = low, low / step, step**3
    sigma = _solve(lambda x: on_grid(x, fine), low, high, target, 1e-7)
    return _within(exposure.epsilon, sigma, target)


@remembered
def drafted_multiplier(target: float, exposure: Exposure) -> float:
    """`noise_multiplier` to about two percent, in a fraction of the time: to compare, never to train with."""
    return _bracketed(target, exposure)[0]


def _bracketed(target: float, exposure: Exposure) -> tuple[float, float]:
    """σ on a coarse grid, never below the right one, and that grid (nats)."""
    _check_reach(target, exposure)
    on_grid = functools.cache(exposure.epsilon_on)
    # Never so coarse that e^grid overflows.
    coarse = min(target / 100, 0.5)
    high = _first_guess(target, exposure)
    while on_grid(high, coarse) > target:
        high *= 2
        if high > LARGEST_MULTIPLIER:
            raise BudgetError(
                f"no noise reaches ε = {target:g} at δ = {exposure.delta:g} in {exposure.steps} steps "
                f"at rate {exposure.rate:g}"
            )
    low, step = max(high / 1.2, SMALLEST_MULTIPLIER), 1.44
    while on_grid(low, coarse) <= target:
        if low <= SMALLEST_MULTIPLIER:
            return low, coarse
        high, low, step = low, max(low / step, SMALLEST_MULTIPLIER), min(step**2, 2.0)
    return _solve(lambda x: on_grid(x, coarse), low, high, target, 1e-3), coarse


def _first_guess(target: float, exposure: Exposure) -> float:
    """σ to begin with: where Rényi DP is quick it lies a little above the right one, which saves half of the search."""
    if exposure.examples > 1 or exposure.schedule or exposure.charges:
        return 1.0

    def over(sigma: float) -> bool:
        return rough_epsilon(exposure.event(sigma), exposure.delta) > target

    low, high = 0.5, 1.0
    while over(high) and high < LARGEST_MULTIPLIER:
        low, high = high, 2 * high
    while not over(low) and low > SMALLEST_MULTIPLIER:
        low, high = low / 2, low
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if over(middle) else (low, middle)
    return max(high, SMALLEST_MULTIPLIER)


def _check_reach(target: float, exposure: Exposure) -> None:
    least = exposure.least()
    if least >= target:
        raise BudgetError(
            f"the noisy answers before training alone come to ε = {least:.4g}, which leaves nothing of {target:g}; ask "
            "for less, or with more noise (privacy.session.noise_multiplier)"
        )


def _within(exact: Callable[[float], float], sigma: float, target: float) -> float:
    """`sigma`, or as little more as brings ε to the target: the last word is with the accountant that reports it."""
    step = 1e-6
    while exact(sigma) > target:
        sigma *= 1 + step
        step *= 2
    return sigma


def _solve(function: Callable[[float], float], low: float, high: float, target: float, tolerance: float) -> float:
    """The σ in [low, high] at which a falling `function` meets `target`, to a relative `tolerance`, not below."""
    from scipy.optimize import brentq

    def gap(x: float) -> float:
        return math.log(max(function(math.exp(x)), 1e-300) / target)  # δ alone may cover it: ε = 0

    if gap(math.log(low)) <= 0:
        return low
    return math.exp(brentq(gap, math.log(low), math.log(high), xtol=tolerance)) * (1 + tolerance)


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
        return _epsilon_at(terms.exposure.of(taken=steps), sigma) <= target

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
        return _epsilon_at(terms.exposure.of(examples=examples), sigma) <= target

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
def _epsilon_at(exposure: Exposure, sigma: float) -> float:
    return exposure.epsilon(sigma)


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
    values: Sequence[float] = [group_epsilon(mechanism, i, delta, accountant) for i in range(len(mechanism.groups))]
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
