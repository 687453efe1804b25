"""The loss of each group's private hold-out users, as noisy answers of which each is accounted.

Evaluation k releases, for each group p at once, what the loss is by now:
``m_k = m_{k−1} + (Σ_u clip(loss_u − m_{k−1}, ±b) + N(0, (z·b)²)) / n_p``, with z of the mechanism's charge and n_p a
public constant. A user is in one group and moves one coordinate of the sum by at most b, so each evaluation is one
Gaussian answer with multiplier z. All hold-out users with an example take part: nobody's place depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.holdout import BOUND, FIRST_BOUND, START
from harness.errors import BudgetError
from harness.privacy.mechanism import Charge
from harness.privacy.randomness import Randomness
from harness.training.noise import LOSSES, noisy_sum


@dataclass(frozen=True)
class PrivateEvaluation:
    """The noisy evaluations of one series. All fields are public but the randomness.

    Attributes:
        charge: How many evaluations are accounted, and with which noise.
        names: Names of the groups.
        users: n_p, the public expected number of hold-out users of each group; 0: the group has none, and no answer.
        randomness: The run's draws.
        series: Part of the noise's address.
    """

    charge: Charge
    names: tuple[str, ...]
    users: tuple[float, ...]
    randomness: Randomness
    series: str

    def __post_init__(self) -> None:
        if len(self.names) != len(self.users) or not all(0 <= n < float("inf") for n in self.users):
            raise ValueError("each group needs the public number of its private hold-out users")

    def release(
        self,
        earlier: Sequence[Mapping[str, Any]],
        step: int,
        groups: Sequence[int],
        measure: Callable[[], NDArray[np.float64]],
    ) -> dict[str, float]:
        """One noisy evaluation: the next after those in `earlier`.

        Args:
            earlier: All rows of the series so far, as released or about to be; each evaluation starts from the last.
            step: Steps taken; part of the noise's address.
            groups: Index of each hold-out user's group, -1 for none, shape [users]. Private.
            measure: Gives each user's mean loss per token in nats, shape [users]. Private. Not called if refused.

        Returns:
            ``eval/loss``, weighted by n_p, and ``eval/loss/<group>``; all noisy. Empty if no group has hold-out users.

        Raises:
            BudgetError: All evaluations that are accounted have been made.
        """
        asked = [g for g, n in enumerate(self.users) if n > 0]
        if not asked:
            return {}
        known = [row for row in earlier if "eval/loss" in row]
        if len(known) >= self.charge.count:
            raise BudgetError(
                f"the private hold-out users were evaluated {self.charge.count} times, and no more is accounted; "
                "a larger train.checkpoint_every needs fewer evaluations"
            )
        center = np.full(len(self.names), START)
        if known:
            center[asked] = [known[-1][f"eval/loss/{self.names[g]}"] for g in asked]
        bound = BOUND if known else FIRST_BOUND
        moved = bounded_sums(measure(), groups, center, bound)
        noise_std = self.charge.noise_multiplier * bound
        noisy = noisy_sum(moved, noise_std, self.randomness, LOSSES, step, self.series)
        found = {g: float(center[g] + noisy[g] / self.users[g]) for g in asked}
        overall = sum(self.users[g] * found[g] for g in asked) / sum(self.users[g] for g in asked)
        return {"eval/loss": overall} | {f"eval/loss/{self.names[g]}": found[g] for g in asked}


def bounded_sums(
    losses: NDArray[np.float64], groups: Sequence[int], center: NDArray[np.float64], bound: float
) -> NDArray[np.float64]:
    """Per group, the sum over its users of ``clip(loss − center, ±bound)``; what is not finite counts as +bound.

    One user, whatever their records, moves one coordinate by at most `bound`. Private.

    Args:
        losses: Each user's loss, shape [users].
        groups: Index of each user's group, -1 for none, shape [users].
        center: What each group's losses are compared with, shape [groups].
        bound: b, in the unit of the losses.
    """
    sums = np.zeros(len(center))
    for g in range(len(center)):
        own = losses[np.asarray(groups, dtype=np.int64) == g]
        sums[g] = np.where(np.isfinite(own), np.clip(own - center[g], -bound, bound), bound).sum()
    return sums
