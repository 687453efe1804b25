"""Spec → Plan: everything that can be known before training, and the Mechanism that will be executed.

Reads declared constants and, where the spec declares them public, user names and public columns. Never a text.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.groups import PublicCounts, public_counts
from harness.data.sources.base import Columns, RecordSource, open_source
from harness.data.tiers import Sensitivity
from harness.errors import ArgumentError, BudgetError
from harness.packages import name_of
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
from harness.privacy.accounting import epsilon_curve, trade_offs
from harness.privacy.guarantee import Guarantee
from harness.privacy.mechanism import GroupMechanism, Mechanism, Relation
from harness.spec import LoadedSpec, Spec, load_spec
from harness.spec.models import SMALLEST_EPSILON
from harness.spec.privacy_groups import groups_of
from harness.spec.problems import one_line

VERSIONS = ("uudp", "dp-accounting", "torch", "transformers", "peft", "deepspeed", "ray")


@dataclass(frozen=True)
class Population:
    """How many users there are, from public knowledge alone.

    Attributes:
        users: N, training users: the public constant of all rates and denominators.
        holdout_users: Users held out; None where only their fraction is declared.
        source: ``public``: counted in the data, by name; ``declared``: given in the spec.
        weights: Fraction of the training users in each group; sums to 1.
        weights_source: ``public`` or ``declared``.
    """

    users: float
    holdout_users: int | None
    source: str
    weights: Mapping[str, float]
    weights_source: str


@dataclass(frozen=True)
class Plan:
    """All that is known before training. Public, immutable.

    Attributes:
        loaded: The spec and where its values came from.
        mechanism: What will be executed, and what was accounted.
        guarantee: ε per group, computed from `mechanism`, and the words.
        targets: What the noise policy asked for, per group; None without privacy.
        population: Public counts.
        segmenter: The segmentation rule, with its segments fixed.
        sensitivity: How users are assessed, if they are.
        groups: The privacy groups, in the order of the mechanism's.
        curve: (steps, ε) along the run.
        trade_offs: Per group, δ at each of a few ε from 0 on; empty where all groups have one sampling rate.
        source: Where the records will be read from.
    """

    loaded: LoadedSpec
    mechanism: Mechanism
    guarantee: Guarantee
    targets: Mapping[str, float] | None
    population: Population
    segmenter: Segmenter
    sensitivity: Sensitivity | None
    groups: tuple[Group, ...]
    curve: tuple[tuple[int, float], ...]
    trade_offs: tuple[tuple[tuple[float, float], ...], ...]
    source: RecordSource

    @property
    def spec(self) -> Spec:
        """The validated spec."""
        return self.loaded.spec

    def document(self) -> dict[str, Any]:
        """Plain data: the document of ``uudp plan --json`` and of ``plan.json``."""
        spec, mechanism = self.spec, self.mechanism
        return {
            "name": spec.name,
            "mechanism_digest": mechanism.digest,
            "private": mechanism.private,
            "epsilon": self.guarantee.total,
            "delta": self.guarantee.delta,
            "accountant": spec.privacy.accountant,
            "relation": mechanism.relation,
            "sampling": {"unit": mechanism.sampling_unit, "expected": mechanism.denominator(0)},
            "steps": mechanism.steps,
            "noise_std": mechanism.noise_std,
            "denominator": mechanism.denominator(0),
            "population": {
                "users": self.population.users,
                "holdout_users": self.population.holdout_users,
                "from": self.population.source,
            },
            "weights_from": self.population.weights_source,
            "groups": [self._group(i) for i in range(len(mechanism.groups))],
            "charges": [],
            "ledger": None,
            "epsilon_by_step": [list(point) for point in self.curve],
            "model": {
                "base": spec.model.base,
                "adapter": spec.model.adapter.model_dump(mode="json"),
                "dtype": spec.model.dtype,
            },
            "train": spec.train.model_dump(mode="json"),
            "compute": spec.compute.model_dump(mode="json"),
            "plugins": self._plugins(),
            "notes": self.notes(),
            "spec": self.loaded.resolved,
            "origins": dict(self.loaded.origins),
            "versions": {name: version for name in VERSIONS if (version := _version(name))},
        }

    def _group(self, i: int) -> dict[str, Any]:
        group, epsilon = self.mechanism.groups[i], self.guarantee.epsilon
        return {
            "name": group.name,
            "segment": self.groups[i].segment,
            "tier": self.groups[i].tier,
            "weight": self.population.weights[group.name],
            "epsilon": None if epsilon is None else epsilon[i],
            "target_epsilon": None if self.targets is None else self.targets[group.name],
            "noise_multiplier": self.mechanism.noise_multiplier(i),
            "clip_norm": group.clip_norm,
            "sampling_rate": group.sampling_rate,
            "steps": group.steps,
            "examples_per_user": group.examples_per_user,
            "noise_to_signal": noise_to_signal(self.mechanism, i),
        } | self._trade_off(i)

    def _trade_off(self, i: int) -> dict[str, Any]:
        if not self.trade_offs:
            return {}
        curve = self.trade_offs[i]
        return {"delta_at_zero": curve[0][1], "curve": [list(point) for point in curve]}

    def _plugins(self) -> list[dict[str, str]]:
        spec = self.spec
        rule = type(self.segmenter)
        policy = noise.get(spec.noise.type)
        return [
            {"kind": "source", "type": spec.data.source.type, "target": _name(type(self.source)), "access": "records"},
            {
                "kind": "segmentation",
                "type": spec.segmentation.type,
                "target": _name(rule),
                "access": self.segmenter.access.value,
            },
            *self._score_plugins(),
            {"kind": "noise", "type": spec.noise.type, "target": _name(policy), "access": "none"},
        ]

    def _score_plugins(self) -> list[dict[str, str]]:
        if self.spec.sensitivity is None or self.sensitivity is None:
            return []
        pairs = zip(self.spec.sensitivity.scores, self.sensitivity.scores, strict=True)
        return [
            {"kind": "sensitivity", "type": one.type, "target": _name(type(score)), "access": score.access.value}
            for one, score in pairs
        ]

    def notes(self) -> list[str]:
        """What a reader should know besides the numbers."""
        spec = self.spec
        found: list[str] = []
        if not self.mechanism.private:
            found.append("NOT PRIVATE: the noise policy adds no noise; nothing is promised to anybody.")
        if self.population.source == "public":
            found.append("The number of users was counted in the data, by name; the spec declares it public.")
        if self.guarantee.own_records:
            found.append("Groups depend on users' own records: which user is in which group is private.")
        if spec.data.holdout.users > 0 or spec.data.holdout.file is not None:
            found.append("Hold-out users gave up protection: exact statistics of their texts are published.")
        if spec.data.visibility == "public":
            found.append("The data are declared public: a demonstration. The accounting is that of private data.")
        if spec.evaluation.ordinary and self.mechanism.private:
            found.append("For comparison, the same steps are also trained without clipping and noise.")
        if self.trade_offs:
            found.append(
                "Sampling rates differ between groups: the same (ε, δ) then hides different trade-offs. δ(0) and the "
                "curve of each group say what its users are exposed to at other ε."
            )
        found.append("No ledger: what other runs spent of this data set's budget is not recorded.")
        return found


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
    try:
        mechanism, epsilon = _calibrate(block, population, groups, proposal, relation)
    except (ValueError, OverflowError, MemoryError):
        raise BudgetError("the accountant can't settle on these numbers; try privacy.accountant: rdp") from None
    delta = _delta(block, population) if mechanism.private else None
    guarantee = Guarantee(
        mechanism,
        epsilon,
        delta,
        block.privacy.accountant,
        block.data.name,
        block.data.visibility,
        block.data.holdout.users,
        isinstance(rule, OwnRecordsSegmenter) or sensitivity is not None,
        _public_counts_in_words(population),
        holdout_file=block.data.holdout.file is not None,
    )
    every = block.train.checkpoint_every
    curve = epsilon_curve(mechanism, delta, block.privacy.accountant, every) if delta is not None else []
    shown = trade_offs(mechanism, delta, block.privacy.accountant) if delta is not None else ()
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
    )


def noise_to_signal(mechanism: Mechanism, group: int) -> float:
    """Noise std per coordinate over the largest norm that the group's expected share of the sum can have."""
    g = mechanism.groups[group]
    return mechanism.noise_std / (g.users * g.sampling_rate * g.clip_norm)


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
    except Exception as error:  # somebody's own policy may raise anything
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
            f"but there are {population.users:g} to train on"
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


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
