"""Begins the plan: counts what is public and asks the noise policy; `completing` calibrates and accounts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.data.groups import PublicCounts, public_counts
from harness.data.sources.base import Columns, RecordSource, open_source
from harness.data.tiers import Sensitivity
from harness.errors import ArgumentError, UserError
from harness.packages import name_of
from harness.planning.attackable import check_attacks
from harness.planning.basis import Basis, Population, SearchTerms
from harness.planning.completing import complete
from harness.planning.dropping import without_dropped
from harness.planning.fitting import look
from harness.planning.plan import Plan
from harness.planning.room import look_at_memory
from harness.planning.small_groups import merge_small
from harness.plugins import (
    Group,
    Lever,
    NoisePolicy,
    Plateau,
    PluginError,
    Proposal,
    PublicSegmenter,
    Segmenter,
    noise,
    segmentation,
)
from harness.spec import LoadedSpec, Spec, load_spec
from harness.spec.models import SMALLEST_EPSILON
from harness.spec.privacy_groups import groups_of
from harness.spec.problems import one_line

Counter = Callable[[Spec, Segmenter, RecordSource], PublicCounts | None]
"""`count_publicly`, or what stands in for it."""


def make_plan(
    spec: LoadedSpec | str | Path,
    overrides: Sequence[str] = (),
    *,
    search: SearchTerms | None = None,
    count: Counter | None = None,
) -> Plan:
    """Plans a run: counts what is public, calibrates, and accounts the result again from the finished mechanism.

    Args:
        spec: A loaded spec, or its path.
        overrides: ``key=value``, if a path is given.
        search: Of a trial, what it keeps; its plan asks neither the ledger nor the machine.
        count: In place of `count_publicly`.

    Returns:
        The plan. Nothing has been read of any record but user names and declared public columns.

    Raises:
        ArgumentError: The spec or the data it names are wrong.
        BudgetError: The budget can't be kept.
        MachineError: The ledger does not answer.
    """
    loaded = spec if isinstance(spec, LoadedSpec) else load_spec(spec, overrides)
    check_attacks(loaded.spec, loaded.base_dir)
    plan = complete(*begin(loaded, search, count or count_publicly))
    if search is not None:
        return plan
    return replace(plan, ledger=look(loaded, plan.guarantee), memory=look_at_memory(loaded))


def begin(loaded: LoadedSpec, search: SearchTerms | None, count: Counter) -> tuple[Basis, Population]:
    """What a plan starts from: its groups, their sizes, and what its noise policy asks for. Nothing is accounted yet.

    Args:
        loaded: A loaded spec.
        search: Of a trial, what it keeps.
        count: Counts the users.

    Raises:
        ArgumentError: The spec or the data it names are wrong.
    """
    block = loaded.spec
    rule = segmentation.build(block.segmentation.type, block.segmentation.parameters)
    source = open_source(block.data, loaded.base_dir)
    names_counted = rule.segments is None
    try:
        counts = count(block, rule, source)
    except PluginError as error:
        raise ArgumentError(f"segmentation: {error.message}") from None
    rule = counts.segmenter if counts is not None else rule
    if rule.segments is None:
        raise ArgumentError("segmentation: its segments are not known; give its values")
    sensitivity = Sensitivity.of(block.sensitivity) if block.sensitivity is not None else None
    tiers = sensitivity.names if sensitivity is not None else ()
    population = _population(block, tuple(g.name for g in groups_of(rule.segments, tiers)), counts)
    policy = noise.build(block.noise.type, block.noise.parameters)
    groups = groups_of(rule.segments, tiers, None if population.weights_source == "noisy" else population.weights)
    proposal = propose(policy, groups, block.privacy.epsilon, loaded)
    # A public segment in which nobody is has no users to protect or to train on.
    groups = tuple(g for g in groups if population.weights[g.name] > 0)
    check_lever(proposal, population)
    counted = counts.segments if counts is not None and population.weights_source == "public" else None
    kept = without_dropped(groups, proposal, population, block, counted)
    made = merge_small(kept.groups, kept.proposal, kept.population, block.groups, counted)
    basis = Basis(
        loaded, source, rule, sensitivity, made.groups, made.holds, made.proposal, names_counted, search, kept.dropped
    )
    return basis, made.population


def count_publicly(spec: Spec, rule: Segmenter, source: RecordSource) -> PublicCounts | None:
    """Counts users by their names and public attributes alone; None where a plan needs no such number."""
    own = not isinstance(rule, PublicSegmenter) or spec.sensitivity is not None
    public_weights = spec.data.weights == "public" and not own
    if spec.data.population != "public" and not public_weights and rule.segments is not None:
        return None
    return public_counts(source, Columns.of(spec.data), spec.data, rule)


def _population(spec: Spec, groups: tuple[str, ...], counts: PublicCounts | None) -> Population:
    declared, held = spec.data.population, spec.data.holdout.users
    holdout: int | None
    if declared == "public":
        assert counts is not None
        users, holdout, origin = float(counts.users_train), counts.users_holdout, "public"
    elif declared == "noisy":
        users, holdout, origin = 1.0, None, "noisy"  # in units of the number that is not known yet
    else:
        users, holdout, origin = float(declared) * (1 - held), None, "declared"
    if users < 1:
        raise ArgumentError("data: there are no users to train on")
    given = spec.data.weights
    if given == "noisy" and len(groups) > 1:
        # What is calibrated before the answer is the same for any weights; these only stand in for it.
        return Population(users, holdout, origin, {g: 1 / len(groups) for g in groups}, "noisy")
    if isinstance(given, Mapping):
        if set(given) != set(groups):
            noun = "segments" if spec.sensitivity is None else "groups"
            raise ArgumentError(f"data.weights: must name exactly the {noun} {', '.join(groups)}")
        return Population(users, holdout, origin, dict(given), "declared")
    if len(groups) == 1:
        return Population(users, holdout, origin, {groups[0]: 1.0}, origin)
    if declared == "noisy":
        raise ArgumentError("data.weights: where the population is noisy, give them, or say noisy as well")
    if counts is None or counts.segments is None or spec.sensitivity is not None:
        raise ArgumentError("data.weights: groups made from users' own records can't be counted publicly; give them")
    total = sum(counts.segments.values())
    weights = {s: counts.segments[s] / total for s in groups}
    return Population(users, holdout, origin, weights, "public")


def check_lever(proposal: Proposal, population: Population) -> None:
    """Rates that follow from noisy counts would be accounted as if they had been fixed before the counts."""
    rates = (Lever.SAMPLING_RATE, Lever.CLIP_NORM_AND_SAMPLING_RATE)
    if population.weights_source == "noisy" and proposal.epsilon is not None and proposal.lever in rates:
        raise ArgumentError(
            "data.weights: noisy does not go with a noise policy that sets sampling rates, which depend on them; "
            "give them"
        )


def propose(policy: NoisePolicy, groups: Sequence[Group], epsilon: float, loaded: LoadedSpec) -> Proposal:
    """What a policy asks for, checked.

    Raises:
        ArgumentError: It refuses, fails, or proposes what can't be.
    """
    try:
        proposal = policy.propose(groups, epsilon)
    except PluginError as error:
        key = ".".join(("noise", *map(str, error.key)))
        where = loaded.origins.get(key, str(loaded.path))
        raise ArgumentError(one_line(f"{where} {key}: {error.message}")) from None
    except (Exception, SystemExit) as error:  # somebody's own policy may raise anything
        message = f"noise: {name_of(type(policy))} fails ({type(error).__name__}: {error})"
        raise ArgumentError(one_line(message)) from None
    try:
        return _plain(policy, proposal, groups, epsilon)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # what it proposes may run code of its own when it is looked at
        message = f"noise: {name_of(type(policy))} proposes what is no proposal ({type(error).__name__}: {error})"
        raise ArgumentError(one_line(message)) from None


def _plain(policy: NoisePolicy, proposal: object, groups: Sequence[Group], epsilon: float) -> Proposal:
    """The proposal as plain values, checked: each is read once, so that what was looked at is what is planned."""
    who = f"noise: {name_of(type(policy))} proposes"
    if not isinstance(proposal, Proposal) or not isinstance(given := proposal.epsilon, Mapping | None):
        raise ArgumentError(f"{who} no Proposal with a target ε per group")
    lever = proposal.lever
    if type(lever) is not Lever:
        raise ArgumentError(f"{who} a lever that does not exist")
    if given is None:
        if policy.private:
            raise ArgumentError(f"{who} no target, and does not say that it is not private")
        return Proposal(None)
    targets: dict[str, float] = {}
    for group in groups:
        value = given.get(group.name)
        if value is None and group.weight == 0:
            continue  # nobody is in it
        target = float(value) if isinstance(value, int | float) else math.nan
        if not 0 < target <= epsilon:
            raise ArgumentError(one_line(f'{who} {value} for "{group.name}"; the budget is {epsilon:g}'))
        if target < SMALLEST_EPSILON:
            raise ArgumentError(
                f'noise: {target:g} for "{group.name}" is below {SMALLEST_EPSILON:g}: nothing would be learnt'
            )
        if group.weight != 0:
            targets[group.name] = target
    # Only these groups, in this order: a policy can't add one. Nobody is in those without weight.
    schedule = tuple(Plateau(float(p.share), float(p.noise), float(p.clip)) for p in proposal.schedule)
    return Proposal(targets, lever, float(proposal.clip_share), schedule)
