"""The price of choosing the best of a random number of trials (Papernot and Steinke, 2022).

The winner's own ε is not that price: which trial wins depends on the data as well. If the number of trials is drawn
from one of these laws, kept secret and never capped, and only the winner is released, the price grows with about the
logarithm of the mean number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from harness.errors import ArgumentError

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

Law = Literal["geometric", "logarithmic", "negative_binomial", "poisson"]
SHAPES: Mapping[Law, float | None] = {
    "geometric": 1.0,
    "logarithmic": 0.0,
    "negative_binomial": None,
    "poisson": math.inf,
}
"""η of the truncated negative binomial that each law is; None: it is given. Its limit for η = ∞ is Poisson's."""
LARGEST_MEAN = 1e6
LARGEST_SHAPE = 1e3


def selection_event(trial: DpEvent, law: Law, mean: float, shape: float | None = None) -> DpEvent:
    """What a user is exposed to by the best of a random number of trials.

    Args:
        trial: What a user is exposed to by one trial, its score included; the same bound for every trial.
        law: Of the number of trials.
        mean: Of that number, at least 1.
        shape: η > 0 of ``negative_binomial``; None for all others.

    Returns:
        An event for Rényi accountants; there is no privacy loss distribution of it.

    Raises:
        ArgumentError: The law does not exist, or not with these numbers.
    """
    from dp_accounting import dp_event

    if law not in SHAPES:
        raise ArgumentError(f'no law of the number of trials is called "{law}": {", ".join(SHAPES)}')
    if not 1 <= mean <= LARGEST_MEAN:
        raise ArgumentError(f"the mean number of trials must be from 1 to {LARGEST_MEAN:g}, found {mean}")
    known = SHAPES[law]
    if known is not None and shape is not None:
        raise ArgumentError(f"{law} has no shape; only negative_binomial does")
    if known is None and shape is None:
        raise ArgumentError(f"{law} needs a shape")
    if shape is not None and not 0 < shape <= LARGEST_SHAPE:
        raise ArgumentError(f"the shape must be above 0 and at most {LARGEST_SHAPE:g}, found {shape}")
    return dp_event.RepeatAndSelectDpEvent(trial, mean, shape if known is None else known)
