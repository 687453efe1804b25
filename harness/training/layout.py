"""Which tokens of a micro-batch are whose: what keeps the gradients of units apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of these values; nobody waits for their way to a GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Layout:
    """The examples of a micro-batch and their units. Private.

    Every example is a stretch of one row, and belongs to one unit. Padding belongs to nobody: its gradients are zero,
    or not looked at.

    Attributes:
        units: Number of units.
        owners: Place of each example's unit, rising from 0 without gaps, int64, shape [examples].
        places: For each example, the places of its tokens among all of the micro-batch (row by row), int64, shape
            [examples, longest]; None: each row is one example.
        real: Which of `places` are tokens, and which only fill up, bool, the same shape.
    """

    units: int
    owners: Tensor
    places: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def of_rows(cls, slots: Sequence[int], device: torch.device) -> Layout:
        """A row per example.

        Args:
            slots: For each row, the place of its unit; rising from 0, without gaps.
            device: Where gradients are.
        """
        return cls(slots[-1] + 1, to_device(np.asarray(slots, dtype=np.int64), device))

    @classmethod
    def packed(
        cls, slots: Sequence[int], begins: Sequence[int], lengths: Sequence[int], device: torch.device
    ) -> Layout:
        """Several examples per row.

        Args:
            slots: For each example, the place of its unit; rising from 0, without gaps.
            begins: For each example, the place of its first token among all of the micro-batch, row by row.
            lengths: Tokens of each example.
            device: Where gradients are.
        """
        counts = np.asarray(lengths)[:, None]
        steps = np.arange(max(lengths))[None, :]
        real = steps < counts
        # What fills up is the example's own first token: nothing times somebody else's infinity would not be nothing.
        places = np.asarray(begins)[:, None] + np.where(real, steps, 0)
        owners = to_device(np.asarray(slots, dtype=np.int64), device)
        return cls(slots[-1] + 1, owners, to_device(places, device), to_device(real, device))

    @property
    def one_each(self) -> bool:
        """Whether every unit has one example, so that nothing has to be added up."""
        return self.units == len(self.owners)

    def products(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Per unit, the sum over its tokens of ``gradient ⊗ input``: the gradient of a product's weight.

        Args:
            gradients: At the outputs, shape [rows, tokens, out].
            inputs: Shape [rows, tokens, in].

        Returns:
            Shape [units, out, in].
        """
        if self.places is not None:
            gradients, inputs = self._by_example(gradients, mask=True), self._by_example(inputs, mask=False)
        return self._by_unit(torch.bmm(gradients.transpose(1, 2), inputs))

    def sums(self, values: Tensor) -> Tensor:
        """Per unit, the sum of these values over its tokens: [rows, tokens, n] → [units, n]."""
        if self.places is not None:
            values = self._by_example(values, mask=True)
        return self._by_unit(values.sum(dim=1))

    def add_rows(self, units: Tensor, ids: Tensor, gradients: Tensor) -> None:
        """Adds, per unit, the gradients of the rows that its tokens looked up in an embedding.

        Args:
            units: What to add to, [units, vocabulary, n].
            ids: Which row each token looked up, [rows, tokens].
            gradients: At what was looked up, [rows, tokens, n].
        """
        if self.places is not None:
            gradients, ids = self._by_example(gradients, mask=True), ids.reshape(-1)[self.places]
        units.index_put_((self.owners.unsqueeze(1).expand_as(ids), ids), gradients, accumulate=True)

    def _by_example(self, values: Tensor, *, mask: bool) -> Tensor:
        """[rows, tokens, n] → [examples, longest, n]; with `mask`, what only fills up is zero."""
        assert self.places is not None
        assert self.real is not None
        found = values.reshape(-1, values.shape[-1])[self.places]
        return found.masked_fill(~self.real.unsqueeze(-1), 0.0) if mask else found

    def _by_unit(self, values: Tensor) -> Tensor:
        if self.one_each:
            return values
        return values.new_zeros(self.units, *values.shape[1:]).index_add_(0, self.owners, values)
