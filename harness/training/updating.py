"""One step of the mechanism on a model: the cohort's clipped sum, noise, and the optimizer's step.

Where the trained coordinates are few (adapters), each unit's gradient is materialised and clipped (`AdapterUpdate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from harness.data.cohorts import MicroBatch
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.adapting import bits_of
from harness.training.batches import Tokens, collate_units, pad, summed_loss, weighted_loss
from harness.training.engine import Engine
from harness.training.gradients import UnitGradients
from harness.training.layout import Layout, to_device
from harness.training.noise import noisy_mean
from harness.training.probing import probe
from harness.training.ranks import Ranks, own_ranks


@dataclass(frozen=True)
class Seen:
    """Sums over the units of a whole cohort, of all workers. Private, but for `stop`.

    Attributes:
        loss: Of each unit's mean loss per predicted token, in nats.
        above: Number of units whose norm was above their clip norm.
        bits: Sum of ``1[norm ≤ C] − ½``.
        stop: Whether a stop was asked for.
    """

    loss: float
    above: float
    bits: float
    stop: bool


class Update(Protocol):
    """How a step is computed; each way does the very same mechanism.

    Attributes:
        engine: The model under DeepSpeed.
    """

    engine: Engine

    def step(
        self, step: int, shares: Sequence[Sequence[MicroBatch]], clip_norms: Tensor, factor: float, *, stop: bool
    ) -> Seen:
        """Takes one noisy step; collective.

        Args:
            step: Its number; part of the noise's address.
            shares: Each worker's micro-batches, the same list on every rank.
            clip_norms: C_{p,t} of each group, float64, shape [groups].
            factor: c_t of an adaptive clip.
            stop: Whether this rank was asked to stop.
        """
        ...

    def idle(self, *, last: bool) -> None:
        """A micro-batch of weight zero, to stay in step with the other ranks, or for an empty cohort."""
        ...

    def probe(self, initial: Mapping[str, Tensor], longest: int) -> None:
        """Sees on made-up tokens that the model computes and can learn; collective.

        Args:
            initial: The trained weights by name.
            longest: Most tokens that an example can have.

        Raises:
            UserError: The loss is not finite, or a weight would never get a gradient.
            ArgumentError: The model is not causal.
        """
        ...


class AdapterUpdate:
    """Every unit's gradient side by side: one backward pass, and memory for (units × coordinates)."""

    def __init__(
        self, engine: Engine, sink: UnitGradients, corpus: Tokens, mechanism: Mechanism, randomness: Randomness
    ) -> None:
        """Takes what the series built; `sink` has taken over the model's trainable layers."""
        self.engine, self.sink, self.corpus = engine, sink, corpus
        self.mechanism, self.randomness = mechanism, randomness
        self.ranks: Ranks = own_ranks()
        self.device = engine.device

    def step(
        self, step: int, shares: Sequence[Sequence[MicroBatch]], clip_norms: Tensor, factor: float, *, stop: bool
    ) -> Seen:
        """See `Update`."""
        mine = shares[self.ranks.rank]
        rounds = max(1, *(len(b) for b in shares))
        self.sink.reset()
        # Loss, units above their clip norm, bits. They stay on the device: asking for one would wait for all.
        found = torch.zeros(3, dtype=torch.float64, device=self.device)
        for i in range(rounds):
            if i < len(mine):
                found += self._micro_batch(mine[i], clip_norms, last=i == rounds - 1)
            else:
                self.idle(last=i == rounds - 1)
        # Sums of halves are exact in float32, so that every rank and every number of them has the same.
        aside = torch.cat([found.new_tensor([float(stop)]), found]).float()
        summed = torch.cat([self.sink.total, aside])
        if self.ranks.world > 1:
            dist.all_reduce(summed)
        total, (stopped, loss, above, bits) = summed[: self.sink.size], summed[self.sink.size :].tolist()
        self.engine.step(noisy_mean(total, self.sink.trainables, self.mechanism, step, self.randomness, factor))
        return Seen(loss, above, bits, stopped > 0)

    def _micro_batch(self, batch: MicroBatch, clip_norms: Tensor, *, last: bool) -> Tensor:
        """Computes and clips; returns the sums of losses, of units above their clip norm, and of their bits."""
        rows, layout = collate_units(self.corpus, batch, self.device)
        weights = to_device(np.array([1.0 / u.targets for u in batch.units], dtype=np.float32), self.device)
        inner = summed_loss(rows, layout, weights)
        seen: list[Tensor] = []

        def loss_of(model: Any) -> Tensor:
            loss = inner(model)
            seen.append(loss.detach())
            return loss

        self.sink.begin(layout)
        self.engine.backward(loss_of, self.sink, last=last)
        limits = to_device(clip_norms.numpy()[[u.group for u in batch.units]], self.device)
        norms = self.sink.finish(limits, continues=batch.continues)
        own = limits[: len(norms)]
        return torch.stack([seen[0].double(), (norms > own).sum().double(), bits_of(norms, own)])

    def idle(self, *, last: bool) -> None:
        """See `Update`."""
        self.sink.begin(Layout.of_rows([0], self.device))
        self.engine.backward(weighted_loss(pad([[0, 0]], self.device), [0.0]), self.sink, last=last)
        self.sink.finish(torch.ones(1, dtype=torch.float64, device=self.device), continues=False)

    def probe(self, initial: Mapping[str, Tensor], longest: int) -> None:
        """See `Update`."""
        probe(self.engine, self.sink, initial, longest)
