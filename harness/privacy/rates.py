"""The `sample` lever: one noise multiplier for all, and for each group the sampling rate that meets its target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import ArgumentError, BudgetError
from harness.privacy.accounting import Accountant, group_epsilon, pld_epsilon, rdp_epsilon, rough_epsilon, settled_grid
from harness.privacy.mechanism import GroupMechanism, Mechanism, Relation

LARGEST_STEP = 0.7
"""Of log σ or log q in one step of the solver: about a factor of two."""
MOST_STEPS = 60
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
        by_sigma: ∂ log ε / ∂ log σ, negative.
        by_rate: ∂ log ε / ∂ log q, positive.
        stuck: Steps in a row at q = 1 below the target.
    """

    target: float
    weight: float
    log_rate: float
    grid: float
    by_sigma: float = -1.0
    by_rate: float = 1.0
    stuck: int = 0

    @property
    def rate(self) -> float:
        return math.exp(self.log_rate)


class _Solver:
    """Newton's method for σ and all q_p at once, in logarithms; derivatives are kept while they serve."""

    def __init__(
        self, groups: Mapping[str, _Group], rate: float, sigma: float, steps: int, delta: float, accountant: Accountant
    ) -> None:
        self.groups, self.rate, self.log_sigma = groups, rate, math.log(sigma)
        self.steps, self.delta, self.accountant = steps, delta, accountant
        self.settled = False

    @property
    def sigma(self) -> float:
        return math.exp(self.log_sigma)

    def mechanism(self, log_sigma: float, log_rate: float) -> Mechanism:
        one = GroupMechanism("group", 1.0, min(1.0, math.exp(log_rate)), 1.0, self.steps, 1)
        return Mechanism(self.steps, math.exp(log_sigma), (one,), "add_or_remove")

    def log_epsilon(self, group: _Group, by_sigma: float = 0.0, by_rate: float = 0.0) -> float:
        """log(ε / target), a little aside of where the solver stands."""
        event = self.mechanism(self.log_sigma + by_sigma, group.log_rate + by_rate).event(0)
        if self.accountant == "rdp":
            value = rdp_epsilon(event, self.delta)
        else:
            # Far above its target, a group needs no grid as fine as the target's.
            grid = group.grid if self.settled else max(group.grid, rough_epsilon(event, self.delta) / 200)
            value = pld_epsilon(event, self.delta, grid)
        # Where δ alone covers a release, ε is 0: far below the target, and without a logarithm.
        return min(max(math.log(max(value, 1e-300) / group.target), -3.0), 3.0)

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


def by_sampling_rate(
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
    """Brings each group to its target by its own sampling rate; noise and clip norm are the same for all.

    One σ = s/C such that the rates q_p with ε(q_p, σ, T, δ) = ε_p have the mean Σ r_p q_p = q. Equal targets give
    one rate for all.

    Args:
        targets: ε_p per group; the order of the groups is its order.
        weights: r_p per group, public fractions of the population that sum to 1.
        users: N, the public number of training users.
        rate: q, the mean sampling rate.
        steps: T.
        delta: δ.
        clip_norm: C.
        examples_per_user: Of each group.
        relation: Of neighbouring data sets.
        accountant: With which ε is computed.

    Returns:
        The mechanism, not yet verified (`calibration.verify`).

    Raises:
        ArgumentError: A group would have to be sampled at a rate above 1.
        BudgetError: The targets can't be reached.
    """
    mean = sum(weights[p] * target for p, target in targets.items())
    groups = {
        p: _Group(target, weights[p], min(0.0, math.log(rate * target / mean)), target / 100)
        for p, target in targets.items()
    }
    # What many small steps come to, by the central limit theorem: near enough to begin with.
    sigma = max(0.3, rate * math.sqrt(2 * steps * math.log(1 / delta)) / mean)
    solver = _Solver(groups, rate, sigma, steps, delta, accountant)
    solver.solve(1e-3 if accountant == "pld" else 1e-7, fresh=True)
    if accountant == "pld":
        for g in groups.values():
            g.grid = settled_grid(solver.mechanism(solver.log_sigma, g.log_rate).event(0), delta)
        solver.settled = True
        solver.solve(1e-7, fresh=False)
    found = sum(g.weight * g.rate for g in groups.values())
    rates = [min(1.0, g.rate * rate / found) for g in groups.values()]

    made = tuple(
        GroupMechanism(p, weights[p] * users, q, clip_norm, steps, examples_per_user)
        for p, q in zip(targets, rates, strict=True)
    )
    # The rates stay as they are, so that their mean is exact; a little more noise brings every ε below its target.
    sigma, more = solver.sigma, 1e-6
    mechanism = Mechanism(steps, sigma * clip_norm, made, relation)
    while any(group_epsilon(mechanism, i, delta, accountant) > t for i, t in enumerate(targets.values())):
        sigma, more = sigma * (1 + more), 2 * more
        mechanism = Mechanism(steps, sigma * clip_norm, made, relation)
    return mechanism
