"""Confidence intervals of what attacks measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]


def clopper_pearson(successes: int, trials: int, confidence: float) -> Interval:
    """The exact interval of a share (Clopper and Pearson, 1934): it covers the truth at least so often.

    Args:
        successes: From 0 to `trials`.
        trials: Independent ones, at least 1.
        confidence: Of both sides together, in (0, 1).

    Returns:
        Both ends, in [0, 1].
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def mean_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Student's interval of a mean; None: there are fewer than two values.

    Args:
        values: Independent ones.
        confidence: Of both sides together, in (0, 1).
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(np.std(values, ddof=1)) / math.sqrt(len(values)) * float(t.ppf((1 + confidence) / 2, len(values) - 1))
    return mean - half, mean + half


def share_interval(shares: Sequence[float], confidence: float) -> Interval | None:
    """The same for a mean of shares, within [0, 1]; None: there are fewer than two.

    Where all are the same, Student's interval would be a point; then it is Hoeffding's (1963), and where all are 0, or
    all are 1, Clopper and Pearson's.
    """
    found = mean_interval(shares, confidence)
    if found is None:
        return None
    if all(s == shares[0] for s in shares):
        if shares[0] in (0.0, 1.0):
            return clopper_pearson(len(shares) if shares[0] else 0, len(shares), confidence)
        half = math.sqrt(math.log(2 / (1 - confidence)) / (2 * len(shares)))
        found = shares[0] - half, shares[0] + half
    return max(0.0, found[0]), min(1.0, found[1])
