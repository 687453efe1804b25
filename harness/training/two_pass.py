"""One step where all parameters are trained: norms first, then one weighted backward pass that ZeRO reduces itself.

Each unit's gradient is as large as the model, so none is kept. Pass one finds the units' norms (`ghost.py`); pass two
goes backward from the sum of the units' losses, each times its own clipping factor, which gives the sum of the clipped
gradients. DeepSpeed adds it up over micro-batches and workers, as in any training; noise is added to what it holds at
the end of the step, before its optimizer sees it.

Norms of a unit's parts don't add up. A unit that is spread over several micro-batches has its gradient materialised,
in buffers of the model's size, for its norm alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.data.cohorts import MicroBatch, Unit
from harness.errors import ArgumentError, UserError
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.adapting import bits_of
from harness.training.batches import Rows, Tokens, collate_units, pad, token_losses
from harness.training.engine import Engine
from harness.training.ghost import Ghost, Parts, norm_of
from harness.training.initial import Initial
from harness.training.layout import Layout
from harness.training.noise import noisy_part
from harness.training.probing import check_causal
from harness.training.ranks import Ranks, own_ranks
from harness.training.updating import Cut, Seen


def check_one_noise(device: str, stage: int, workers: int) -> None:
    """Refuses what could add two noises to one sum: at stage 0 every worker draws all of it by itself.

    A GPU's draws depend on its kind, and workers may have different ones.

    Raises:
        ArgumentError: All parameters are trained at ZeRO 0 on several GPUs.
    """
    if device == "cuda" and stage == 0 and workers > 1:
        raise ArgumentError(
            "compute.deepspeed.stage: 0 does not go with adapter type: full on several GPUs; take 1, 2 or 3"
        )


@dataclass
class _Batch:
    """A micro-batch on its way through both passes. Private.

    Attributes:
        batch: What is in it.
        carried: Whether its first unit began in the micro-batch before.
        rows: Its tokens.
        layout: Whose they are.
        weights: 1 / number of targets of each unit, float32, [units].
        limits: C of each unit, float64, [units].
        norms: Of each unit, float64, [units]; None before the first pass. Of a spread unit, known once it is complete.
        errors: What rounding may have made of each unit's gradient here, float64, [units].
        losses: Sum of the units' losses.
    """

    batch: MicroBatch
    carried: bool
    rows: Rows
    layout: Layout
    weights: Tensor
    limits: Tensor
    norms: Tensor | None = None
    errors: Tensor | None = None
    losses: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def spread(self) -> bool:
        """Whether one of its units is not in it alone."""
        return self.carried or self.batch.continues


class TwoPassUpdate:
    """See `harness.training.updating.Update`.

    Below ZeRO 3 a micro-batch goes forward once and backward twice. At ZeRO 3, whose hooks gather weights for one
    backward pass per forward pass, and with gradient checkpointing, whose memory would be kept in between, all
    micro-batches go through the first pass and then all through the second.
    """

    def __init__(
        self,
        engine: Engine,
        ghost: Ghost,
        corpus: Tokens,
        mechanism: Mechanism,
        randomness: Randomness,
        *,
        apart: bool,
    ) -> None:
        """Takes what the series built.

        Args:
            engine: The model, which `ghost` watches.
            ghost: Finds norms.
            corpus: All examples.
            mechanism: What is executed.
            randomness: The run's draws.
            apart: Whether the two passes go forward separately.
        """
        self.engine, self.ghost, self.corpus = engine, ghost, corpus
        self.mechanism, self.randomness, self.apart = mechanism, randomness, apart
        self.ranks: Ranks = own_ranks()
        self.device = engine.device

    def step(
        self, step: int, cut: Cut, clip_norms: Tensor, factor: float, *, stop: bool, directions: Sequence[Unit] = ()
    ) -> Seen:
        """See `Update`; there are no gradient canaries here."""
        if directions:
            raise ValueError("gradient canaries go with an adapter")
        shares = cut(pack=False)
        mine = shares[self.ranks.rank]
        rounds = max(1, *(len(b) for b in shares))
        limits = clip_norms.to(self.device)
        batches = [self._read(batch, limits, carried=i > 0 and mine[i - 1].continues) for i, batch in enumerate(mine)]
        self._look_ahead(batches, rounds)
        found = torch.zeros(3, dtype=torch.float64, device=self.device)
        for i in range(rounds):
            if i < len(batches):
                self._gradient_pass(batches[i], last=i == rounds - 1)
                found += self._told(batches[i])
            else:
                self.idle(last=i == rounds - 1)

        def noisy(name: str, start: int, part: Tensor) -> Tensor:
            return noisy_part(part, name, start, self.mechanism, step, self.randomness, factor)

        self.engine.step_reduced(noisy)
        # Sums of halves are exact in float32.
        summed = torch.cat([found.new_tensor([float(stop)]), found]).float()
        if self.ranks.world > 1:
            dist.all_reduce(summed)
        stopped, loss, above, bits = summed.tolist()
        return Seen(loss, above, bits, stopped > 0)

    def idle(self, *, last: bool) -> None:
        """See `Update`."""
        rows = _with_positions(pad([[0, 0]], self.device))
        self.engine.accumulate(lambda model: 0.0 * token_losses(model, rows).sum(), last=last)

    def probe(self, initial: Initial, longest: int) -> None:
        """See `Update`. That every weight gets a gradient was seen when the model was verified."""
        check_causal(self.engine)
        count: int = self.engine.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
        made_up = [count - 1 - i % count for i in range(max(16, longest))]
        made_up[1] = 0  # what rows are filled up with
        with torch.no_grad():
            losses = token_losses(self.engine.module, _with_positions(pad([made_up], self.device)))
        if not bool(torch.isfinite(losses).all()):
            raise UserError("the base model's loss is not finite: it would never train")

    def _read(self, batch: MicroBatch, clip_norms: Tensor, *, carried: bool) -> _Batch:
        rows, layout = collate_units(self.corpus, batch, self.device)
        weights = torch.tensor([1.0 / u.targets for u in batch.units], dtype=torch.float32, device=self.device)
        limits = clip_norms[torch.tensor([u.group for u in batch.units], device=self.device)]
        return _Batch(batch, carried, _with_positions(rows), layout, weights, limits)

    # --- the first pass -------------------------------------------------------------------------------------

    def _look_ahead(self, batches: Sequence[_Batch], rounds: int) -> None:
        """Finds the norms that are not found on the way: of spread units, or, where passes are apart, of all."""
        # The unit that goes on: its gradient so far, and where its parts are.
        whole: Parts | None = None
        parts: list[tuple[_Batch, int]] = []
        for one in batches:
            if not (self.apart or one.spread):
                continue
            last = len(one.batch.units) - 1
            own: dict[int, Parts] = {}
            if one.carried and whole is not None:
                own[0] = whole
                parts.append((one, 0))
            goes_on = one.carried and one.batch.continues and last == 0
            if one.batch.continues and not goes_on:
                own[last] = self.ghost.zeros(self.device)
            self._norm_pass(self.engine.module, one, own, keep=False)
            if one.carried and whole is not None and not goes_on:
                _complete(parts, norm_of(whole))
                whole = None
            if one.batch.continues and not goes_on:
                whole, parts = own[last], [(one, last)]
        if self.apart:
            for _ in range(rounds - len(batches)):
                self._idle_norm_pass()

    def _norm_pass(self, model: Any, one: _Batch, whole: dict[int, Parts], *, keep: bool) -> Tensor:
        """Fills in the norms; returns the units' losses, [units]."""
        self.ghost.begin(one.layout, one.rows.inputs, whole)
        losses = _unit_losses(model, one)
        one.losses = losses.detach().sum()
        one.norms = self.ghost.norms(losses.sum(), keep=keep)
        one.errors = self.ghost.errors
        return losses

    def _idle_norm_pass(self) -> None:
        rows = _with_positions(pad([[0, 0]], self.device))
        self.ghost.begin(Layout.of_rows([0], self.device), rows.inputs)
        self.ghost.norms(token_losses(self.engine.module, rows).sum(), keep=False)

    # --- the second pass ------------------------------------------------------------------------------------

    def _gradient_pass(self, one: _Batch, *, last: bool) -> None:
        """Adds the clipped gradients of a micro-batch's units to what DeepSpeed holds."""

        def loss_of(model: Any) -> Tensor:
            losses = None if one.norms is not None else self._norm_pass(model, one, {}, keep=True)
            assert one.norms is not None
            finite = torch.isfinite(one.norms)
            # A non-finite unit contributes zero, and nothing times zero makes it so: it is left out of the pass.
            if not bool(finite.all()):
                return self._without(model, one, finite)
            if losses is None:
                losses = _unit_losses(model, one)
            return self._weighted(losses, one.limits, one.norms)

        self.engine.accumulate(loss_of, last=last)

    def _weighted(self, losses: Tensor, limits: Tensor, norms: Tensor) -> Tensor:
        factors = torch.clamp(limits / norms.clamp_min(1e-30), max=1.0).to(torch.float32)
        # DeepSpeed takes the mean over workers; the mechanism wants their sum.
        return (factors @ losses) * self.ranks.world

    def _without(self, model: Any, one: _Batch, finite: Tensor) -> Tensor:
        kept = finite.tolist()
        batch = _only(one.batch, kept)
        if batch is None:
            rows = _with_positions(pad([[0, 0]], self.device))
            return 0.0 * token_losses(model, rows).sum()
        rows, layout = collate_units(self.corpus, batch, self.device)
        rest = dataclasses.replace(
            one, batch=batch, rows=_with_positions(rows), layout=layout, weights=one.weights[finite]
        )
        assert one.norms is not None
        return self._weighted(_unit_losses(model, rest), one.limits[finite], one.norms[finite])

    def _told(self, one: _Batch) -> Tensor:
        """The sums of losses, of units above their clip norm, and of their bits; a unit counts where it ends."""
        assert one.norms is not None
        ended = len(one.batch.units) - one.batch.continues
        norms, limits = one.norms[:ended], one.limits[:ended]
        return torch.stack([one.losses.double(), (norms > limits).sum().double(), bits_of(norms, limits)])


