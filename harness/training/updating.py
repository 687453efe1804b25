"""One step of the mechanism on a model: the cohort's clipped sum, noise, and the optimizer's step.

Where the trained coordinates are few (adapters), each unit's gradient is materialised and clipped (`AdapterUpdate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from harness.data.cohorts import MicroBatch, Unit
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.adapting import bits_of
from harness.training.batches import Tokens, collate_units, pad, summed_loss, weighted_loss
from harness.training.engine import Engine
from harness.training.gradients import UnitGradients
from harness.training.initial import Initial
from harness.training.layout import Layout, to_device
from harness.training.noise import noisy_mean
from harness.training.planting import Witness
from harness.training.probing import probe
from harness.training.ranks import Ranks, own_ranks

Shares = Sequence[Sequence[MicroBatch]]
"""Each worker's micro-batches, the same list on every rank."""


class Cut(Protocol):
    """Cuts a step's cohort into micro-batches."""

    def __call__(self, *, pack: bool) -> Shares:
        """With rows that short examples share, if they may at all, or without."""
        ...


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
        self, step: int, cut: Cut, clip_norms: Tensor, factor: float, *, stop: bool, directions: Sequence[Unit] = ()
    ) -> Seen:
        """Takes one noisy step; collective.

        Args:
            step: Its number; part of the noise's address.
            cut: Makes the micro-batches of its cohort.
            directions: Gradient canaries of its cohort.
            clip_norms: C_{p,t} of each group, float64, shape [groups].
            factor: c_t of an adaptive clip.
            stop: Whether this rank was asked to stop.
        """
        ...

    def idle(self, *, last: bool) -> None:
        """A micro-batch of weight zero, to stay in step with the other ranks, or for an empty cohort."""
        ...

    def probe(self, initial: Initial, longest: int) -> None:
        """Sees on made-up tokens that the model computes and can learn; collective.

        Args:
            initial: The trained weights.
            longest: Most tokens that an example can have.

        Raises:
            UserError: The loss is not finite, or a weight would never get a gradient.
            ArgumentError: The model is not causal.
        """
        ...


class AdapterUpdate:
    """Every unit's gradient side by side: one backward pass, and memory for (units × coordinates)."""

    def __init__(
        self,
        engine: Engine,
        sink: UnitGradients,
        corpus: Tokens,
        mechanism: Mechanism,
        randomness: Randomness,
        witness: Witness | None = None,
    ) -> None:
        """Takes what the series built; `sink` has taken over the model's trainable layers."""
        self.engine, self.sink, self.corpus, self.witness = engine, sink, corpus, witness
        self.mechanism, self.randomness = mechanism, randomness
        self.ranks: Ranks = own_ranks()
        self.device = engine.device

    def step(
        self, step: int, cut: Cut, clip_norms: Tensor, factor: float, *, stop: bool, directions: Sequence[Unit] = ()
    ) -> Seen:
        """See `Update`."""
        shares = cut(pack=True)
        total, seen, ill = self._pass(shares, directions, clip_norms, stop=stop)
        if ill and any(batch.packed for share in shares for batch in share):
            # Attention weighs other examples of a row with zero, which times what is not finite is not zero: one
            # unit would take its neighbours' contributions away. So nobody has a neighbour.
            total, seen, _ = self._pass(cut(pack=False), directions, clip_norms, stop=stop)
        released = noisy_mean(total, self.sink.trainables, self.mechanism, step, self.randomness, factor)
        if self.witness is not None and self.ranks.rank == 0:
            self.witness.note(released, step, factor)
        self.engine.step(released)
        return seen

    def _pass(
        self, shares: Shares, directions: Sequence[Unit], clip_norms: Tensor, *, stop: bool
    ) -> tuple[Tensor, Seen, bool]:
        """The sum of the clipped gradients, and whether one was not finite and left out; of all workers; collective."""
        mine = shares[self.ranks.rank]
        rounds = max(1, *(len(b) for b in shares))
        self.sink.reset()
        # Loss, units above their clip norm, bits, units that are not finite. They stay on the device: asking for one
        # would wait for all.
        found = torch.zeros(4, dtype=torch.float64, device=self.device)
        for i in range(rounds):
            if i < len(mine):
                found += self._micro_batch(mine[i], clip_norms, last=i == rounds - 1)
            else:
                self.idle(last=i == rounds - 1)
        if self.witness is not None and self.ranks.rank == 0:
            found[2] += self.witness.directions.add(directions, self.sink, clip_norms)
        # Sums of halves are exact in float32, so that every rank and every number of them has the same.
        aside = torch.cat([found.new_tensor([float(stop)]), found]).float()
        summed = torch.cat([self.sink.total, aside])
        if self.ranks.world > 1:
            dist.all_reduce(summed)
        total, (stopped, loss, above, bits, ill) = summed[: self.sink.size], summed[self.sink.size :].tolist()
        return total, Seen(loss, above, bits, stopped > 0), ill > 0

    def _micro_batch(self, batch: MicroBatch, clip_norms: Tensor, *, last: bool) -> Tensor:
        """Computes and clips; returns what `_pass` adds up of it."""
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
        ill = (~torch.isfinite(norms)).sum().double()
        return torch.stack([seen[0].double(), (norms > own).sum().double(), bits_of(norms, own), ill])

    def idle(self, *, last: bool) -> None:
        """See `Update`."""
        self.sink.begin(Layout.of_rows([0], self.device))
        self.engine.backward(weighted_loss(pad([[0, 0]], self.device), [0.0]), self.sink, last=last)
        self.sink.finish(torch.ones(1, dtype=torch.float64, device=self.device), continues=False)

    def probe(self, initial: Initial, longest: int) -> None:
        """See `Update`."""
        probe(self.engine, self.sink, initial, longest)
