"""What a user's texts are made of, as keys of a private histogram: how many users share each one."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.plugins import PrivateSession, Query, SessionScore, Statistic, UserRecords

Unit = Literal["word", "character"]
COUNTS = "users per bucket"

_WORD = re.compile(r"\w+")


def grams(texts: Iterable[str], unit: Unit, size: int) -> set[str]:
    """All different runs of `size` words or characters; none goes on from one text into the next.

    Args:
        texts: Of one user. Private.
        unit: Words are letters, digits and ``_`` in a row, without capitals; of characters, blanks count once.
        size: At least 1.
    """
    found: set[str] = set()
    for text in texts:
        folded = text.casefold()
        if unit == "word":
            words = _WORD.findall(folded)
            found.update(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
        else:
            plain = " ".join(folded.split())
            found.update(plain[i : i + size] for i in range(len(plain) - size + 1))
    return found


def kept(keys: Iterable[str], most: int) -> list[str]:
    """At most so many of the keys: those with the smallest hashes, so that users who share keys keep the same ones.

    The hash is public, the same everywhere, and not that of the buckets.
    """
    return heapq.nsmallest(most, keys, key=_rank)


def _rank(key: str) -> tuple[bytes, str]:
    content = key.encode(errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=8, person=b"uudp kept").digest(), key


class Sketch(Statistic):
    """The kept runs of a user, each of which the user counts for once."""

    def __init__(self, unit: Unit, size: int, most: int) -> None:
        self.unit, self.size, self.most = unit, size, most

    def value(self, user: UserRecords) -> list[str]:
        """The keys, at most `most`."""
        return kept(grams(user.texts, self.unit, self.size), self.most)


class SketchScore(SessionScore):
    """Learns from one noisy histogram of how many users share each bucket of runs."""

    parameters: Any
    """With `noise_multiplier`, `buckets` and `most`."""

    @property
    def queries(self) -> tuple[Query, ...]:
        """One histogram of buckets."""
        p = self.parameters
        return (Query(COUNTS, "histogram", p.noise_multiplier, buckets=p.buckets, most=p.most),)

    def counts(self, session: PrivateSession, sketch: Sketch) -> npt.NDArray[np.float64]:
        """Noisy users per bucket, [buckets], less the median count, which is what chance collisions add."""
        found = np.array(session.ask(COUNTS, sketch).noisy)
        return found - max(0.0, float(np.median(found)))
