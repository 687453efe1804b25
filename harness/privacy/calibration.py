"""From target budgets to levers, and back: every calibrated mechanism is accounted again from its own events."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

from harness.errors import BudgetError
from harness.privacy.accounting import Accountant, epsilon, group_epsilon, pld_epsilon, rdp_epsilon, settled_grid
from harness.privacy.mechanism import GroupMechanism, Mechanism, Relation
from harness.privacy.rates import by_sampling_rate

__all__ = ["by_clip_norm", "by_sampling_rate", "noise_multiplier", "verify"]

LARGEST_MULTIPLIER = 1e6
SMALLEST_MULTIPLIER = 0.02
"""Below it, a release says practically everything, and no accountant has anything to say."""


@functools.lru_cache(maxsize=1024)
def noise_multiplier(target: float, rate: float, steps: int, delta: float, accountant: Accountant = "pld") -> float:
    """The smallest noise multiplier σ with which `steps` Poisson-sampled Gaussian steps stay within `target`.

    Args:
        target: ε > 0.
        rate: Sampling rate q of a user.
        steps: Number of steps T.
        delta: δ.
        accountant: With which ε is computed.

    Returns:
        σ, within a relative 1e-5 of the smallest; ε at σ is at most `target`.

    Raises:
        BudgetError: No σ up to 10⁶ is enough.
    """

    def of(sigma: float) -> Mechanism:
        group = GroupMechanism("group", 1.0, rate, 1.0, steps, 1)
        return Mechanism(steps, sigma, (group,), "add_or_remove")

    def on_grid(sigma: float, grid: float) -> float:
        event = of(sigma).event(0)
        return rdp_epsilon(event, delta) if accountant == "rdp" else pld_epsilon(event, delta, grid)

    def exact(sigma: float) -> float:
        return epsilon(of(sigma).event(0), delta, accountant)

    # Never so coarse that e^grid overflows.
    coarse = min(target / 100, 0.5)
    high = 1.0
    while on_grid(high, coarse) > target:
        high *= 2
        if high > LARGEST_MULTIPLIER:
            raise BudgetError(f"no noise reaches ε = {target:g} at δ = {delta:g} in {steps} steps at rate {rate:g}")
    low = high / 2
    while on_grid(low, coarse) <= target:
        if low <= SMALLEST_MULTIPLIER:
            return _within(exact, low, target)
        high, low = low, low / 2
    sigma = _solve(lambda x: on_grid(x, coarse), low, high, target, 1e-3)
    fine = settled_grid(of(sigma).event(0), delta) if accountant == "pld" else coarse
    # A finer grid gives a smaller ε, so the answer lies at the coarse one or below it.
    low, high = sigma, sigma * 1.001
    while on_grid(low, fine) <= target and low > SMALLEST_MULTIPLIER:
        high, low = low, low / 1.1
    sigma = _solve(lambda x: on_grid(x, fine), low, high, target, 1e-7)
    return _within(exact, sigma, target)


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


def by_clip_norm(
    targets: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    users: float,
    rate: float,
    steps: int,
    delta: float,
    clip_norm: float,
    examples_per_user: int,
    relation: Relation,
    accountant: Accountant,
) -> Mechanism:
    """Brings each group to its target by its own clip norm; noise and sampling rate are the same for all.

    σ_p is the multiplier that gives ε_p. With σ_h = (Σ r_p/σ_p)⁻¹: C_p = C·σ_h/σ_p and s = σ_h·C, so s/C_p = σ_p
    exactly and the mean of C_p over the population is C. Equal targets give one clip norm for all.

    Args:
        targets: ε_p per group; the order of the groups is its order.
        weights: r_p per group, public fractions of the population that sum to 1.
        users: N, the public number of training users.
        rate: q.
        steps: T.
        delta: δ.
        clip_norm: C, the mean clip norm.
        examples_per_user: Of each group.
        relation: Of neighbouring data sets.
        accountant: With which ε is computed.

    Returns:
        The mechanism, not yet verified (`verify`).

    Raises:
        BudgetError: A target can't be reached.
    """
    sigma = {p: noise_multiplier(target, rate, steps, delta, accountant) for p, target in targets.items()}
    sigma_h = 1.0 / sum(weights[p] / sigma[p] for p in targets)
    groups = tuple(
        GroupMechanism(p, weights[p] * users, rate, clip_norm * sigma_h / sigma[p], steps, examples_per_user)
        for p in targets
    )
    return Mechanism(steps, sigma_h * clip_norm, groups, relation)


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
    return tuple(values)
