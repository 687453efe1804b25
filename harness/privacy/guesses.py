"""How large ε must be for so many right guesses: the bound of the one-run audit (Steinke, Nasr and Jagielski, 2023).

Each canary is in the training with probability ½, independently, and some are guessed about. Under (ε, δ)-DP no
attacker guesses much better than a coin that is right with probability e^ε / (1 + e^ε).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from harness.errors import ArgumentError

_LARGEST = 60.0
"""No bound is larger: e^-60 of a wrong guess is below what a double can tell from none."""
_HALVINGS = 60


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at most, under (ε, δ)-DP: p = β + 2mδα, in [0, 1].

    Args:
        canaries: m ≥ guesses.
        guesses: r.
        correct: v, from 0 to r.
        epsilon: ε ≥ 0.
        delta: δ in [0, 1].
    """
    from scipy.special import bdtrc, expit

    # P[Bin ≥ v]; the special function is exact in the far tail too, which 1 − P[Bin < v] is not.
    beta = float(bdtrc(correct - 1, guesses, expit(epsilon))) if correct else 1.0
    alpha = 0.0
    if delta and correct:
        # P[v − i ≤ Bin < v] for i = 1 … v: sums of the probabilities of v − 1, v − 2, …
        k = np.arange(correct - 1, -1, -1)
        right, wrong = -np.log1p(np.exp(-epsilon)), -np.log1p(np.exp(epsilon))
        below = np.cumsum(np.exp(_log_choices(guesses)[k] + k * right + (guesses - k) * wrong))
        alpha = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, beta + 2 * canaries * delta * alpha)


@functools.lru_cache(maxsize=8)
def _log_choices(guesses: int) -> NDArray[np.float64]:
    """The logarithms of the binomial coefficients, shape [guesses + 1]."""
    from scipy.special import gammaln

    k = np.arange(guesses + 1)
    logs: NDArray[np.float64] = gammaln(guesses + 1) - gammaln(k + 1) - gammaln(guesses - k + 1)
    return logs


@functools.lru_cache(maxsize=4096)  # many tests have the same ceiling
def epsilon_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """The largest ε ≥ 0 that so many right guesses refute; 0 if there is none.

    Args:
        canaries: m, each in with probability ½, whether or not it is guessed about.
        guesses: r ≤ m, fixed beforehand.
        correct: v, from 0 to r.
        delta: δ of the claim, in [0, 1].
        confidence: With this probability at least the true ε is no smaller, in (0, 1).

    Raises:
        ArgumentError: The numbers don't fit each other.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ArgumentError(f"an audit needs 0 ≤ correct ≤ guesses ≤ canaries, found {correct}, {guesses}, {canaries}")
    if not (0 < confidence < 1 and 0 <= delta <= 1):
        raise ArgumentError(
            f"an audit needs a confidence within (0, 1) and δ within [0, 1], found {confidence}, {delta}"
        )
    level = 1 - confidence
    low, high = 0.0, _LARGEST
    # A coin that is always right explains everything, so `high` is never refuted if there was a guess.
    if not correct or p_value(canaries, guesses, correct, low, delta) > level:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def ceiling(canaries: int, guesses: int, delta: float, confidence: float = 0.95) -> float:
    """The bound that perfect guesses reach: an audit can't find a larger ε. Arguments as for `epsilon_bound`."""
    return epsilon_bound(canaries, guesses, guesses, delta, confidence)
