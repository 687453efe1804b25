"""Scores of gradient canaries: what a run's noisy sums say about who is in.

Such a canary contributes its own direction, as long as its clip norm, in place of a gradient. What is seen of it in one
step is z, the projection of the step's noisy sum on that direction, divided by the clip norm: k if it was drawn k
times, plus noise of a public standard deviation σ, plus the little that other users' gradients have in that direction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_SIGMA = 1e-6
"""Noise below it counts as this much, so that scores stay finite where there is none."""
_MIDDLE = 0.4
"""The share of canaries whose spread measures a step's noise: fewer than those that are not in."""


def step_scores(
    seen: NDArray[np.float64], sigma: NDArray[np.float64], drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log-likelihood ratio of being in, over all steps: Σ_t log Σ_k P_t(k) exp((2kz − k²) / (2σ²)).

    The best score there is where the noise is what it is said to be.

    Args:
        seen: z, shape [steps, canaries].
        sigma: Noise std over clip norm, shape [steps, canaries] or what broadcasts to it; nan: the canary's group takes
            no part in the step.
        drawn: The probability that one who is in is drawn 0, 1, 2 … times, shape [steps, canaries, counts] or what
            broadcasts to it.

    Returns:
        Nats, shape [canaries]; higher: rather in.
    """
    from scipy.special import logsumexp

    steps, canaries = seen.shape
    std = np.maximum(np.broadcast_to(sigma, seen.shape), SMALLEST_SIGMA)  # nan stays
    chances = np.broadcast_to(drawn, (steps, canaries, drawn.shape[-1]))
    k = np.arange(drawn.shape[-1], dtype=np.float64)
    total = np.zeros(canaries)
    for t in range(steps):  # one step at a time: all at once would take steps × canaries × counts numbers
        takes_part = ~np.isnan(std[t])
        z, s = seen[t, takes_part, None], std[t, takes_part, None]
        total[takes_part] += logsumexp((2 * k * z - k * k) / (2 * s * s), b=chances[t, takes_part], axis=1)
    return total


def spread_scores(seen: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_t (z − mean_t z)²: finds noise that repeats from step to step, which cancels and leaves the canary.

    Args:
        seen: z, shape [steps, canaries].
        sigma: As for `step_scores`; only where it is nan counts.

    Returns:
        Shape [canaries]; higher: rather in. 0 for a canary that never takes part.
    """
    takes_part = ~np.isnan(np.broadcast_to(sigma, seen.shape))
    counts = np.maximum(1, takes_part.sum(axis=0))
    means = np.where(takes_part, seen, 0.0).sum(axis=0) / counts
    spread: NDArray[np.float64] = np.where(takes_part, (seen - means) ** 2, 0.0).sum(axis=0)
    return spread


def observed_sigma(seen: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise that each step shows, whatever it is said to be: for `step_scores` in place of the claimed one.

    It finds steps without noise, or with less, among many with all of it. A step's noise is read off the densest 40 %
    of its canaries: those that are not in show the noise alone.

    Args:
        seen: z, shape [steps, canaries].
        sigma: As for `step_scores`; what is claimed.

    Returns:
        The claimed one times a factor per step, shape [steps, canaries]; nan stays.
    """
    from scipy.stats import norm

    claimed = np.broadcast_to(sigma, seen.shape)
    found = np.array(claimed, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = seen / np.maximum(claimed, SMALLEST_SIGMA)
    expected = 2 * float(norm.ppf(0.5 + _MIDDLE / 2))  # of a normal distribution: the width of its middle
    for t in range(len(seen)):
        row = np.sort(units[t][np.isfinite(units[t])])
        width = int(np.ceil(_MIDDLE * len(row)))
        if width < 2:
            continue
        found[t] *= float(np.min(row[width - 1 :] - row[: len(row) - width + 1])) / expected
    return found
