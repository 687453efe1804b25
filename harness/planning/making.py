"""Makes the plan: counts what is public, asks the noise policy, calibrates, and accounts the result again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.data.groups import PublicCounts, public_counts
from harness.data.sources.base import Columns, RecordSource, open_source
from harness.data.tiers import Sensitivity
from harness.errors import ArgumentError, BudgetError
from harness.packages import name_of
from harness.planning.fitting import look
from harness.planning.plan import Plan, Population
from harness.plugins import (
    Group,
    Lever,
    NoisePolicy,
    OwnRecordsSegmenter,
    PluginError,
    Proposal,
    Segmenter,
    noise,
    segmentation,
)
from harness.privacy import calibration
from harness.privacy.accounting import answering, epsilon_curve, trade_offs
from harness.privacy.guarantee import Guarantee
from harness.privacy.mechanism import GroupMechanism, Mechanism, Relation
from harness.spec import LoadedSpec, Spec, load_spec
from harness.spec.models import SMALLEST_EPSILON, SMALLEST_RATE
from harness.spec.privacy_groups import groups_of
from harness.spec.problems import one_line


def make_plan(spec: LoadedSpec | str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Plans a run: counts what is public, calibrates, and accounts the result again from the finished mechanism.

    Args:
        spec: A loaded spec, or its path.
        overrides: ``key=value``, if a path is given.

    Returns:
        The plan. Nothing has been read of any record but user names and declared public columns.

    Raises:
        ArgumentError: The spec or the data it names are wrong.
        BudgetError: The budget can't be kept.
        MachineError: The ledger does not answer.
    """
    loaded = spec if isinstance(spec, LoadedSpec) else load_spec(spec, overrides)
    block = loaded.spec
    rule = segmentation.build(block.segmentation.type, block.segmentation.parameters)
    source = open_source(block.data, loaded.base_dir)
    try:
        counts = _count(block, rule, source)
    except PluginError as error:
        raise ArgumentError(f"segmentation: {error.message}") from None
    rule = counts.segmenter if counts is not None else rule
    if rule.segments is None:
        raise ArgumentError("segmentation: its segments are not known; give its values")
    sensitivity = Sensitivity.of(block.sensitivity) if block.sensitivity is not None else None
    tiers = sensitivity.names if sensitivity is not None else ()
    population = _population(block, tuple(g.name for g in groups_of(rule.segments, tiers)), counts)
    policy = noise.build(block.noise.type, block.noise.parameters)
    groups = groups_of(rule.segments, tiers, population.weights)
    proposal = _propose(policy, groups, block.privacy.epsilon, loaded)
    # A public segment in which nobody is has no users to protect or to train on.
    groups = tuple(g for g in groups if population.weights[g.name] > 0)
    relation: Relation = "zero_out" if "public" in (population.source, population.weights_source) else "add_or_remove"
    asked = block.privacy.accountant
    try:
        mechanism, epsilon = _calibrate(block, population, groups, proposal, relation)
        delta = _delta(block, population) if mechanism.private else None
        curve = epsilon_curve(mechanism, delta, asked, block.train.checkpoint_every) if delta is not None else []
        shown = trade_offs(mechanism, delta, asked) if delta is not None else ()
        answered = asked
        if epsilon is not None and delta is not None:  # of the group whose ε is stated
            answered = answering(mechanism.event(epsilon.index(max(epsilon))), delta, asked)
    except (ArithmeticError, ValueError, MemoryError):
        more = "; try privacy.accountant: rdp" if asked == "pld" else ""
        raise BudgetError(f"the accountant can't settle on these numbers{more}") from None
    guarantee = Guarantee(
        mechanism,
        epsilon,
        delta,
        answered,
        block.data.name,
        block.data.visibility,
        block.data.holdout.users,
        isinstance(rule, OwnRecordsSegmenter) or sensitivity is not None,
        _public_counts_in_words(population),
        holdout_file=block.data.holdout.file is not None,
    )
    return Plan(
        loaded,
        mechanism,
        guarantee,
        proposal.epsilon,
        population,
        rule,
        sensitivity,
        groups,
        tuple(curve),
        shown,
        source,
        look(loaded, guarantee),
    )


def _count(spec: Spec, rule: Segmenter, source: RecordSource) -> PublicCounts | None:
    own = isinstance(rule, OwnRecordsSegmenter) or spec.sensitivity is not None
    public_weights = spec.data.weights == "public" and not own
    if spec.data.population != "public" and not public_weights and rule.segments is not None:
        return None
    return public_counts(source, Columns.of(spec.data), spec.data, rule)


