"""Losses of many continuations of one prefix, each shared beginning computed once.

The continuations are a tree. All its nodes lie behind the prefix in one row of tokens; each sees the prefix and its own
ancestors alone (an attention mask), at the place where it would be by itself (its position). A thousand codes of six
digits have 2,700 nodes before their last digits, not 6,000, and the prefix is there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.auditing.losses import example_losses, still
from harness.training.batches import pad, token_losses

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.25


@dataclass(frozen=True)
class _Tree:
    """Nodes: tokens that are followed by others. Node −1 is the end of the prefix.

    Attributes:
        tokens: Of each node, parents before children.
        parents: Of each node; −1: it follows the prefix.
        asked_at: For each token of each continuation, the node before it, flat.
        asked: These tokens, flat.
        owner: Whose each is, flat.
    """

    tokens: list[int]
    parents: list[int]
    asked_at: list[int]
    asked: list[int]
    owner: list[int]


def continuation_losses(
    model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]], device: torch.device
) -> NDArray[np.float64]:
    """Summed loss of each continuation after the prefix, nats, shape [continuations].

    Only for models that `understands_trees`.

    Args:
        model: A causal language model.
        prefix: Token ids, at least one.
        continuations: Token ids, at least one each; together not more than fit into a row.
        device: Where the model is.
    """
    tree = _grow(continuations)
    with torch.inference_mode(), still(model):
        logs = _log_probabilities(model, prefix, tree, device)
        places = torch.tensor(tree.asked_at, device=device) + 1
        losses = -logs[places, torch.tensor(tree.asked, device=device)]
    sums = np.bincount(tree.owner, weights=losses.double().cpu().numpy(), minlength=len(continuations))
    return sums.astype(np.float64)


def plain_losses(
    model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]], device: torch.device, budget: int
) -> NDArray[np.float64]:
    """The same by a row per continuation, for every model; `budget` tokens at once."""
    whole = example_losses(model, [[*prefix, *c] for c in continuations], device, budget).nats
    with torch.inference_mode(), still(model):
        before = float(token_losses(model, pad([prefix], device)).double().sum()) if len(prefix) > 1 else 0.0
    return whole - before


def understands_trees(
    model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]], device: torch.device
) -> bool:
    """Whether the model gives a tree's nodes what it gives them in rows of their own: tried, not read from its name.

    Args:
        model: A causal language model.
        prefix: Token ids.
        continuations: A few different ones, which are computed both ways.
        device: Where the model is.
    """
    dtype = next(model.parameters()).dtype
    expected = plain_losses(model, prefix, continuations, device, 1 << 12)
    try:
        found = continuation_losses(model, prefix, continuations, device)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return bool(np.all(np.abs(found - expected) <= _TOLERANCES.get(dtype, _HALF_TOLERANCE) * (1 + np.abs(expected))))


def nodes_of(continuations: Sequence[Sequence[int]]) -> int:
    """How many tokens a tree of these takes beside the prefix."""
    return len({tuple(c[:i]) for c in continuations for i in range(1, len(c))})


def _grow(continuations: Sequence[Sequence[int]]) -> _Tree:
    tree = _Tree([], [], [], [], [])
    known: dict[tuple[int, int], int] = {}
    for owner, continuation in enumerate(continuations):
        node = -1
        for place, token in enumerate(continuation):
            tree.asked_at.append(node)
            tree.asked.append(token)
            tree.owner.append(owner)
            if place == len(continuation) - 1:
                break  # nothing follows the last one, so the model need not read it
            if (node, token) not in known:
                known[node, token] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(node)
            node = known[node, token]
    return tree


def _log_probabilities(model: Any, prefix: Sequence[int], tree: _Tree, device: torch.device) -> Tensor:
    """Of every next token after the prefix (row 0) and after each node (its number + 1), [1 + nodes, vocabulary]."""
    start, nodes = len(prefix), len(tree.tokens)
    allowed = np.zeros((start + nodes, start + nodes), dtype=bool)
    allowed[:start, :start] = np.tri(start, dtype=bool)
    positions = np.arange(start + nodes)
    for node, parent in enumerate(tree.parents):
        above = start - 1 if parent < 0 else start + parent
        allowed[start + node] = allowed[above]
        allowed[start + node, start + node] = True
        positions[start + node] = positions[above] + 1
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(torch.from_numpy(~allowed), torch.finfo(dtype).min)
    logits = model(
        input_ids=torch.tensor([[*prefix, *tree.tokens]], device=device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        attention_mask=mask[None, None].to(device),
        use_cache=False,
    ).logits[0, start - 1 :]
    return torch.log_softmax(logits.float(), dim=-1)
