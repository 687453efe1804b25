"""How many trials a search has: one exact draw from its law.

The price of the best of K trials is that of K's law. A number that is capped, or drawn again, has another law.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal, localcontext

from harness.errors import MachineError
from harness.privacy.randomness import Randomness
from harness.privacy.search import Trials

DIGITS = 90
"""Of the probabilities that are added up; a draw has 256 bits, 77 digits."""
_WORDS = 4
_MOST = 10**9
"""No machine runs so many trials; a draw beyond it fails, and releases nothing."""


def draw_number(trials: Trials, randomness: Randomness) -> int:
    """K, by inverting its distribution function at a uniform number of 256 bits. Secret.

    Args:
        trials: Its law.
        randomness: The sweep's.

    Returns:
        At least 1; of Poisson's law, 0 as well. Of a fixed number, that.

    Raises:
        MachineError: More than any machine could run.
    """
    if trials.law == "fixed":
        return int(trials.mean)
    words = randomness.words("number of trials", 0, "", 0, _WORDS)
    whole = sum(int(word) << (64 * i) for i, word in enumerate(words))
    with localcontext(Context(prec=DIGITS)):
        uniform = (Decimal(whole) + Decimal("0.5")) / Decimal(2) ** (64 * _WORDS)
        below = Decimal(0)
        for number, probability in probabilities(trials):
            below += probability
            if uniform < below:
                return number
            if number >= _MOST:
                break
    raise MachineError("the number of trials that was drawn is beyond reach; the search releases nothing")


def probabilities(trials: Trials) -> Iterator[tuple[int, Decimal]]:
    """(k, P[K = k]) of a random number of trials, rising from the smallest k; in the current decimal context."""
    mean = Decimal(trials.mean)
    if trials.law == "poisson":
        number, probability = 0, (-mean).exp()
        while True:
            yield number, probability
            number += 1
            probability *= mean / number
    shape = {"geometric": Decimal(1), "logarithmic": Decimal(0)}.get(trials.law)
    if shape is None:
        shape = Decimal(trials.shape or 0)
    gamma = Decimal(_gamma(trials))
    if gamma == 1:
        yield 1, Decimal(1)
        return
    rest = 1 - gamma
    first = rest / -gamma.ln() if shape == 0 else shape * rest / ((-shape * gamma.ln()).exp() - 1)
    number, probability = 1, first
    while True:
        yield number, probability
        probability *= rest * (number + shape) / (number + 1)
        number += 1


def _gamma(trials: Trials) -> float:
    """γ of the truncated negative binomial, from its mean: the very number that dp-accounting prices."""
    from dp_accounting.rdp import rdp_privacy_accountant

    shape = {"geometric": 1.0, "logarithmic": 0.0}.get(trials.law, trials.shape)
    return float(rdp_privacy_accountant._gamma_truncated_negative_binomial(shape, trials.mean))