def _population(spec: Spec, groups: tuple[str, ...], counts: PublicCounts | None) -> Population:
    declared = spec.data.population
    if declared == "public":
        assert counts is not None
        users, holdout, origin = float(counts.users_train), counts.users_holdout, "public"
    else:
        users, holdout, origin = float(declared) * (1 - spec.data.holdout.users), None, "declared"
    if users < 1:
        raise ArgumentError("data: there are no users to train on")
    given = spec.data.weights
    if given != "public":
        if set(given) != set(groups):
            noun = "segments" if spec.sensitivity is None else "groups"
            raise ArgumentError(f"data.weights: must name exactly the {noun} {', '.join(groups)}")
        return Population(users, holdout, origin, dict(given), "declared")
    if len(groups) == 1:
        return Population(users, holdout, origin, {groups[0]: 1.0}, origin)
    if counts is None or counts.segments is None or spec.sensitivity is not None:
        raise ArgumentError("data.weights: groups made from users' own records can't be counted publicly; give them")
    total = sum(counts.segments.values())
    weights = {s: counts.segments[s] / total for s in groups}
    return Population(users, holdout, origin, weights, "public")


def _propose(policy: NoisePolicy, groups: Sequence[Group], epsilon: float, loaded: LoadedSpec) -> Proposal:
    try:
        proposal = policy.propose(groups, epsilon)
    except PluginError as error:
        key = ".".join(("noise", *map(str, error.key)))
        where = loaded.origins.get(key, str(loaded.path))
        raise ArgumentError(one_line(f"{where} {key}: {error.message}")) from None
    except (Exception, SystemExit) as error:  # somebody's own policy may raise anything
        message = f"noise: {name_of(type(policy))} fails ({type(error).__name__}: {error})"
        raise ArgumentError(one_line(message)) from None
    who = f"noise: {name_of(type(policy))} proposes"
    if not isinstance(proposal, Proposal) or not isinstance(proposal.epsilon, Mapping | None):
        raise ArgumentError(f"{who} no Proposal with a target ε per group")
    if not isinstance(proposal.lever, Lever):
        raise ArgumentError(f"{who} a lever that does not exist")
    if proposal.epsilon is None:
        if policy.private:
            raise ArgumentError(f"{who} no target, and does not say that it is not private")
        return proposal
    for group in groups:
        target = proposal.epsilon.get(group.name)
        if target is None and group.weight == 0:
            continue  # nobody is in it
        number = isinstance(target, int | float) and math.isfinite(target)
        if target is None or not (number and 0 < target <= epsilon):
            raise ArgumentError(one_line(f'{who} {target} for "{group.name}"; the budget is {epsilon:g}'))
        if target < SMALLEST_EPSILON:
            raise ArgumentError(
                f'noise: {target:g} for "{group.name}" is below {SMALLEST_EPSILON:g}: nothing would be learnt'
            )
    # Only these groups, in this order: a policy can't add one. Nobody is in those without weight.
    return Proposal({g.name: proposal.epsilon[g.name] for g in groups if g.weight}, proposal.lever)


def _calibrate(
    spec: Spec, population: Population, groups: tuple[Group, ...], proposal: Proposal, relation: Relation
) -> tuple[Mechanism, tuple[float, ...] | None]:
    rate = spec.sampling.rate
    if rate is None:
        assert spec.sampling.expected is not None
        rate = spec.sampling.expected / population.users
    if rate > 1:
        raise ArgumentError(
            f"sampling.expected: {spec.sampling.expected:g} users per step, "
            f"but there are {population.users:g} to train on; give fewer"
        )
    if rate < SMALLEST_RATE:
        raise ArgumentError(
            f"sampling.expected: {spec.sampling.expected:g} of {population.users:g} users is a rate of {rate:g}; "
            f"the smallest is {SMALLEST_RATE:g}"
        )
    per_user, steps, norm = spec.sampling.examples_per_user, spec.train.steps, spec.clipping.norm
    if proposal.epsilon is None:
        made = tuple(
            GroupMechanism(g.name, population.weights[g.name] * population.users, rate, norm, steps, per_user)
            for g in groups
        )
        return Mechanism(steps, 0.0, made, relation), None
    delta, accountant = _delta(spec, population), spec.privacy.accountant
    calibrate = {Lever.CLIP_NORM: calibration.by_clip_norm, Lever.SAMPLING_RATE: calibration.by_sampling_rate}
    mechanism = calibrate[proposal.lever](
        proposal.epsilon,
        population.weights,
        users=population.users,
        rate=rate,
        steps=steps,
        delta=delta,
        clip_norm=norm,
        examples_per_user=per_user,
        relation=relation,
        accountant=accountant,
    )
    epsilon = calibration.verify(mechanism, proposal.epsilon, spec.privacy.epsilon, delta, accountant)
    return mechanism, epsilon


def _delta(spec: Spec, population: Population) -> float:
    if spec.privacy.delta is not None:
        return spec.privacy.delta
    if population.source != "public":
        raise ArgumentError("privacy.delta: must be given unless the population is public")
    return 1.0 / (10.0 * population.users)


def _public_counts_in_words(population: Population) -> tuple[str, ...]:
    found = []
    if population.source == "public":
        found.append("the number of users (a removed user stays counted, with no records)")
    if population.weights_source == "public" and len(population.weights) > 1:
        found.append("the number of users in each group, by public attributes")
    return tuple(found)
