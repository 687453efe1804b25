"""How many records a user has: the inverse distribution functions of the laws."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from statistics import NormalDist

from harness.data.synthetic.parameters import RecordsParameters


class Volume:
    """A law of the number of records, between 1 and `max`."""

    def __init__(self, parameters: RecordsParameters) -> None:
        self._law = parameters.law
        self.max = parameters.max
        self._count = parameters.count or 8
        self._sigma = 1.0 if parameters.sigma is None else parameters.sigma
        self._median = parameters.median or 6.0
        if parameters.mean is not None:
            self._median = parameters.mean * math.exp(-(self._sigma**2) / 2)
        self._bounds: tuple[float, ...] = ()
        if self._law == "zipf":
            exponent = parameters.exponent or 2.0
            self._bounds = tuple(accumulate(n**-exponent for n in range(1, self.max + 1)))

    def at(self, fraction: float) -> int:
        """The number of records at this quantile, strictly between 0 and 1."""
        if self._law == "fixed":
            found = self._count
        elif self._law == "zipf":
            found = 1 + bisect_left(self._bounds, fraction * self._bounds[-1])
        else:
            found = round(self._median * math.exp(self._sigma * NormalDist().inv_cdf(fraction)))
        return min(max(found, 1), self.max)
