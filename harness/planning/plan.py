"""What is known of a run before training, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.data.sources.base import RecordSource
from harness.data.tiers import Sensitivity
from harness.planning.asking import Questions
from harness.planning.basis import Basis, Population
from harness.planning.choosing import Choice
from harness.planning.fitting import LedgerView
from harness.planning.room import Room
from harness.plugins import Group, Segmenter
from harness.privacy.guarantee import Guarantee
from harness.privacy.mechanism import Mechanism
from harness.spec import LoadedSpec, Spec


@dataclass(frozen=True)
class Plan:
    """All that is known before training. Public, immutable.

    Attributes:
        basis: What it was made from.
        mechanism: What will be executed, and what was accounted. While noisy answers are pending, what binds it.
        guarantee: ε per group, computed from `mechanism`, and the words.
        population: Public counts, or noisy answers.
        curve: (steps, ε) along the run.
        trade_offs: Per group, δ at each of a few ε from 0 on; empty where all groups have one sampling rate.
        asked: What is asked about all users, and charged.
        choice: What the spec left open, and how it was chosen; None without privacy.
        ledger: What the ledger said; None: the spec wants none.
        memory: What a worker needs, and what is free here; None: nobody has looked.
        answered_edges: Of the risk tiers, where they are noisy quantiles and known by now.
    """

    basis: Basis
    mechanism: Mechanism
    guarantee: Guarantee
    population: Population
    curve: tuple[tuple[int, float], ...]
    trade_offs: tuple[tuple[tuple[float, float], ...], ...]
    asked: Questions
    choice: Choice | None
    ledger: LedgerView | None = None
    memory: Room | None = None
    answered_edges: tuple[float, ...] | None = None

    @property
    def loaded(self) -> LoadedSpec:
        """The spec and where its values came from."""
        return self.basis.loaded

    @property
    def source(self) -> RecordSource:
        """Where the records will be read from."""
        return self.basis.source

    @property
    def segmenter(self) -> Segmenter:
        """The segmentation rule."""
        return self.basis.segmenter

    @property
    def sensitivity(self) -> Sensitivity | None:
        """How users are assessed."""
        return self.basis.sensitivity

    @property
    def groups(self) -> tuple[Group, ...]:
        """The privacy groups, in the order of the mechanism's."""
        return self.basis.groups

    @property
    def targets(self) -> Mapping[str, float] | None:
        """What the noise policy asked for, per group; None without privacy."""
        return self.basis.proposal.epsilon

    @property
    def chosen_later(self) -> bool:
        """Whether levers wait for a noisy answer."""
        return bool(self.mechanism.choice)

    @property
    def edges(self) -> tuple[float, ...] | None:
        """Where the combined score is cut into risk tiers; None: nowhere, or it is not known yet."""
        public = self.sensitivity.edges if self.sensitivity is not None else None
        return self.answered_edges if public is None else public

    @property
    def pending(self) -> tuple[str, ...]:
        """Keys of the spec whose values wait for noisy answers."""
        tiers = self.sensitivity is not None and self.edges is None
        return (*self.levers_pending, "sensitivity.tiers.edges") if tiers else self.levers_pending

    @property
    def levers_pending(self) -> tuple[str, ...]:
        """Those on which the mechanism's numbers depend."""
        sampling = self.spec.sampling
        waiting = {
            "data.population": not self.population.users_known,
            "data.weights": not self.population.weights_known,
            "sampling.unit": sampling.unit == "auto" and self._median is None,
            "sampling.examples_per_user": self.asked.asks_median and self._median is None,
        }
        return tuple(key for key, waits in waiting.items() if waits)

    @property
    def holdout_users(self) -> tuple[float, ...]:
        """Expected hold-out users of every group, from public numbers alone."""
        held = self.spec.data.holdout.users
        number = self.population.holdout_users
        users = self.population.users * held / (1 - held) if number is None else float(number)
        return tuple(self.population.weights[g.name] * users for g in self.groups)

    def notes(self) -> list[str]:
        """What a reader should know besides the numbers."""
        from harness.planning.document import notes

        return notes(self)

    @property
    def _median(self) -> float | None:
        return None if self.choice is None else self.choice.median

    @property
    def spec(self) -> Spec:
        """The validated spec."""
        return self.loaded.spec

    def document(self) -> dict[str, Any]:
        """Plain data: the document of ``uudp plan --json`` and of ``plan.json``."""
        from harness.planning.document import document

        return document(self)


def noise_to_signal(mechanism: Mechanism, group: int) -> float:
    """Noise std per coordinate over the largest norm that the group's expected share of the sum can have."""
    g = mechanism.groups[group]
    return mechanism.noise_std / (mechanism.units(group) * g.sampling_rate * g.clip_norm)


def noise_to_signal_of_run(mechanism: Mechanism, group: int) -> float:
    """The same over all steps: noise std of the sum of all updates over the most that the group can add to it.

    In the scale of one step, so that it equals `noise_to_signal` where every step is like the first. Other than that,
    it counts the steps without the group, and a schedule of noise and clip norms.
    """
    import numpy as np

    steps = np.arange(mechanism.steps)

    def present(i: int) -> Any:
        taken = mechanism.groups[i].steps
        before, after = -(-steps * taken // mechanism.steps), -(-(steps + 1) * taken // mechanism.steps)
        return after > before

    lengths = [s.steps for s in mechanism.stretches]
    noise = mechanism.noise_std * np.repeat([s.noise for s in mechanism.stretches], lengths)
    clip = np.repeat([s.clip for s in mechanism.stretches], lengths)
    shares = [mechanism.units(i) * g.sampling_rate for i, g in enumerate(mechanism.groups)]
    denominator = sum(share * present(i) for i, share in enumerate(shares))
    some = denominator > 0
    signal = shares[group] * mechanism.groups[group].clip_norm * (clip * present(group))[some] / denominator[some]
    total = np.sqrt(np.sum((noise[some] / denominator[some]) ** 2))
    return float(np.sqrt(mechanism.steps) * total / np.sum(signal))
