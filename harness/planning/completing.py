"""Ends the plan: calibrates for a population, and accounts the result again from the finished mechanism.

Before a private session has answered, this gives the plan that binds the run: what is asked, and what everybody's ε
will be. Afterwards it gives the plan that is executed, which must lie under the first.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from harness.data.canaries import places
from harness.errors import ArgumentError, BudgetError
from harness.planning.asking import Questions, questions
from harness.planning.basis import Basis, Population, SearchTerms
from harness.planning.choosing import Choice, choose
from harness.planning.learners import groups_learnt
from harness.planning.plan import Plan
from harness.plugins import Lever, OwnRecordsSegmenter, Proposal, SessionSegmenter
from harness.privacy import calibration
from harness.privacy.accounting import (
    answering_group,
    charges_epsilon,
    group_within,
    largest_epsilon,
)
from harness.privacy.curves import epsilon_curve, trade_offs
from harness.privacy.guarantee import Guarantee, SearchCost
from harness.privacy.levers import calibrate, stretches
from harness.privacy.mechanism import GroupMechanism, Mechanism, Relation
from harness.privacy.terms import Following, Terms
from harness.spec import Spec
from harness.spec.models import SMALLEST_RATE


def complete(basis: Basis, population: Population, median: float | None = None) -> Plan:
    """Calibrates and accounts.

    Args:
        basis: What the spec and its plugins say.
        population: Public numbers, or noisy answers.
        median: The noisy median of examples per user, where the spec leaves a choice to it; None: not asked yet.

    Returns:
        The plan.

    Raises:
        ArgumentError: The spec can't be met with this population.
        BudgetError: The budget can't be kept.
    """
    spec = basis.loaded.spec
    asked = questions(basis, population)
    accountant = basis.accountant
    try:
        found = calibrated(basis, population, asked, median)
        mechanism, epsilon, delta, choice = found.mechanism, found.epsilon, found.delta, found.choice
        curve: list[tuple[int, float]] = []
        shown: tuple[tuple[tuple[float, float], ...], ...] = ()
        answered, exposed, cost = spec.privacy.accountant, None, None
        if delta is not None and mechanism.holdout is not None:
            exposed = charges_epsilon((mechanism.holdout,), delta, accountant)
        if basis.search is not None:
            epsilon, exposed, cost = _claimed(basis.search, mechanism, delta, exposed)
            # A search has spent everything from the beginning.
            curve, answered = [(0, basis.search.largest), (mechanism.steps, basis.search.largest)], "rdp"
        elif epsilon is not None and delta is not None:
            curve = epsilon_curve(mechanism, delta, answered, spec.train.checkpoint_every)
            shown = trade_offs(mechanism, delta, answered)
            # Of the group whose ε is stated.
            answered = answering_group(mechanism, epsilon.index(max(epsilon)), delta, accountant)
    except (ArithmeticError, ValueError, MemoryError):
        more = "; try privacy.accountant: rdp" if accountant == "pld" else ""
        raise BudgetError(f"the accountant can't settle on these numbers{more}") from None
    guarantee = Guarantee(
        mechanism,
        epsilon,
        delta,
        answered,
        spec.data.name,
        spec.data.visibility,
        spec.data.holdout.users,
        isinstance(basis.segmenter, OwnRecordsSegmenter | SessionSegmenter) or basis.sensitivity is not None,
        _public_counts_in_words(population, basis),
        holdout_file=spec.data.holdout.file is not None,
        largest=found.largest if basis.search is None or found.largest is None else basis.search.largest,
        holdout=exposed,
        search=cost,
    )
    return Plan(basis, mechanism, guarantee, population, tuple(curve), shown, asked, choice)


def _claimed(
    search: SearchTerms, mechanism: Mechanism, delta: float | None, exposed: float | None
) -> tuple[tuple[float, ...], float | None, SearchCost]:
    """What is claimed whichever trial wins, of groups and of private hold-out users: this trial's own price is less.

    Raises:
        BudgetError: It isn't: the trial does not belong into this search.
    """
    if delta is None:
        raise BudgetError("a trial without noise has no place in a search within a budget")
    claims = tuple(search.claim(g.name) for g in mechanism.groups)
    found = [group_within(mechanism, i, claim, delta, search.searched) for i, claim in enumerate(claims)]
    within = all(own <= claim * (1 + 1e-9) for own, claim in zip(found, claims, strict=True))
    if not within or (exposed or 0.0) > search.largest * (1 + 1e-9):
        raise BudgetError("a trial is refused: it would be exposed more than the search has accounted for")
    answers = None if exposed is None else search.searched.answers().allowed(search.largest, delta)
    curves = tuple(search.searched.allowed(claim, delta) for claim in claims)
    return claims, None if exposed is None else search.largest, SearchCost(search.searched, curves, answers)


@dataclass(frozen=True)
class Calibrated:
    """What calibration leads to.

    Attributes:
        mechanism: Verified.
        epsilon: ε of each of its groups; None without noise.
        delta: δ; None without noise.
        choice: What the spec left open; None without noise.
        largest: ε of any user, where the groups themselves are learnt from noisy answers.
    """

    mechanism: Mechanism
    epsilon: tuple[float, ...] | None = None
    delta: float | None = None
    choice: Choice | None = None
    largest: float | None = None


def calibrated(basis: Basis, population: Population, asked: Questions, median: float | None = None) -> Calibrated:
    """Calibrates, and accounts for every group from the finished mechanism: a plan's levers, and no more than these.

    Raises:
        ArgumentError: The spec can't be met with this population.
        BudgetError: The budget can't be kept.
        ArithmeticError: The accountant can't settle on these numbers; so with ValueError and MemoryError.
    """
    spec, proposal = basis.loaded.spec, basis.proposal
    # Whose names are read off public attributes: a group that only one user is in would come or go with that user.
    counted = basis.names_counted or "public" in (population.source, population.weights_source)
    relation: Relation = "zero_out" if counted else "add_or_remove"
    if proposal.epsilon is None:
        return Calibrated(_ordinary(spec, population, basis, relation))
    delta = _delta(spec, population)
    if basis.search is not None and asked.choice:
        raise ArgumentError(
            "sampling: auto is decided by a noisy answer, which a search would ask again and again; name its values in "
            "sweep.space instead"
        )
    terms = _terms(basis, population, relation, delta, asked)
    choice = choose(basis, terms, median)
    mechanism = _planted(calibrate(proposal, proposal.epsilon, choice.terms), spec)
    epsilon = calibration.verify(mechanism, proposal.epsilon, spec.privacy.epsilon, delta, basis.accountant)
    if asked.choice and median is None:
        # What will be chosen may come nearer to the targets than what stands in for it.
        epsilon = tuple(proposal.epsilon[g.name] for g in mechanism.groups)
    largest = _largest(basis, mechanism, delta)
    if largest is not None and asked.choice and median is None:
        _check_choice_of_learnt(proposal)
        largest = spec.privacy.epsilon  # as the targets: what will be chosen may come nearer to it
    return Calibrated(mechanism, epsilon, delta, choice, largest)


def settle(plan: Plan, population: Population, median: float | None, edges: tuple[float, ...] | None = None) -> Plan:
    """The plan after the private session has answered: it must lie under the one that was shown and reserved.

    Args:
        plan: The one before.
        population: With the noisy counts.
        median: The noisy median of examples per user, where it was asked.
        edges: Of the risk tiers, where they are noisy answers.

    Raises:
        BudgetError: It would not; nothing is trained then.
    """
    settled = complete(plan.basis, population, median)
    before, after = plan.guarantee, settled.guarantee
    kept = after.total is not None and before.total is not None and after.total <= before.total * (1 + 1e-9)
    same_cost = all(
        getattr(plan.mechanism, what) == getattr(settled.mechanism, what)
        for what in ("charges", "choice", "choice_delta", "holdout")
    )
    if not (kept and same_cost and (plan.chosen_later or _same_exposure(plan.mechanism, settled.mechanism))):
        raise BudgetError("the plan is refused: with the noisy answers it would not be the one that was accounted")
    return dataclasses.replace(settled, ledger=plan.ledger, memory=plan.memory, answered_edges=edges)


def _same_exposure(bound: Mechanism, settled: Mechanism) -> bool:
    """Whether every group is exposed to what was accounted before the answers: only common scales may differ."""
    if [g.name for g in bound.groups] != [g.name for g in settled.groups] or bound.holdout != settled.holdout:
        return False
    for i, (a, b) in enumerate(zip(bound.groups, settled.groups, strict=True)):
        as_before = dataclasses.replace(b, users=a.users, clip_norm=a.clip_norm) == a
        if bound.sampling_unit == "user":
            as_before = dataclasses.replace(b, users=a.users, clip_norm=a.clip_norm, examples_per_user=1) == (
                dataclasses.replace(a, examples_per_user=1)
            )
        if not as_before or settled.accounted_multiplier(i) < bound.accounted_multiplier(i) * (1 - 1e-12):
            return False
    return (bound.schedule, bound.sampling_unit) == (settled.schedule, settled.sampling_unit)


def _check_choice_of_learnt(proposal: Proposal) -> None:
    """Where only clip norms differ, no user is exposed more than the loosest group, whatever will be chosen."""
    if proposal.lever is not Lever.CLIP_NORM:
        raise ArgumentError(
            "sampling: auto does not go with groups that are learnt from noisy answers where anything but clip norms "
            "differs between them; give unit and examples_per_user"
        )


def _largest(basis: Basis, mechanism: Mechanism, delta: float) -> float | None:
    """ε of any user where the groups themselves are learnt from noisy answers: nothing less can be claimed then."""
    if not groups_learnt(basis):
        return None
    spec = basis.loaded.spec
    value = largest_epsilon(mechanism, delta, basis.accountant)
    if not value <= spec.privacy.epsilon * (1 + 1e-9):
        raise BudgetError(
            f"the groups are learnt from noisy answers, so that no group's own ε can be claimed; the least noise and "
            f"the highest rate of all of them come to ε = {value:.6g}, above {spec.privacy.epsilon:g}"
        )
    return value


def _terms(basis: Basis, population: Population, relation: Relation, delta: float, asked: Questions) -> Terms:
    spec, clipping = basis.loaded.spec, basis.loaded.spec.clipping
    following = None
    if clipping.type == "adaptive":
        following = Following(clipping.quantile or 0.5, clipping.learning_rate or 0.2, clipping.bit_noise)
    unit, per_user = spec.sampling.unit, spec.sampling.examples_per_user
    terms = Terms(
        weights={g.name: population.weights[g.name] for g in basis.groups},
        users=population.users,
        rate=1.0,
        steps=spec.train.steps,
        delta=delta,
        clip_norm=clipping.first_norm,
        examples_per_user=1 if per_user == "auto" else per_user,
        relation=relation,
        accountant=basis.accountant,
        unit="user" if unit == "auto" else unit,
        schedule=stretches(basis.proposal.schedule, spec.train.steps),
        following=following,
        charges=asked.charges,
        choice=asked.choice,
        choice_delta=delta / 10 if asked.choice else 0.0,
        holdout=asked.holdout(delta),
    )
    return terms if asked.choice else dataclasses.replace(terms, rate=rate_of(spec, terms))


def rate_of(spec: Spec, terms: Terms) -> float:
    """q: the spec's, or what brings the expected number of units to the spec's.

    Raises:
        ArgumentError: It is above 1, or too small.
    """
    expected = spec.sampling.expected
    if expected is None:
        assert spec.sampling.rate is not None
        return spec.sampling.rate
    units = terms.users * (terms.examples_per_user if terms.unit == "example" else 1)
    what = "users" if terms.unit == "user" else "examples"
    if expected > units:
        raise ArgumentError(
            f"sampling.expected: {expected:g} {what} per step, but there are {units:g} to train on; give fewer"
        )
    if expected / units < SMALLEST_RATE:
        raise ArgumentError(
            f"sampling.expected: {expected:g} of {units:g} {what} is a rate of {expected / units:g}; "
            f"the smallest is {SMALLEST_RATE:g}"
        )
    return expected / units


def _ordinary(spec: Spec, population: Population, basis: Basis, relation: Relation) -> Mechanism:
    """Training without noise: nothing to calibrate."""
    per_user, unit = spec.sampling.examples_per_user, spec.sampling.unit
    if per_user == "auto" or unit == "auto":
        raise ArgumentError("sampling: auto is chosen by the noise that it needs; without noise, say what you want")
    weights = {g.name: population.weights[g.name] for g in basis.groups}
    terms = Terms(weights, population.users, 1.0, spec.train.steps, 0.5, spec.clipping.first_norm, per_user, unit=unit)
    rate = rate_of(spec, terms)
    made = tuple(
        GroupMechanism(p, w * population.users, rate, spec.clipping.first_norm, spec.train.steps, per_user)
        for p, w in weights.items()
    )
    return _planted(Mechanism(spec.train.steps, 0.0, made, relation, unit), spec)


def _planted(mechanism: Mechanism, spec: Spec) -> Mechanism:
    """With the spec's canaries, which change nobody's exposure: only what the sums are divided by."""
    found = Counter(place.group for place in places(spec.audit, spec.canary_kinds, len(mechanism.groups)))
    return mechanism.planted([found[g] for g in range(len(mechanism.groups))])


def _delta(spec: Spec, population: Population) -> float:
    if spec.privacy.delta is not None:
        return spec.privacy.delta
    if population.source != "public":
        raise ArgumentError("privacy.delta: must be given unless the population is public")
    return 1.0 / (10.0 * population.users)


def _public_counts_in_words(population: Population, basis: Basis) -> tuple[str, ...]:
    found = []
    if population.source == "public":
        found.append("the number of users (a removed user stays counted, with no records)")
    before_merging = sum(map(len, basis.holds))
    if population.weights_source == "public" and max(before_merging, len(population.weights)) > 1:
        found.append("the number of users in each group, by public attributes")
    elif basis.names_counted:
        found.append("which values of the public attributes occur among the users, since they name the groups")
    if basis.dropped:
        names = ", ".join(f'"{one.name}"' for one in basis.dropped)
        found.append(f"that nobody in {names} is trained on (groups.drop)")
    return tuple(found)


def weights_of(answers: Mapping[str, float]) -> dict[str, float]:
    """Fractions from noisy counts: a group that comes out empty, or below, counts as one user."""
    counted = {name: max(1.0, value) for name, value in answers.items()}
    return {name: value / sum(counted.values()) for name, value in counted.items()}
