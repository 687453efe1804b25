"""Chooses what is sampled, and how many examples of a user count, by the noise that each choice is predicted to need.

Compared is noise / (clip norm × expected units) at the same number of examples per step, times what averaging G
examples of one user is assumed to take from a gradient's norm: with a share ρ of it common to all examples of a user,
√(ρ + (1 − ρ) / G). Accounting alone gives the first; ρ is a public constant. What users have is the only private
number, and comes in as one noisy, charged median of examples per user.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import ArgumentError, BudgetError
from harness.planning.basis import Basis
from harness.privacy.calibration import drafted_multiplier
from harness.privacy.levers import answers_epsilon
from harness.privacy.mechanism import Unit
from harness.privacy.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMON_SHARE = 0.5
"""ρ: how much of a gradient's squared norm all examples of one user have in common."""
STEPS_OF_G = (1, 2, 4, 8, 16, 32, 64)
"""The numbers of examples per user that are compared."""


@dataclass(frozen=True)
class Candidate:
    """One way to sample. Public.

    Attributes:
        unit: What is drawn and clipped.
        examples_per_user: Of a user in a step, or kept.
        noise_to_signal: Noise std over the largest norm of the expected sum, for the mean clip norm.
        predicted: The same, with what averaging over a user's examples is assumed to gain.
    """

    unit: Unit
    examples_per_user: int
    noise_to_signal: float
    predicted: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and between what.

    Attributes:
        terms: With the choice made.
        candidates: All that were compared; empty where the spec leaves no choice.
        median: The noisy median that decided; None: it is not known yet, or not asked.
    """

    terms: Terms
    candidates: tuple[Candidate, ...]
    median: float | None


def choose(basis: Basis, terms: Terms, median: float | None) -> Choice:
    """Makes the choices that the spec leaves open.

    Args:
        basis: The spec and the policy's proposal.
        terms: With everything else.
        median: Noisy median of examples per user; None: not known yet, and the smallest choice stands in.

    Raises:
        ArgumentError: Nothing fits this population.
    """
    sampling = basis.loaded.spec.sampling
    if sampling.unit != "auto" and sampling.examples_per_user != "auto":
        return Choice(terms, (), None)
    limit = 1 if median is None else max(1, round(median))
    if sampling.unit == "user":
        return Choice(dataclasses.replace(terms, examples_per_user=min(limit, STEPS_OF_G[-1])), (), median)
    units: tuple[Unit, ...] = ("user", "example") if sampling.unit == "auto" else ("example",)
    candidates = tuple(compared(basis, terms, units))
    if not candidates:
        raise ArgumentError("sampling.expected: no way to sample so many examples per step; give fewer")
    chosen = best(candidates, limit)
    return Choice(_with(basis, terms, chosen.unit, chosen.examples_per_user), candidates, median)


def best(candidates: Sequence[Candidate], limit: int) -> Candidate:
    """The candidate with the least predicted noise; of examples, as many as half of all users have.

    Args:
        candidates: Of one or both units.
        limit: The median of examples per user: with a larger G, fewer than half of all users would fill it.
    """
    within = [c for c in candidates if c.examples_per_user <= limit] or [
        min(candidates, key=lambda c: c.examples_per_user)
    ]
    # Users who may keep more examples are drawn on more of what they wrote, at hardly more noise.
    kept = max((c for c in within if c.unit == "example"), key=lambda c: c.examples_per_user, default=None)
    users = min((c for c in within if c.unit == "user"), key=lambda c: c.predicted, default=None)
    found = [c for c in (users, kept) if c is not None]
    return min(found, key=lambda c: c.predicted)


def compared(basis: Basis, terms: Terms, units: Sequence[Unit]) -> list[Candidate]:
    """What each way to sample is predicted to need, at the same examples per step. Costs no privacy.

    By the noise multiplier of the loosest group's target, to about two percent.
    """
    target = max((basis.proposal.epsilon or {"": 1.0}).values()) - answers_epsilon(terms)
    found = []
    for unit in units:
        for examples in STEPS_OF_G:
            try:
                with_choice = _with(basis, terms, unit, examples)
                sigma = drafted_multiplier(target, with_choice.exposure)
            except (ArgumentError, BudgetError, ArithmeticError, ValueError):
                continue
            found.append(_candidate(with_choice, sigma))
    return found


def _candidate(terms: Terms, sigma: float) -> Candidate:
    units = terms.users * (terms.examples_per_user if terms.unit == "example" else 1)
    ratio = sigma / (units * terms.rate)
    averaged = terms.examples_per_user if terms.unit == "user" else 1
    gain = math.sqrt(COMMON_SHARE + (1 - COMMON_SHARE) / averaged)
    return Candidate(terms.unit, terms.examples_per_user, ratio, ratio * gain)


def _with(basis: Basis, terms: Terms, unit: Unit, examples: int) -> Terms:
    """The terms with one choice, at the spec's expected number of examples per step."""
    expected = basis.loaded.spec.sampling.expected
    assert expected is not None
    rate = expected / (terms.users * examples)
    if rate > 1:
        raise ArgumentError(f"sampling.expected: {expected:g} examples per step are more than there are")
    return dataclasses.replace(terms, unit=unit, examples_per_user=examples, rate=rate)
