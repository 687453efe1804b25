"""Clip norms that follow the norms of the units: the bit that a unit gives, and how the factor moves.

The factor c_t is a function of released noisy shares and public constants, so it is released too, and part of the
state that a resumed run goes on with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.privacy.mechanism import AdaptiveClip

SMALLEST, LARGEST = 1e-4, 1e4
"""Public bounds of the factor, so that no run of bad luck takes clip norms and noise beyond the numbers."""


def bits_of(norms: Tensor, clip_norms: Tensor) -> Tensor:
    """Sum of ``1[norm ≤ C] − ½`` over units, float64, shape []; one without a usable gradient gives nothing. Private.

    Args:
        norms: Gradient norms before clipping, float64, shape [units].
        clip_norms: C_{p,t} of each, float64, shape [units].
    """
    bits = (norms <= clip_norms).to(torch.float64) - 0.5
    return torch.where(torch.isfinite(norms), bits, 0.0).sum()


def next_factor(factor: float, share: float, adaptive: AdaptiveClip) -> float:
    """c_{t+1} = c_t · exp(−learning_rate · (share − quantile)), within the public bounds.

    Args:
        factor: c_t.
        share: The noisy share of units below their clip norm in step t, as released.
        adaptive: The wanted share and the learning rate.
    """
    # Beyond this exponent the bounds decide anyway, and exp would overflow.
    exponent = min(max(-adaptive.learning_rate * (share - adaptive.quantile), -100.0), 100.0)
    return min(max(factor * math.exp(exponent), SMALLEST), LARGEST)
