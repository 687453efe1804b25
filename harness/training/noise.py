"""The one place where noise enters. Where the guarantee is made.

Guards against: noise per rank or per micro-step instead of once per update, noise that depends on how parameters
are sharded, division by the realised cohort size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.draws import normals
from harness.training.gradients import Trainable

_AT_ONCE = 1 << 18
"""Coordinates of a large parameter that get their noise at once on a CPU. Changes no value."""
GRADIENTS, BITS, LOSSES = "noise", "clip", "evaluation"
"""Purposes of noise: part of a draw's address, so that no two sums share a draw."""


def noisy_sum(
    values: NDArray[np.float64],
    noise_std: float,
    randomness: Randomness,
    purpose: str,
    step: int,
    name: str,
    start: int = 0,
) -> NDArray[np.float64]:
    """``values + N(0, noise_std² I)``, float64, same shape [coordinates]: every noisy answer comes from here.

    Args:
        values: A sum over users, of all workers, each user's part bounded. Private.
        noise_std: The standard deviation of each coordinate's noise; 0: none is added.
        randomness: The run's draws.
        purpose: One of the purposes above.
        step: 0 ≤ step.
        name: What the sum is of. Noise is a function of (key, purpose, step, name, coordinate) alone.
        start: The coordinate that `values` begin with.
    """
    if noise_std == 0:
        return values
    noise = normals(randomness, purpose, step, name, start, len(values), torch.device("cpu"))
    return np.asarray(values + noise.mul_(noise_std).numpy(), dtype=np.float64)


def noise_slice(randomness: Randomness, step: int, name: str, start: int, count: int, device: torch.device) -> Tensor:
    """Standard normal noise for a stretch of one parameter's summed gradient; times s_t, what a step adds to it.

    A function of (key, step, name, coordinate) and the kind of device alone: shards that draw their own stretches have
    together what one worker would draw. To be added once per step to the sum of all workers.

    Args:
        randomness: The run's draws.
        step: 0 ≤ step < mechanism.steps.
        name: The parameter.
        start: The first coordinate, of the parameter flattened.
        count: How many coordinates.
        device: Where it is drawn and returned; see `harness.training.draws`.

    Returns:
        float64, shape [count].
    """
    return normals(randomness, GRADIENTS, step, name, start, count, device)


def noisy_mean(
    total: Tensor,
    trainables: Sequence[Trainable],
    mechanism: Mechanism,
    step: int,
    randomness: Randomness,
    factor: float = 1.0,
) -> Tensor:
    """Turns the cohort's summed clipped gradients into what the optimizer may see: the release of one step.

    ``(total + N(0, s_t² I)) / D_t``, with s_t and the public constant D_t of the mechanism. The noise of a coordinate
    depends on (key, step, parameter name, place in the parameter) alone, so every worker draws the same.

    Args:
        total: Sum of the clipped gradients over the *whole* cohort, of all workers; float32, shape [coordinates].
        trainables: Where each parameter lies in `total`.
        mechanism: s_t and D_t.
        step: 0 ≤ step < mechanism.steps.
        randomness: The run's draws.
        factor: c_t of an adaptive clip.

    Returns:
        The private mean gradient, float32, shape [coordinates].

    Raises:
        ValueError: No group takes part in this step, so that there is nothing to divide by.
    """
    noise_std, denominator = mechanism.noise_std_at(step, factor), _denominator(mechanism, step)
    # There and back once, not per parameter: each way waits for the device.
    sums = total.cpu()
    released = torch.empty_like(sums)
    for trainable in trainables:
        part = slice(trainable.offset, trainable.offset + trainable.size)
        noisy = noisy_sum(sums[part].double().numpy(), noise_std, randomness, GRADIENTS, step, trainable.name)
        released[part] = torch.from_numpy(noisy) / denominator
    return released.to(total.device)


def noisy_part(
    total: Tensor,
    name: str,
    start: int,
    mechanism: Mechanism,
    step: int,
    randomness: Randomness,
    factor: float = 1.0,
) -> Tensor:
    """`noisy_mean` for a stretch of one parameter: what a worker does with the part that its optimizer steps on.

    Args:
        total: Sum of the clipped gradients over the *whole* cohort, of all workers, float32, shape [coordinates].
        name: The parameter.
        start: The first of these coordinates, of the parameter flattened.
        mechanism: s_t and D_t.
        step: 0 ≤ step < mechanism.steps.
        randomness: The run's draws.
        factor: c_t of an adaptive clip.

    Returns:
        The private mean gradient there, float32, shape [coordinates].

    Raises:
        ValueError: No group takes part in this step.
    """
    noise_std, denominator = mechanism.noise_std_at(step, factor), _denominator(mechanism, step)
    if total.device.type != "cpu":
        noise = noise_slice(randomness, step, name, start, len(total), total.device)
        return ((total.double() + noise_std * noise) / denominator).to(torch.float32)
    released = torch.empty(len(total), dtype=torch.float32)
    # What fits into the caches, since a whole embedding's float64 copies take longer than its noise.
    for first in range(0, len(total), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        sums = total[part].double().numpy()
        noisy = noisy_sum(sums, noise_std, randomness, GRADIENTS, step, name, start + first)
        released[part] = torch.from_numpy(noisy) / denominator
    return released


def noisy_share(bits: float, mechanism: Mechanism, step: int, randomness: Randomness) -> float:
    """The share of units below their clip norm as the adaptive clip may see it: the second release of a step.

    ``(bits + N(0, σ_b²)) / D_t + ½``, with σ_b and the public constant D_t of the mechanism.

    Args:
        bits: Sum of ``1[norm ≤ C_{p,t}] − ½`` over the units of the whole cohort, of all workers. Private.
        mechanism: σ_b and D_t.
        step: 0 ≤ step < mechanism.steps.
        randomness: The run's draws.

    Returns:
        The noisy share; noise may take it below 0 or above 1.

    Raises:
        ValueError: The mechanism has no adaptive clip, or no group takes part in this step.
    """
    if mechanism.adaptive is None:
        raise ValueError("only an adaptive clip has a share to release")
    std = mechanism.adaptive.bit_noise_std
    (noisy,) = noisy_sum(np.array([bits]), std, randomness, BITS, step, "bits").tolist()
    return float(noisy) / _denominator(mechanism, step) + 0.5


def _denominator(mechanism: Mechanism, step: int) -> float:
    denominator = mechanism.denominator(step)
    if not denominator > 0:
        raise ValueError(f"no group takes part in step {step}")
    return denominator
