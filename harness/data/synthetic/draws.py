"""Randomness of made populations: every draw is a pure function of (public seed, purpose, numbers).

Nothing here is secret, and nothing here may serve for privacy. Only what is guaranteed to stay the same across
versions and machines is used: BLAKE2 and Python's documented `Random.random`.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


class Stream:
    """A stream of draws."""

    def __init__(self, seed: int) -> None:
        self.fraction = random.Random(seed).random
        """The next number in [0, 1)."""

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.fraction() * n)

    def choice(self, items: Sequence[T]) -> T:
        """One of these."""
        return items[int(self.fraction() * len(items))]

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.fraction() < probability

    def digits(self, count: int) -> str:
        """So many random digits."""
        return "".join(str(self.below(10)) for _ in range(count))


class Draws:
    """All draws of one seed, each found by its purpose and numbers."""

    def __init__(self, seed: int) -> None:
        self._key = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=32, person=b"uudp synthetic").digest()

    def number(self, purpose: str, *numbers: int) -> int:
        """A whole number in [0, 2⁶⁴)."""
        name = f"{purpose}\0{','.join(map(str, numbers))}".encode()
        return int.from_bytes(hashlib.blake2b(name, key=self._key, digest_size=8).digest(), "big")

    def fraction(self, purpose: str, *numbers: int) -> float:
        """A number strictly between 0 and 1."""
        return ((self.number(purpose, *numbers) >> 12) + 0.5) / (1 << 52)

    def stream(self, purpose: str, *numbers: int) -> Stream:
        """A stream of its own."""
        return Stream(self.number(purpose, *numbers))


class Shuffle:
    """A fixed random order of range(n), either way in constant memory: a Feistel network walked back into the range.

    It picks exact numbers of users (`place(i) < k` for k of them) without a table of users.
    """

    _ROUNDS = 4

    def __init__(self, draws: Draws, purpose: str, n: int) -> None:
        self._draws, self._purpose, self._n = draws, purpose, n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1

    def at(self, place: int) -> int:
        """Who is at this place."""
        return self._walk(place, range(self._ROUNDS), forward=True)

    def place(self, item: int) -> int:
        """Where somebody is: the inverse of `at`."""
        return self._walk(item, range(self._ROUNDS - 1, -1, -1), forward=False)

    def _walk(self, value: int, rounds: range, *, forward: bool) -> int:
        while True:
            left, right = value >> self._half, value & self._mask
            for number in rounds:
                if forward:
                    left, right = right, left ^ (self._draws.number(self._purpose, number, right) & self._mask)
                else:
                    left, right = right ^ (self._draws.number(self._purpose, number, left) & self._mask), left
            value = left << self._half | right
            if value < self._n:
                return value


class Weighted:
    """Names with relative weights."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._names = tuple(weights)
        self._bounds = tuple(accumulate(weights.values()))

    def at(self, fraction: float) -> str:
        """The name at this fraction of the whole weight."""
        return self._names[min(bisect_right(self._bounds, fraction * self._bounds[-1]), len(self._names) - 1)]
