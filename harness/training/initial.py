"""What is remembered of the weights before the first step: enough to see whether they moved, not what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.training.ranks import own_ranks, tell

_SIZE = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Initial:
    """The weights before the first step, the same on every rank.

    Attributes:
        digests: SHA-256 of each weight, by name.
        zeros: Names of those that are all zero.
    """

    digests: Mapping[str, bytes]
    zeros: frozenset[str]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], device: torch.device) -> Initial:
        """Looks at all weights, one after the other; collective.

        Args:
            weights: By name; looking one up may be collective.
            device: Of the collective.
        """
        seen = torch.zeros(len(weights), _SIZE + 1, dtype=torch.uint8)
        for row, (_, value) in zip(seen, weights.items(), strict=True):
            if own_ranks().rank == 0:
                row[:_SIZE] = torch.frombuffer(bytearray(_digest(value)), dtype=torch.uint8)
                row[_SIZE] = not bool(value.any())
        rows = tell(seen, device)
        digests = {name: bytes(row[:_SIZE].tolist()) for name, row in zip(weights, rows, strict=True)}
        return cls(digests, frozenset(name for name, row in zip(weights, rows, strict=True) if row[_SIZE]))

    def is_at(self, name: str, value: Tensor) -> bool:
        """Whether a weight is what it was."""
        return _digest(value) == self.digests[name]

    def digest(self, others: Mapping[str, Tensor]) -> str:
        """Of all weights together, and of others that stay as they are."""
        return _joined({**self.digests, **{name: _digest(value) for name, value in others.items()}})


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values, in any order."""
    return _joined({name: _digest(value) for name, value in tensors.items()})


def _joined(digests: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name in sorted(digests):
        found.update(name.encode() + b"\0" + digests[name])
    return found.hexdigest()


def _digest(value: Tensor) -> bytes:
    # Zeros have two signs, which say nothing.
    values: Any = (value.detach().cpu().reshape(-1) + 0.0).numpy()
    return hashlib.sha256(values).digest()
