"""What is known of a run before training, as frozen data."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.data.sources.base import RecordSource
from harness.data.tiers import Sensitivity
from harness.planning.fitting import LedgerView
from harness.plugins import Group, Segmenter, noise
from harness.privacy.guarantee import Guarantee
from harness.privacy.mechanism import Mechanism
from harness.spec import LoadedSpec, Spec

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
        ledger: What the ledger said; None: the spec wants none.
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
    ledger: LedgerView | None = None

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
            "accountant": self.guarantee.accountant,
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
            "ledger": None if self.ledger is None else self.ledger.document(),
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
        if self.ledger is None:
            found.append("No ledger (privacy.ledger: null): what runs on this data set spend is not recorded.")
            return found
        return found + self.ledger.notes()


def noise_to_signal(mechanism: Mechanism, group: int) -> float:
    """Noise std per coordinate over the largest norm that the group's expected share of the sum can have."""
    g = mechanism.groups[group]
    return mechanism.noise_std / (g.users * g.sampling_rate * g.clip_norm)


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
