"""What decides ε of one group's users, but for the noise: what calibration varies the noise under."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.privacy.accounting import Accountant, charges_epsilon, epsilon, pld_epsilon, rdp_epsilon, settled_grid
from harness.privacy.mechanism import Charge, GroupMechanism, Mechanism, Stretch, Unit
from harness.privacy.search import Searched

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent


@dataclass(frozen=True)
class Exposure:
    """One group's part in a mechanism.

    Attributes:
        rate: q_p.
        steps: T of the whole run.
        delta: δ.
        accountant: With which ε is computed.
        unit: What is sampled.
        examples: G_p, of sampled examples.
        taken: T_p; None: all steps.
        schedule: Of the whole run.
        charges: Of a session before the first step.
    """

    rate: float
    steps: int
    delta: float
    accountant: Accountant = "pld"
    unit: Unit = "user"
    examples: int = 1
    taken: int | None = None
    schedule: tuple[Stretch, ...] = ()
    charges: tuple[Charge, ...] = ()

    def event(self, sigma: float) -> DpEvent:
        """What a user is exposed to at this noise multiplier: the event of the mechanism with this one group."""
        group = GroupMechanism("group", 1.0, self.rate, 1.0, self.taken or self.steps, self.examples)
        return Mechanism(
            self.steps, sigma, (group,), "add_or_remove", self.unit, schedule=self.schedule, charges=self.charges
        ).event(0)

    def epsilon(self, sigma: float) -> float:
        """ε at this noise multiplier, as it will be reported."""
        return epsilon(self.event(sigma), self.delta, self.accountant)

    def epsilon_on(self, sigma: float, grid: float) -> float:
        """An upper bound of it at one grid of the privacy loss distribution; without PLD, ε itself."""
        if self.accountant == "pld":
            return pld_epsilon(self.event(sigma), self.delta, grid)
        if self.accountant == "rdp":
            return rdp_epsilon(self.event(sigma), self.delta)
        return self.epsilon(sigma)

    def keeps(self, sigma: float, target: float) -> bool:
        """Whether ε at this noise multiplier, as it will be reported, is at most `target`."""
        if isinstance(self.accountant, Searched):
            return self.log_excess(sigma, target, 0.0) <= 0
        return self.epsilon(sigma) <= target

    def log_excess(self, sigma: float, target: float, grid: float) -> float:
        """How far ε lies above `target`, at most 0 where that is kept: about a straight line, which falls with log σ.

        The log of their ratio, within ±3; in a search, of the largest ratio of a trial's Rényi DP to what it may have.
        """
        if isinstance(self.accountant, Searched):
            return self.accountant.excess(self.event(sigma), self.accountant.allowed(target, self.delta))
        # Where δ alone covers a release, ε is 0, without a logarithm.
        return min(max(math.log(max(self.epsilon_on(sigma, grid), 1e-300) / target), -3.0), 3.0)

    def settled_grid(self, sigma: float) -> float:
        """The grid that is fine enough at this noise multiplier."""
        return settled_grid(self.event(sigma), self.delta)

    def least(self) -> float:
        """ε of the charges alone: no target below it can be reached."""
        return charges_epsilon(self.charges, self.delta, self.accountant)

    def of(self, **changes: object) -> Exposure:
        """The same with other values."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
