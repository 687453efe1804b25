"""The learning rate of every step: a function of the step and of public constants, so that it costs no privacy."""

from __future__ import annotations

import math

from harness.spec.models import TrainBlock


def learning_rate(train: TrainBlock, step: int) -> float:
    """The learning rate of one step.

    It rises in equal parts over the ``warmup`` first steps. After them it is constant, or falls, along a line or half
    a cosine, from the whole of it to what would be 0 one step after the last.

    Args:
        train: What the spec says; public.
        step: 0 ≤ step < train.steps.
    """
    peak, warmup, kind = train.optimizer.lr, train.schedule.warmup, train.schedule.type
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    done = (step - warmup) / (train.steps - warmup)
    return peak * (1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
