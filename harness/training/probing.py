"""What a training looks at before it reads a record, and whether it still learns: nothing private is seen here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import ArgumentError, UserError
from harness.training.batches import pad, weighted_loss
from harness.training.engine import Engine
from harness.training.gradients import UnitGradients
from harness.training.initial import Initial
from harness.training.layout import Layout
from harness.training.ranks import own_ranks, tell


def probe(engine: Engine, sink: UnitGradients, initial: Initial, longest: int) -> None:
    """Sees on made-up tokens that the model computes and that the adapter can learn; collective.

    Args:
        engine: The model.
        sink: What collects gradients; it is reset.
        initial: The adapter's weights.
        longest: Most tokens that an example can have.

    Raises:
        UserError: The loss is not finite, or a parameter would never get a gradient.
        ArgumentError: The model is not causal, or uses a trainable parameter outside of its layer.
    """
    sink.reset()
    sink.begin(Layout.of_rows([0], engine.device))
    # As long as an example can be, and with the last tokens that there are.
    rows: int = engine.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    made_up = [rows - 1 - i % rows for i in range(max(16, longest))]
    # What rows are filled up with, as far as others' are long: not finite, it would make users depend on others.
    made_up[1] = 0
    loss_of = weighted_loss(pad([made_up], engine.device), [1.0 / (len(made_up) - 1)])
    seen: list[float] = []

    def watched(model: Any) -> Tensor:
        loss = loss_of(model)
        seen.append(float(loss.detach()))
        return loss

    with _reached(sink) as reached:
        engine.backward(watched, sink, last=False)
    unlimited = torch.full((1,), float("inf"), dtype=torch.float64, device=engine.device)
    norms = sink.finish(unlimited, continues=False)
    if not np.isfinite(seen[0]) or not bool(torch.isfinite(norms).all()):
        raise UserError("the base model's loss is not finite: it would never train; try model.dtype: float32")
    if reached:
        raise ArgumentError(
            f"{min(reached)} can't be trained privately: the model uses it outside of its layer, where users' "
            "gradients can't be kept apart; leave it out of the adapter"
        )
    for trainable in sink.trainables:
        if trainable.view(sink.total).any():
            continue
        if trainable.name in initial.zeros:
            raise UserError(f"{trainable.name} gets no gradient: it would stay zero; leave it out of the targets")
        # LoRA's first factor has none until its second one, zero at first, has moved.
        if ".lora_A." not in trainable.name:
            raise UserError(
                f"{trainable.name} gets no gradient: noise alone would move it; leave it out of the adapter"
            )
    check_causal(engine)


@contextmanager
def _reached(sink: UnitGradients) -> Iterator[set[str]]:
    """Names of the parameters that autograd itself reaches in here: there must be none."""
    found: set[str] = set()

    def watch(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: found.add(name)

    handles = [t.parameter.register_hook(watch(t.name)) for t in sink.trainables]  # type: ignore[no-untyped-call]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_causal(engine: Engine) -> None:
    """No token may see what lies to its right: padding, whose length depends on others, has no mask.

    The gradient of early outputs in later inputs must be exactly zero, at any dtype. Collective.

    Raises:
        ArgumentError: The model is not causal, or not finite.
    """
    seen: list[Tensor] = []

    def watch(module: Any, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    model: Any = engine.module
    handle = model.get_input_embeddings().register_forward_hook(watch)
    try:
        rows = pad([list(range(1, 17))], engine.device)
        early = model(input_ids=rows.inputs, use_cache=False).logits[:, :8]
        (gradient,) = torch.autograd.grad(early.float().square().sum(), seen[0])
    finally:
        handle.remove()
    if not bool(torch.isfinite(gradient).all()):
        raise ArgumentError(
            "model.base: made-up tokens already give gradients that are not finite: weights are damaged, or beyond "
            "the numbers of model.dtype"
        )
    if bool(gradient[:, 8:].any()):
        raise ArgumentError(
            "model.base: its tokens see what comes after them (it is no causal language model), so that one user's "
            "gradient would depend on others; it can't be trained privately"
        )


def check_moves(
    current: Mapping[str, Tensor],
    initial: Initial,
    step: int,
    device: torch.device,
    *,
    private: bool,
    whole: bool = False,
) -> None:
    """Every trainable weight must have moved: one that didn't is not covered by clipping and noise. Collective.

    Args:
        current: The weights after `step` steps, by name, each looked up once; rank 0 judges.
        initial: And before the first.
        step: How many steps were taken.
        device: Of the collective.
        private: Whether there is noise.
        whole: Whether all parameters are trained. Some have no gradient but rounding (a key's bias, which softmax
            ignores); without noise they may stay.

    Raises:
        UserError: A weight did not move, or is no longer finite.
    """
    # Without noise, LoRA's first factor has no gradient until its second one, zero at first, has moved.
    must_move = private or (step > 1 and not whole)
    first = own_ranks().rank == 0
    verdict = torch.zeros(2, dtype=torch.int64)
    for place, (name, value) in enumerate(current.items()):
        if not first or verdict[0]:
            continue  # the others still need this rank to gather
        if not bool(torch.isfinite(value).all()):
            verdict = torch.tensor([1, place])
        elif must_move and initial.is_at(name, value):
            verdict = torch.tensor([2, place])
    problem, place = tell(verdict, device).tolist()
    name = list(current)[place]
    if problem == 1:
        raise UserError(f"{name} is no longer finite after {step} steps; try a smaller train.optimizer.lr")
    if problem == 2:
        raise UserError(f"{name} has not moved in {step} steps: the adapter would stay what it was")
