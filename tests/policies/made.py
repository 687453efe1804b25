"""Made users of known kinds, and a session over their features, for tests of segmentations that learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from harness.plugins import UserRecords

LETTERS = list("abcdefghij")
KINDS = (  # log of characters, log of a text's length, shares of capitals and of full stops
    (5.0, 3.5, 0.05, 0.03),
    (6.5, 4.5, 0.16, 0.05),
    (5.5, 4.0, 0.05, 0.13),
)
SPREADS = (0.35, 0.3, 0.02, 0.02)


def of_kinds(n: int, seed: int) -> tuple[list[UserRecords], np.ndarray]:
    """Users of three kinds, and which kind each is of."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(len(KINDS), size=n)
    return [_user(rng, KINDS[kind]) for kind in kinds], kinds


def _user(rng, kind) -> UserRecords:
    whole, each, capitals, stops = (m + s * rng.standard_normal() for m, s in zip(kind, SPREADS, strict=True))
    length = int(np.clip(np.exp(each), 8, 400))
    texts = []
    for _ in range(int(np.clip(np.exp(whole - each), 1, 30))):
        drawn, letters = rng.random(length), rng.choice(LETTERS, size=length)
        letters = np.where(drawn < capitals, np.char.upper(letters), letters)
        letters = np.where((drawn >= capitals) & (drawn < capitals + stops), ".", letters)
        texts.append("".join(np.where(drawn > 0.85, " ", letters)))
    return UserRecords(tuple(texts), tuple(len(text) // 4 + 1 for text in texts), 1)


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Adjusted Rand index: 1 for the same clusters under any names, about 0 for unrelated ones."""
    table = np.zeros((int(found.max()) + 1, int(truth.max()) + 1))
    np.add.at(table, (found, truth), 1)
    pairs = lambda counts: float(np.sum(counts * (counts - 1) / 2))  # noqa: E731
    both, one, other = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = one * other / pairs(np.array([len(truth)]))
    return (both - chance) / ((one + other) / 2 - chance)


def blobs(n: int, k: int, size: int, seed: int, apart: float, spread: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    """Points between -½ and ½ about k centres, at least `apart` spreads from each other; and which centre."""
    rng = np.random.default_rng(seed)
    while True:
        centres = rng.uniform(-0.35, 0.35, (k, size))
        if min(np.linalg.norm(a - b) for a, b in combinations(centres, 2)) > apart * spread:
            break
    kinds = rng.integers(k, size=n)
    return np.clip(centres[kinds] + spread * rng.standard_normal((n, size)), -0.5, 0.5), kinds
