"""The `sample` and `product` levers: for each group the sampling rate that meets its target.

Of `sample`, at one noise multiplier for all; of `product`, at multipliers between that and those of clip norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ArgumentError, BudgetError
from harness.privacy.accounting import later_epsilon, rough_epsilon
from harness.privacy.calibration import LARGEST_MULTIPLIER, SMALLEST_MULTIPLIER, noise_multiplier
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import Mechanism
from harness.privacy.remembering import remembered
from harness.privacy.roots import falling_root
from harness.privacy.search import Searched
from harness.privacy.terms import Levers, Terms

LARGEST_STEP = 0.7
"""Of log σ or log q in one step of the solver: about a factor of two."""
MOST_STEPS = 60
SMALLEST_RATE = 1e-9
"""Of a group, where rates are solved for one by one."""
PATIENCE = 6
"""So many steps in a row at q = 1, with ε still below the target, and the group can't reach it."""


@dataclass
class _Group:
    """One group while it is solved: ε rises with q and falls with σ, nearly as a power of each.

    Attributes:
        target: ε_p.
        weight: r_p.
        log_rate: log q_p.
        grid: Of the privacy loss distribution, in nats.
        aside: How far log σ_p lies from the common log σ.
        by_sigma: ∂ log ε / ∂ log σ, negative.
        by_rate: ∂ log ε / ∂ log q, positive.
        stuck: Steps in a row at q = 1 below the target.
    """

    target: float
    weight: float
    log_rate: float
    grid: float
    aside: float = 0.0
    by_sigma: float = -1.0
    by_rate: float = 1.0
    stuck: int = 0

    @property
    def rate(self) -> float:
        return math.exp(self.log_rate)


class _Solver:
    """Newton's method for σ and all q_p at once, in logarithms; derivatives are kept while they serve."""

    def __init__(self, groups: Mapping[str, _Group], sigma: float, exposure: Exposure) -> None:
        self.groups, self.rate, self.log_sigma = groups, exposure.rate, math.log(sigma)
        self.exposure = exposure
        self.settled = False

    def of(self, group: _Group, by_rate: float = 0.0) -> Exposure:
        """What a group's users are exposed to, at a rate a little aside."""
        return self.exposure.of(rate=min(1.0, math.exp(group.log_rate + by_rate)))

    def sigma(self, group: _Group, by_sigma: float = 0.0) -> float:
        """σ_p, a little aside."""
        return math.exp(self.log_sigma + group.aside + by_sigma)

    def log_epsilon(self, group: _Group, by_sigma: float = 0.0, by_rate: float = 0.0) -> float:
        """log(ε / target), a little aside of where the solver stands."""
        exposure, sigma, grid = self.of(group, by_rate), self.sigma(group, by_sigma), group.grid
        if exposure.accountant == "pld" and exposure.examples == 1 and not self.settled:
            # Far above its target, a group needs no grid as fine as the target's. (Of several examples, Rényi DP is too
            # loose to tell how far.)
            grid = max(grid, rough_epsilon(exposure.event(sigma), exposure.delta) / 200)
        return exposure.log_excess(sigma, group.target, grid)

    def solve(self, tolerance: float, *, fresh: bool) -> None:
        """Brings every ε to its target and the mean rate to the spec's, to a relative `tolerance`.

        Raises:
            ArgumentError: A group would have to be sampled at a rate above 1.
            BudgetError: There is no solution.
        """
        for step in range(MOST_STEPS):
            misses = {name: self.log_epsilon(g) for name, g in self.groups.items()}
            gap = 1 - sum(g.weight * g.rate for g in self.groups.values()) / self.rate
            worst = max(abs(miss) for miss in misses.values())
            if worst <= tolerance and abs(gap) <= tolerance:
                return
            if fresh and (step < 1 or worst > 0.1):
                self._differentiate(misses)
            self._step(misses, gap)
            self._check_stuck(misses, tolerance)
        raise BudgetError("no common noise and sampling rates meet these targets; bring the targets closer together")

    def _differentiate(self, misses: Mapping[str, float]) -> None:
        h = 0.02
        for name, g in self.groups.items():
            g.by_sigma = min((self.log_epsilon(g, by_sigma=h) - misses[name]) / h, -0.3)
            g.by_rate = max((misses[name] - self.log_epsilon(g, by_rate=-h)) / h, 0.3)

    def _step(self, misses: Mapping[str, float], gap: float) -> None:
        shares = {name: g.weight * g.rate / self.rate for name, g in self.groups.items()}
        missed = sum(shares[name] * misses[name] / g.by_rate for name, g in self.groups.items())
        slope = sum(shares[name] * g.by_sigma / g.by_rate for name, g in self.groups.items())
        move = _within(-(gap + missed) / slope)
        self.log_sigma += move
        for name, g in self.groups.items():
            g.log_rate = min(0.0, g.log_rate - _within((misses[name] + g.by_sigma * move) / g.by_rate))

    def _check_stuck(self, misses: Mapping[str, float], tolerance: float) -> None:
        for name, g in self.groups.items():
            g.stuck = g.stuck + 1 if g.log_rate == 0.0 and misses[name] < -tolerance else 0
            if g.stuck > PATIENCE:
                raise ArgumentError(
                    f'noise: the users of "{name}" would have to be sampled more than once a step to reach '
                    f"ε = {g.target:g} beside the other groups; lower that target or sampling.expected"
                )


def _within(move: float) -> float:
    return min(max(move, -LARGEST_STEP), LARGEST_STEP)


