"""What can be asked about many users at once, and what comes back. All of it is public."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args

from harness.registry import PluginError

Kind = Literal["count", "sum", "mean", "histogram", "quantile", "top_k"]

MOST_NUMBERS = 100_000
"""Of one answer."""
_KEYED = ("histogram", "top_k")


@dataclass(frozen=True)
class Query:
    """One question of a private session, declared before it opens. Public: it never depends on the data.

    Each user's contribution is clipped to the bounds given here, so that adding, removing or emptying one user moves
    the exact answer by at most its l2 sensitivity; one Gaussian of `noise_multiplier` times that is added.

    Attributes:
        name: What the session knows it by.
        kind: ``count`` of users; ``sum`` or ``mean`` of a number or a vector; ``histogram`` of keys; ``quantile`` of a
            number; the ``top_k`` keys.
        noise_multiplier: Standard deviation of the noise over the l2 sensitivity; what the query costs.
        low: Smallest number that a user contributes to a sum or mean of numbers.
        high: Largest one.
        dimension: Of the vectors that are summed or averaged.
        norm: Largest l2 norm of a user's vector; takes the place of `low` and `high`.
        domain: The public keys of a histogram or top-k; other keys count for nothing.
        buckets: In place of a domain: keys are hashed into so many buckets, by a hash that is public.
        most: Different keys that one user counts for; the first ones, if there are more.
        quantile: Between 0 and 1: 0.5 is the median.
        edges: Rising public numbers; a quantile is found between two of them.
        top: Number of keys that a top-k names.
    """

    name: str
    kind: Kind
    noise_multiplier: float
    low: float | None = None
    high: float | None = None
    dimension: int = 1
    norm: float | None = None
    domain: tuple[str, ...] = ()
    buckets: int | None = None
    most: int = 1
    quantile: float | None = None
    edges: tuple[float, ...] = ()
    top: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 200:
            raise PluginError("a query needs a name of at most 200 characters")
        if self.kind not in get_args(Kind):
            raise self._error(f'there is no kind "{self.kind}" (there are: {", ".join(get_args(Kind))})')
        if not (_number(self.noise_multiplier) and self.noise_multiplier > 0):
            raise self._error("noise_multiplier must be a number above 0")
        self._check_unused()
        if self.kind in ("sum", "mean"):
            self._check_bounds()
        elif self.kind in _KEYED:
            self._check_keys()
        elif self.kind == "quantile":
            self._check_quantile()

    def document(self) -> dict[str, Any]:
        """All of it, for JSON; the same for the same query."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _error(self, problem: str) -> PluginError:
        return PluginError(f'the query "{self.name}": {problem}')

    def _check_unused(self) -> None:
        """A bound that does nothing is a mistake."""
        used = {
            "sum": {"low", "high", "dimension", "norm"},
            "mean": {"low", "high", "dimension", "norm"},
            "histogram": {"domain", "buckets", "most"},
            "top_k": {"domain", "most", "top"},
            "quantile": {"quantile", "edges"},
        }.get(self.kind, set())
        for field in fields(self)[3:]:
            if field.name not in used and getattr(self, field.name) != field.default:
                raise self._error(f"a {self.kind} has no {field.name}")

    def _check_bounds(self) -> None:
        if not _whole(self.dimension, MOST_NUMBERS):
            raise self._error(f"dimension must be a whole number from 1 to {MOST_NUMBERS}")
        if self.norm is not None:
            if not (_number(self.norm) and self.norm > 0):
                raise self._error("norm must be a number above 0")
            if self.low is not None or self.high is not None:
                raise self._error("give either low and high, or norm")
        elif self.dimension != 1:
            raise self._error("a vector needs a norm")
        elif not (_number(self.low) and _number(self.high) and self.low < self.high):  # type: ignore[operator]
            raise self._error("low and high must be numbers, low below high")

    def _check_keys(self) -> None:
        names = self.domain
        if self.buckets is not None:
            if names or not _whole(self.buckets, MOST_NUMBERS):
                raise self._error(f"give a domain, or from 1 to {MOST_NUMBERS} buckets")
        elif not isinstance(names, tuple) or not names or len(names) > MOST_NUMBERS:
            raise self._error(f"needs a domain of 1 to {MOST_NUMBERS} keys")
        elif not all(isinstance(key, str) for key in names) or len(set(names)) != len(names):
            raise self._error("the keys of a domain are different texts")
        size = self.buckets or len(names)
        if not _whole(self.most, size):
            raise self._error(f"most must be a whole number from 1 to {size}")
        if self.kind == "top_k" and not _whole(self.top, size):
            raise self._error(f"top must be a whole number from 1 to {size}")

    def _check_quantile(self) -> None:
        if not (_number(self.quantile) and 0 < self.quantile < 1):  # type: ignore[operator]
            raise self._error("quantile must be a number between 0 and 1")
        edges = self.edges
        if not isinstance(edges, tuple) or not 2 <= len(edges) < MOST_NUMBERS or not all(_number(e) for e in edges):
            raise self._error(f"needs from 2 to {MOST_NUMBERS - 1} edges")
        if any(a >= b for a, b in pairwise(edges)):
            raise self._error("edges must rise")


@dataclass(frozen=True)
class Answer:
    """A noisy answer. It is paid for, and may be used at will.

    Attributes:
        query: Name of the query.
        value: A count, sum, mean or quantile; the vector of a sum or mean; a histogram in the order of its domain or
            buckets; the keys of a top-k, the commonest first. Counts may be negative: nothing is cut off.
        std: Standard deviation of the noise, in the unit of `value`. Of a quantile or top-k: in users, on each count
            that it was found from. Of a mean it is an estimate.
        noisy: The noisy numbers that `value` was made of.
    """

    query: str
    value: float | tuple[float, ...] | tuple[str, ...]
    std: float
    noisy: tuple[float, ...]


@dataclass(frozen=True)
class Described:
    """An object of a plugin, as data: nothing of it is run until a room rebuilds it. Public.

    Attributes:
        path: ``module:Class``.
        attributes: Its attributes as canonical JSON.
        version: Of the distribution that holds the class; other code may answer otherwise.
    """

    path: str
    attributes: str
    version: str


def bucket_of(key: str, buckets: int) -> int:
    """The bucket that a histogram counts a key in: a public hash, the same everywhere."""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "big") % buckets


def _number(value: object) -> bool:
    """Whether it is a number with which sums stay finite, and steps above zero."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return value == 0 or 1e-30 <= abs(value) <= 1e30


def _whole(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