def _complete(parts: Sequence[tuple[_Batch, int]], norm: Tensor) -> None:
    """Fills in a spread unit's norm in every micro-batch that has a part of it, at its place there.

    Its parts may cancel each other; what rounding may have taken is added, as it is to all norms.
    """
    for one, slot in parts:
        assert one.errors is not None
        norm = norm + one.errors[slot]
    for one, slot in parts:
        assert one.norms is not None
        one.norms[slot] = norm


def _with_positions(rows: Rows) -> Rows:
    """The same with every token's position said: a learned position that rows share would have one gradient."""
    if rows.positions is not None:
        return rows
    width = rows.inputs.shape[1]
    return dataclasses.replace(rows, positions=torch.arange(width, device=rows.inputs.device).expand_as(rows.inputs))


def _unit_losses(model: Any, one: _Batch) -> Tensor:
    """Each unit's loss in this micro-batch: its share of the unit's mean per predicted token, [units]."""
    return one.layout.sums(token_losses(model, one.rows).unsqueeze(-1)).squeeze(-1) * one.weights


def _only(batch: MicroBatch, kept: Sequence[bool]) -> MicroBatch | None:
    """A micro-batch of some of its units; None: of none."""
    if not any(kept):
        return None
    slots = {slot: i for i, slot in enumerate(s for s, k in enumerate(kept) if k)}
    own = [(e, s, line) for e, s, line in zip(batch.examples, batch.slots, batch.lines, strict=True) if s in slots]
    lines = {line: i for i, line in enumerate(sorted({line for _, _, line in own}))}
    return MicroBatch(
        examples=tuple(e for e, _, _ in own),
        slots=tuple(slots[s] for _, s, _ in own),
        units=tuple(u for u, k in zip(batch.units, kept, strict=True) if k),
        continues=batch.continues,
        lines=tuple(lines[line] for _, _, line in own),
    )
