"""Which entries of a dictionary a matrix is made of: rank-aware order-recursive matching pursuit.

The update of a linear layer is G = Σ_v Δ_v ⊗ y_v over the tokens v of a text: y_v is what the layer is given for v,
which everybody knows, and Δ_v is not known. So the rows of G lie in the span of these y_v. Where G's rank is the number
of distinct tokens and there are more dimensions than that, the text's tokens are the ones that lie in the span of its
rows; where its rank is smaller, tokens are picked one by one, and each is taken out of what is left (Davies and Eldar,
2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDING = 1e-5
"""Singular values below this share of the largest are rounding."""
_GONE = 1e-3
"""Of a unit vector, squared: what is left of it counts as nothing."""
_INSIDE = 1e-2
"""A direction that is so near a span, in radians, lies in it."""


class Block:
    """The updates of all layers that are given the same input, against the dictionary of that input.

    Attributes:
        spans: Whether the span of the update tells entries apart: it is neither nothing nor everything.
    """

    def __init__(self, update: Tensor, entries: Tensor, noise_std: float) -> None:
        """Looks at an update.

        Args:
            update: G, float32, shape [rows, dimensions].
            entries: The dictionary, float32, shape [entries, dimensions].
            noise_std: Of the noise on each number of `update`, as far as the attacker knows; 0: none.
        """
        norms = torch.linalg.vector_norm(entries, dim=1, keepdim=True)
        self._usable = norms.squeeze(1) > 0
        self._entries = entries / norms.clamp_min(torch.finfo(entries.dtype).tiny)
        self._left = torch.ones(len(entries), device=entries.device)
        self._picked = entries.new_zeros(0, entries.shape[1])
        values, rows = torch.linalg.svd(update, full_matrices=False)[1:]
        # No noise alone has a larger singular value, but for a few per cent.
        edge = noise_std * (update.shape[0] ** 0.5 + update.shape[1] ** 0.5)
        rank = int((values > max(edge, _ROUNDING * float(values[0]))).sum())
        self.spans = 0 < rank < update.shape[1]
        self._basis = rows[:rank] if self.spans else rows[:0]
        weights = values / values.norm().clamp_min(torch.finfo(values.dtype).tiny)
        looked_at = self._basis if self.spans else rows * weights.unsqueeze(1)
        self._inside = (self._entries @ looked_at.T).square().sum(dim=1)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left of the update's span."""
        return not len(self._basis)

    def scores(self) -> Tensor:
        """The share of each entry, squared, that lies in the span of what is left, in [0, 1], shape [entries].

        Where the span tells nothing, the share of the update in the direction of the entry.
        """
        found = self._inside / self._left.clamp_min(_GONE)
        return torch.where(self._usable & (self._left > _GONE), found, 0.0).clamp(0.0, 1.0)

    def pick(self, entry: int) -> None:
        """Takes an entry out of the update and out of all others."""
        direction = self._entries[entry]
        for _ in range(2):  # once leaves rounding behind
            direction = direction - self._picked.T @ (self._picked @ direction)
        if self.exhausted or float(direction.square().sum()) < _GONE:
            return
        direction = direction / direction.norm()
        self._picked = torch.cat([self._picked, direction[None]])
        self._left = self._left - (self._entries @ direction).square()
        shares = self._basis @ direction
        if float(shares.norm()) < _INSIDE:
            return
        # The span turns away from the entry in one of its directions, or loses it; the others are at right angles.
        shares = shares / shares.norm()
        towards = self._basis.T @ shares
        self._inside = self._inside - (self._entries @ towards).square()
        others = torch.linalg.svd(torch.eye(len(shares), device=shares.device) - torch.outer(shares, shares))[2][:-1]
        self._basis = others @ self._basis
        turned = towards - direction * (direction @ towards)
        if float(turned.norm()) >= _INSIDE:
            turned = turned / turned.norm()
            self._inside = self._inside + (self._entries @ turned).square()
            self._basis = torch.cat([self._basis, turned[None]])


def pursue(blocks: Sequence[Block], count: int) -> list[int]:
    """The entries that the updates are most probably made of, the surest first.

    Args:
        blocks: At least one, of dictionaries with the same entries. They are used up.
        count: How many are wanted, at most the number of entries.

    Returns:
        `count` different indices.
    """
    telling = [b for b in blocks if b.spans] or list(blocks)
    first = torch.stack([b.scores() for b in telling]).sum(dim=0)
    taken = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    picked: list[int] = []
    while len(picked) < count and any(not b.exhausted for b in telling):
        total = torch.stack([b.scores() for b in telling if not b.exhausted]).sum(dim=0)
        entry = int(total.masked_fill(taken, -1.0).argmax())
        picked.append(entry)
        taken[entry] = True
        for block in telling:
            block.pick(entry)
    if len(picked) < count:
        rest = first.masked_fill(taken, -1.0).argsort(descending=True, stable=True)
        picked += rest[: count - len(picked)].tolist()
    return picked
