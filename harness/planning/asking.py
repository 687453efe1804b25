"""What a run asks about all users before it trains, and of hold-out users while it does: known before, and charged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.planning.basis import Basis, Population
from harness.planning.learners import cuts, learners
from harness.privacy.accounting import Accountant, charges_epsilon, of_answers
from harness.privacy.calibration import noise_multiplier
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import Charge

GROUPS, EXAMPLES, EVALUATION = "users per group", "examples per user (median)", "evaluation of hold-out users"


@dataclass(frozen=True)
class Questions:
    """Everything that is asked, as charges.

    Attributes:
        charges: Of answers that no lever depends on: composed into every group's event.
        choice: Of answers that decide levers.
        counts_groups: Whether users are counted per group.
        asks_median: Whether the median of examples per user is asked.
        evaluations: How often private hold-out users are evaluated; 0: they are public, or there are none.
        budget: ε that a private hold-out user may be exposed to: the loosest group's.
        accountant: With which that is computed.
    """

    charges: tuple[Charge, ...]
    choice: tuple[Charge, ...]
    counts_groups: bool
    asks_median: bool
    evaluations: int
    budget: float
    accountant: Accountant

    @property
    def pending(self) -> bool:
        """Whether anything is asked of training users."""
        return bool(self.charges or self.choice)

    def holdout(self, delta: float) -> Charge | None:
        """The evaluations, with the least noise that keeps a hold-out user's ε within the budget."""
        if not self.evaluations:
            return None
        once = noise_multiplier(self.budget, Exposure(1.0, 1, delta, of_answers(self.accountant)))
        # As many Gaussians are one, with √count of the noise; rounding is made up for.
        std = once * math.sqrt(self.evaluations)
        charge, more = Charge(EVALUATION, std, self.evaluations), 1e-9
        while charges_epsilon((charge,), delta, self.accountant) > self.budget:
            charge, more = Charge(EVALUATION, std * (1 + more), self.evaluations), 10 * more
        return charge


def questions(basis: Basis, population: Population) -> Questions:
    """What a spec has to ask."""
    spec = basis.loaded.spec
    one = spec.privacy.session.noise_multiplier
    counts = "noisy" in (population.source, population.weights_source)
    counts = counts or (spec.data.population == "noisy" or (spec.data.weights == "noisy" and len(basis.groups) > 1))
    charges = [Charge(GROUPS, one)] if counts else []
    charges += [charge for learner in learners(basis) for charge in learner.charges]
    charges += [Charge(query.name, query.noise_multiplier) for query in cuts(basis)]
    unit, per_user = spec.sampling.unit, spec.sampling.examples_per_user
    median, decides = (Charge(EXAMPLES, one),), unit != "user"
    asks = basis.proposal.epsilon is not None and (unit == "auto" or per_user == "auto")
    if asks and not decides:
        charges += median
    evaluations = 0
    if spec.data.holdout.visibility == "private" and spec.data.holdout.users > 0 and basis.proposal.epsilon is not None:
        evaluations = 1 + -(-spec.train.steps // spec.train.checkpoint_every)
    return Questions(
        tuple(charges),
        median if asks and decides else (),
        counts,
        asks,
        evaluations,
        max((basis.proposal.epsilon or {"": 0.0}).values()),
        basis.accountant,
    )
