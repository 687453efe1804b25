"""Losses of many continuations of one prefix, each shared beginning computed once; many prefixes at a time.

The continuations are a tree. All its nodes lie behind the prefix in one row of tokens; each sees the prefix and its own
ancestors alone (an attention mask), at the place where it would be by itself (its position). A thousand codes of six
digits have 2,700 nodes before their last digits, not 6,000, and the prefix is there once. A row is a tree, and a
micro-batch has as many rows as its tokens allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.auditing.losses import example_losses, micro_batches, still

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.25


@dataclass(frozen=True)
class Asked:
    """Continuations of one prefix.

    Attributes:
        prefix: Token ids, at least one.
        continuations: Token ids, at least one each; together not more than fit into a row.
    """

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Tree:
    """Nodes: tokens that are followed by others, behind the prefix. Node −1 is the end of the prefix.

    Attributes:
        prefix: Token ids.
        tokens: Of each node, parents before children.
        parents: Of each node; −1: it follows the prefix.
        asked_at: For each token of each continuation, the node before it, flat.
        asked: These tokens, flat.
        owner: Whose each is, flat.
    """

    prefix: Sequence[int]
    tokens: list[int]
    parents: list[int]
    asked_at: list[int]
    asked: list[int]
    owner: list[int]

    @property
    def row(self) -> list[int]:
        """All tokens of the tree."""
        return [*self.prefix, *self.tokens]


def continuation_losses(
    model: Any, asked: Sequence[Asked], device: torch.device, budget: int
) -> list[NDArray[np.float64]]:
    """Summed loss of each continuation after its prefix, nats; of each of `asked` in its order, shape [continuations].

    Only for models that `understands_trees`.

    Args:
        model: A causal language model.
        asked: Prefixes and what may follow them.
        device: Where the model is.
        budget: Tokens of a micro-batch, padding included; a larger tree is computed alone.
    """
    trees = [_grow(one) for one in asked]
    rows = [tree.row for tree in trees]
    found: list[NDArray[np.float64]] = [np.zeros(len(one.continuations)) for one in asked]
    with torch.inference_mode(), still(model):
        for batch in micro_batches(sorted(range(len(rows)), key=lambda i: -len(rows[i])), rows, budget):
            for i, losses in zip(batch, _losses(model, [trees[i] for i in batch], device), strict=True):
                found[i] = np.bincount(trees[i].owner, weights=losses, minlength=len(found[i])).astype(np.float64)
    return found


def plain_losses(model: Any, asked: Sequence[Asked], device: torch.device, budget: int) -> list[NDArray[np.float64]]:
    """The same by a row per continuation, for every model."""
    rows = [[*one.prefix, *c] for one in asked for c in one.continuations]
    whole = example_losses(model, rows, device, budget).nats
    before = example_losses(model, [one.prefix for one in asked], device, budget).nats
    ends = np.cumsum([len(one.continuations) for one in asked])
    return [part - own for part, own in zip(np.split(whole, ends[:-1]), before, strict=True)]


def understands_trees(
    model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]], device: torch.device
) -> bool:
    """Whether the model gives a tree's nodes what it gives them in rows of their own: tried, not read from its name.

    Args:
        model: A causal language model.
        prefix: Token ids.
        continuations: A few different ones, which are computed both ways, once beside a smaller tree.
        device: Where the model is.
    """
    dtype = next(model.parameters()).dtype
    asked = [Asked(prefix[-1:], continuations[:1]), Asked(prefix, continuations)]
    expected = np.concatenate(plain_losses(model, asked, device, 1 << 12))
    try:
        found = np.concatenate(continuation_losses(model, asked, device, 1 << 12))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return bool(np.all(np.abs(found - expected) <= _TOLERANCES.get(dtype, _HALF_TOLERANCE) * (1 + np.abs(expected))))


def nodes_of(continuations: Sequence[Sequence[int]]) -> int:
    """How many tokens a tree of these takes beside the prefix."""
    return len({tuple(c[:i]) for c in continuations for i in range(1, len(c))})


def _grow(one: Asked) -> _Tree:
    tree = _Tree(one.prefix, [], [], [], [], [])
    known: dict[tuple[int, int], int] = {}
    for owner, continuation in enumerate(one.continuations):
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


def _losses(model: Any, trees: Sequence[_Tree], device: torch.device) -> list[NDArray[np.float64]]:
    """Of each token that a tree asks for, in its order."""
    width = max(len(tree.row) for tree in trees)
    inputs = np.zeros((len(trees), width), dtype=np.int64)
    positions = np.zeros((len(trees), width), dtype=np.int64)
    # What fills a row up sees itself, and nobody sees it.
    allowed = np.broadcast_to(np.eye(width, dtype=bool), (len(trees), width, width)).copy()
    for i, tree in enumerate(trees):
        start, length = len(tree.prefix), len(tree.row)
        inputs[i, :length] = tree.row
        positions[i, :length] = np.arange(length)
        allowed[i, :start, :start] = np.tri(start, dtype=bool)
        for node, parent in enumerate(tree.parents):
            above = start - 1 if parent < 0 else start + parent
            allowed[i, start + node] |= allowed[i, above]
            positions[i, start + node] = positions[i, above] + 1
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(torch.from_numpy(~allowed), torch.finfo(dtype).min)
    logits: Tensor = model(
        input_ids=torch.from_numpy(inputs).to(device),
        position_ids=torch.from_numpy(positions).to(device),
        attention_mask=mask[:, None].to(device),
        use_cache=False,
    ).logits
    found = []
    for i, tree in enumerate(trees):
        first = len(tree.prefix) - 1
        nodes = torch.tensor(tree.asked_at, device=device) + 1
        asked = torch.tensor(tree.asked, device=device)
        # Many tokens may be asked for at a node: what its logits sum up to is found once.
        normalizers = torch.logsumexp(logits[i, first : len(tree.row)].float(), dim=-1)
        losses = normalizers[nodes] - logits[i, first + nodes, asked].float()
        found.append(losses.double().cpu().numpy())
    return found