def by_sampling_rate(targets: Mapping[str, float], terms: Terms) -> Mechanism:
    """Brings each group to its target by its own sampling rate; noise and clip norm are the same for all.

    One σ = s/C such that the rates q_p with ε(q_p, σ, T, δ) = ε_p have the mean Σ r_p q_p = q. Equal targets give
    one rate for all.

    Args:
        targets: ε_p per group; the order of the groups is its order.
        terms: What they share.

    Returns:
        The mechanism, not yet verified (`calibration.verify`).

    Raises:
        ArgumentError: A group would have to be sampled at a rate above 1.
        BudgetError: The targets can't be reached.
    """
    return _by_rates(targets, terms, dict.fromkeys(targets, 0.0))


def by_both(targets: Mapping[str, float], terms: Terms, share: float) -> Mechanism:
    """Brings each group to its target partly by its clip norm and partly by its sampling rate.

    With σ_p,scale that of clip norms alone and one common σ: σ_p ∝ σ_p,scale^λ · σ^(1−λ), and the rates q_p that give
    ε_p there have the mean q. λ = 1 gives back `by_clip_norm`, λ = 0 `by_sampling_rate`.

    Args:
        targets: ε_p per group.
        terms: What they share.
        share: λ in [0, 1].
    """
    alone = {p: noise_multiplier(target, terms.exposure) for p, target in targets.items()}
    return _by_rates(targets, terms, {p: share * math.log(sigma) for p, sigma in alone.items()})


def _by_rates(targets: Mapping[str, float], terms: Terms, aside: Mapping[str, float]) -> Mechanism:
    weights = {p: terms.weights[p] for p in targets}
    sigmas, rates = _solved(dict(targets), weights, dict(aside), terms.exposure)
    more = 0.0
    while True:
        # The rates stay as they are, so that their mean is exact; a little more noise brings ε below every target.
        levers = {p: Levers(s * (1 + more), rate=q) for p, s, q in zip(targets, sigmas, rates, strict=True)}
        mechanism = terms.build(levers)
        if all(_kept(mechanism, i, target, terms) for i, target in enumerate(targets.values())):
            return mechanism
        more = 2 * more + 1e-6


def _kept(mechanism: Mechanism, group: int, target: float, terms: Terms) -> bool:
    delta, accountant = terms.exposure.delta, terms.accountant
    if isinstance(accountant, Searched):
        return accountant.excess(mechanism.event(group), accountant.allowed(target, delta)) <= 0
    return later_epsilon(mechanism, group, delta, accountant) <= target


@remembered
def _solved(
    targets: dict[str, float], weights: dict[str, float], aside: dict[str, float], exposure: Exposure
) -> tuple[list[float], list[float]]:
    """σ_p and q_p of every group, in order."""
    if isinstance(exposure.accountant, Searched):
        return _solved_one_by_one(targets, weights, aside, exposure)
    rate, mean = exposure.rate, sum(weights[p] * target for p, target in targets.items())
    groups = {
        p: _Group(target, weights[p], min(0.0, math.log(rate * target / mean)), target / 100, aside[p])
        for p, target in targets.items()
    }
    if exposure.examples == 1:
        # What many small steps come to, by the central limit theorem: near enough to begin with.
        sigma = max(0.3, rate * math.sqrt(2 * exposure.steps * math.log(1 / exposure.delta)) / mean)
    else:
        sigma = noise_multiplier(mean, exposure)
    solver = _Solver(groups, sigma * math.exp(-sum(weights[p] * aside[p] for p in targets)), exposure)
    pld = exposure.accountant == "pld"
    solver.solve(1e-3 if pld else 1e-7, fresh=True)
    if pld:
        for g in groups.values():
            g.grid = solver.of(g).settled_grid(solver.sigma(g))
        solver.settled = True
        solver.solve(1e-7, fresh=False)
    found = sum(g.weight * g.rate for g in groups.values())
    return [solver.sigma(g) for g in groups.values()], [min(1.0, g.rate * rate / found) for g in groups.values()]


def _solved_one_by_one(
    targets: dict[str, float], weights: dict[str, float], aside: dict[str, float], exposure: Exposure
) -> tuple[list[float], list[float]]:
    """The same in a search: for every σ each group's own rate, and the σ at which their mean is the spec's.

    A trial is held at a few Rényi orders, where its curve is far from a power of σ and q, and cheap to compute.
    """

    def rate_of(p: str, log_sigma: float) -> float:
        sigma = math.exp(log_sigma + aside[p])

        def above(y: float) -> float:  # falls with −log q
            return exposure.of(rate=math.exp(-y)).log_excess(sigma, targets[p], 0.0)

        found = falling_root(above, -math.log(exposure.rate), -1.5, 1e-8, 0.0, -math.log(SMALLEST_RATE))
        return 0.0 if found is None else math.exp(-found[0])

    def missing(log_sigma: float) -> float:  # falls with log σ: more noise lets everybody be sampled more often
        mean = sum(weights[p] * rate_of(p, log_sigma) for p in targets)
        return math.log(exposure.rate / max(mean, SMALLEST_RATE))

    first = math.log(noise_multiplier(sum(weights[p] * target for p, target in targets.items()), exposure))
    found = falling_root(missing, first, -1.5, 1e-7, math.log(SMALLEST_MULTIPLIER), math.log(LARGEST_MULTIPLIER))
    if found is None:
        raise BudgetError("no common noise and sampling rates meet these targets; bring the targets closer together")
    rates = {p: rate_of(p, found[0]) for p in targets}
    if least := next((p for p, rate in rates.items() if rate == 0.0), None):
        raise BudgetError(f'noise: the users of "{least}" could hardly be sampled at all; raise that target')
    # The mean is a little above the spec's: less of everybody keeps every target, and the mean exact.
    mean = sum(weights[p] * rate for p, rate in rates.items())
    shrunk = [rate * exposure.rate / mean for rate in rates.values()]
    return [math.exp(found[0] + aside[p]) for p in targets], shrunk
