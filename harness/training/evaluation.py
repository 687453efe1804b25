"""Negative log-likelihood per token on hold-out users, overall and per group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from harness.training.batches import Tokens, collate, token_losses


@dataclass(frozen=True)
class HoldoutSet:
    """Hold-out examples, one per user. Private unless the hold-out users are public.

    Attributes:
        examples: Corpus indices.
        groups: Privacy group of each example's user; -1 for a segment that nobody is trained in.
        names: Names of the groups.
    """

    examples: tuple[int, ...]
    groups: tuple[int, ...]
    names: tuple[str, ...]


def evaluate(
    model: Any, corpus: Tokens, lengths: NDArray[np.int32], holdout: HoldoutSet, budget: int, device: torch.device
) -> Mapping[str, float]:
    """Evaluates exactly, on all ranks together; collective. For public hold-out users alone.

    Args:
        model: The model; its adapter's current weights are used.
        corpus: Where the tokens are.
        lengths: Tokens per example.
        holdout: What to evaluate on.
        budget: Tokens of a micro-batch, padding included.
        device: Where inputs belong.

    Returns:
        ``eval/loss`` (nats per token), ``eval/tokens``, and ``eval/loss/<group>`` for groups with hold-out tokens.
        Empty if there is no hold-out example.
    """
    if not holdout.examples:
        return {}
    sums = user_losses(model, corpus, lengths, holdout, budget, device)
    groups = torch.tensor(holdout.groups)
    total, tokens = sums.sum(dim=0).tolist()
    result = {"eval/loss": total / tokens, "eval/tokens": int(tokens)}
    for g, name in enumerate(holdout.names):
        loss, count = sums[groups == g].sum(dim=0).tolist()
        if count:
            result[f"eval/loss/{name}"] = loss / count
    return result


def user_losses(
    model: Any, corpus: Tokens, lengths: NDArray[np.int32], holdout: HoldoutSet, budget: int, device: torch.device
) -> Tensor:
    """Each user's summed loss in nats, and number of predicted tokens; collective, and the same on every rank.

    Tokens without a loss (prompts) count nowhere. Arguments as for `evaluate`, with at least one example.

    Returns:
        float64, on the CPU, shape [users, 2]. Private unless the users are public.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    batches = _batches(holdout, lengths, budget, world)
    # Every rank runs equally many, or ranks that share sharded weights would wait for each other forever.
    rounds = -(-len(batches) // world)
    sums = torch.zeros(len(holdout.examples), 2, dtype=torch.float64)
    with torch.no_grad():
        for i in range(rounds):
            place = i * world + rank
            batch = batches[place] if place < len(batches) else batches[0][:1]
            rows = collate(corpus, [holdout.examples[k] for k in batch], device)
            losses = token_losses(model, rows).sum(dim=1).double().cpu()
            predicted = (rows.targets != -100).sum(dim=1).double().cpu()
            if place < len(batches):
                sums[list(batch)] = torch.stack([losses, predicted], dim=1)
    if world > 1:
        # A user is on one rank and zero on the others: the sum is exact, whatever the number of ranks.
        on_device = sums.to(device)
        dist.all_reduce(on_device)
        sums = on_device.cpu()
    return sums


def is_finite(row: Mapping[str, float]) -> bool:
    """Whether every number of a row is finite."""
    return all(math.isfinite(v) for v in row.values())


def _batches(holdout: HoldoutSet, lengths: NDArray[np.int32], budget: int, world: int) -> Sequence[Sequence[int]]:
    order = sorted(range(len(holdout.examples)), key=lambda k: -int(lengths[holdout.examples[k]]))
    # Few examples would fit into one micro-batch, and all ranks but one would wait.
    budget = min(budget, -(-len(order) // world) * int(lengths[holdout.examples[order[0]]]))
    batches: list[list[int]] = []
    for k in order:
        width = int(lengths[holdout.examples[batches[-1][0]]]) if batches else 0
        if batches and width * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(k)
        else:
            batches.append([k])
    return batches
