"""The one place where noise enters. Where the guarantee is made.

Guards against: noise per rank or per micro-step instead of once per update, noise that depends on how parameters
are sharded, division by the realised cohort size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.gradients import Trainable


def noisy_mean(
    total: Tensor, trainables: Sequence[Trainable], mechanism: Mechanism, step: int, randomness: Randomness
) -> Tensor:
    """Turns the cohort's summed clipped gradients into what the optimizer may see: the release of one step.

    ``(total + N(0, s² I)) / D_step``, with s and the public constant D of the mechanism. The noise of a coordinate
    depends on (key, step, parameter name, place in the parameter) alone, so every worker draws the same.

    Args:
        total: Sum of the clipped gradients over the *whole* cohort, of all workers; float32, shape [coordinates].
        trainables: Where each parameter lies in `total`.
        mechanism: s and D.
        step: 0 ≤ step < mechanism.steps.
        randomness: The run's draws.

    Returns:
        The private mean gradient, float32, shape [coordinates].
    """
    denominator = mechanism.denominator(step)
    released = torch.empty_like(total)
    for trainable in trainables:
        part = slice(trainable.offset, trainable.offset + trainable.size)
        value = total[part].to("cpu", torch.float64)
        if mechanism.private:
            noise = randomness.normals("noise", step, trainable.name, 0, trainable.size)
            value += mechanism.noise_std * torch.from_numpy(noise)
        released[part] = (value / denominator).to(total.device, torch.float32)
    return released
