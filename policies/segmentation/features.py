"""Features of one user's own records: a fixed public list, each between public bounds.

A feature is a function of that user's records and of public constants alone: nothing is fitted. What learns from many
users' features asks a private session, and its contributions are bounded by `reach`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import PluginParameters, UserRecords

Floats = npt.NDArray[np.float64]
Scalar = Literal[
    "records", "tokens", "mean_length", "median_length", "digits", "capitals", "punctuation", "distinct_words"
]
Feature = Literal[
    "records",
    "tokens",
    "mean_length",
    "median_length",
    "digits",
    "capitals",
    "punctuation",
    "distinct_words",
    "hours",
    "words",
    "ngrams",
    "embedding",
]
Bound = Annotated[FiniteFloat, Field(ge=0, le=1e9)]

_HOURS = 4
"""Parts of the day: from 0, 6, 12 and 18 o'clock (UTC)."""
_HOURS_REACH = math.sqrt(0.75)
"""The l2 norm of four shares, less a quarter each, where all lies in one."""
_NGRAM = 4
_AT_A_TIME = 10_000
_LARGEST = 1e9
"""Of an embedding's numbers; a model's are below 100."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class _Measure:
    """A feature that is one number.

    Attributes:
        low: Usual public bounds; the spec's `bounds` take their place.
        high: The upper one.
        logarithmic: Whether every doubling counts alike.
        of: The number, of one user's records.
    """

    low: float
    high: float
    logarithmic: bool
    of: Callable[[UserRecords], float]


class FeatureParameters(PluginParameters):
    """What is measured of a user. All constants are public."""

    features: Feature | Annotated[tuple[Feature, ...], Field(min_length=1)] = Field(
        default=("tokens", "median_length", "capitals", "punctuation", "distinct_words"),
        description="what is measured of each user's own records: numbers of records and tokens, lengths, shares of "
        "characters, hours of the day (needs data.time), or words, n-grams, or the base model's embedding, projected",
    )
    bounds: dict[Scalar, tuple[Bound, Bound]] = Field(
        default={}, description="public bounds of a number, as in tokens: [10, 5000]; left out: usual ones"
    )
    dimension: int = Field(
        default=8, ge=1, le=64, description="numbers that words, n-grams or an embedding are each projected to"
    )

    @model_validator(mode="after")
    def _fits(self) -> FeatureParameters:
        names = names_of(self)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'features: "{twice[0]}" is given twice')
        for name, (low, high) in self.bounds.items():
            if name not in names:
                raise ValueError(f'bounds: "{name}" is not among the features')
            if high <= low:
                raise ValueError(f'bounds: "{name}" needs its lower bound first')
            if MEASURES[name].logarithmic and low <= 0:
                raise ValueError(f'bounds: "{name}" needs bounds above 0')
        return self


def names_of(parameters: FeatureParameters) -> tuple[Feature, ...]:
    """The features, in their order."""
    found = parameters.features
    return (found,) if isinstance(found, str) else found


def only_features(parameters: FeatureParameters) -> FeatureParameters:
    """Of a plugin's parameters those of its features, for what travels to every user."""
    return FeatureParameters.model_validate(
        {name: getattr(parameters, name) for name in FeatureParameters.model_fields}
    )


def uses_times(parameters: FeatureParameters) -> bool:
    """Whether `UserRecords.times` is looked at."""
    return "hours" in names_of(parameters)


def uses_model(parameters: FeatureParameters) -> bool:
    """Whether `UserRecords.model` is looked at."""
    return "embedding" in names_of(parameters)


def size_of(parameters: FeatureParameters) -> int:
    """How many numbers `vector` has."""
    return sum(_width(name, parameters) for name in names_of(parameters))


def reach(parameters: FeatureParameters) -> float:
    """The largest l2 norm of any user's `vector`: every feature adds ¼ to its square at most."""
    return math.sqrt(len(names_of(parameters))) / 2


def vector(user: UserRecords, parameters: FeatureParameters) -> Floats:
    """The features of one user. Private.

    Args:
        user: Their records, any; what is missing (no text, no time, no model) gives a fixed value.
        parameters: Which features, and their public bounds.

    Returns:
        [size_of] finite numbers from -½ to ½. A number between bounds is their distance from the middle; the numbers of
        hours, words, n-grams or an embedding have together an l2 norm of at most ½.
    """
    parts: list[Floats] = []
    for name in names_of(parameters):
        if name in MEASURES:
            parts.append(np.array([_between(name, user, parameters)]))
        else:
            width = _width(name, parameters)
            parts.append(_short(_BLOCKS[name](user, width), width) / 2)
    return np.concatenate(parts)


def _width(name: Feature, parameters: FeatureParameters) -> int:
    if name in MEASURES:
        return 1
    return _HOURS if name == "hours" else parameters.dimension


def _between(name: str, user: UserRecords, parameters: FeatureParameters) -> float:
    """Where a number lies between its bounds: from -½ to ½."""
    measure = MEASURES[name]
    given = {str(key): bounds for key, bounds in parameters.bounds.items()}
    low, high = given.get(name, (measure.low, measure.high))
    value = measure.of(user)
    if not value > low:  # a number that is none as well
        return -0.5
    if value >= high:
        return 0.5
    if measure.logarithmic:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) - 0.5
    return (value - low) / (high - low) - 0.5


def _short(numbers: Floats, width: int) -> Floats:
    """The numbers, cut to an l2 norm of 1; zeros where one is not finite."""
    if numbers.shape != (width,) or not np.isfinite(numbers).all():
        return np.zeros(width)
    largest = float(np.max(np.abs(numbers)))
    if largest == 0.0:
        return numbers
    direction = numbers / largest  # first, so that no square overflows
    length = float(np.sqrt(np.sum(direction**2)))
    return direction * largest if largest * length <= 1.0 else direction / length


# --- numbers ------------------------------------------------------------------------------------------------


def _lengths(user: UserRecords) -> list[int]:
    return [len(text) for text in user.texts] or [0]


def _share(user: UserRecords, counts: Callable[[str], bool], among: Callable[[str], bool]) -> float:
    """The share of the user's characters that count, among some."""
    characters: Counter[str] = Counter()
    for text in user.texts:
        characters.update(text)
    whole = sum(n for character, n in characters.items() if among(character))
    counted = sum(n for character, n in characters.items() if among(character) and counts(character))
    return counted / whole if whole else 0.0


def _written(character: str) -> bool:
    return not character.isspace()


def _is_punctuation(character: str) -> bool:
    return not (character.isalnum() or character.isspace())


def _words(user: UserRecords) -> Counter[str]:
    found: Counter[str] = Counter()
    for text in user.texts:
        found.update(_WORD.findall(text.casefold()))
    return found


def _distinct(user: UserRecords) -> float:
    found = _words(user)
    whole = sum(found.values())
    return len(found) / whole if whole else 0.0


MEASURES: Mapping[str, _Measure] = {
    "records": _Measure(1, 1000, True, lambda user: len(user.texts)),
    "tokens": _Measure(10, 100_000, True, lambda user: sum(user.token_counts)),
    "mean_length": _Measure(5, 5000, True, lambda user: statistics.fmean(_lengths(user))),
    "median_length": _Measure(5, 5000, True, lambda user: statistics.median(_lengths(user))),
    "digits": _Measure(0, 0.2, False, lambda user: _share(user, str.isdigit, _written)),
    "capitals": _Measure(0, 0.5, False, lambda user: _share(user, str.isupper, str.isalpha)),
    "punctuation": _Measure(0, 0.25, False, lambda user: _share(user, _is_punctuation, _written)),
    "distinct_words": _Measure(0, 1, False, _distinct),
}
assert set(MEASURES) == set(get_args(Scalar))


# --- several numbers each -----------------------------------------------------------------------------------


def _hours(user: UserRecords, width: int) -> Floats:
    """The share of the user's texts in each part of the day, less a quarter."""
    counts = [0] * width
    for time in user.times:
        if time is not None and math.isfinite(time):
            counts[int(time % 86400 // (86400 / width)) % width] += 1
    whole = sum(counts)
    if not whole:
        return np.zeros(width)
    return (np.array(counts) / whole - 1 / width) / _HOURS_REACH


def _bag(user: UserRecords, width: int) -> Floats:
    return _projected(_words(user), b"words", width)


def _ngrams(user: UserRecords, width: int) -> Floats:
    found: Counter[str] = Counter()
    for text in user.texts:
        folded = text.casefold()
        found.update(folded[i : i + _NGRAM] for i in range(len(folded) - _NGRAM + 1))
    return _projected(found, b"n-grams", width)


def _embedding(user: UserRecords, width: int) -> Floats:
    if user.model is None or not user.model.embedding:
        return np.zeros(width)
    numbers = np.array(user.model.embedding, dtype=np.float64)
    largest = float(np.max(np.abs(numbers)))
    if not math.isfinite(largest):
        return np.zeros(width)
    numbers *= min(1.0, _LARGEST / max(largest, 1.0))  # only its direction counts out there, and no sum overflows
    return numbers @ _embedding_signs(len(numbers), width) / math.sqrt(width)


def _projected(counts: Counter[str], what: bytes, width: int) -> Floats:
    """The direction of damped counts, projected by public signs: a fixed projection without any vocabulary."""
    if not counts:
        return np.zeros(width)
    numbers = np.log1p(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))
    length = float(np.sqrt(np.sum(numbers**2)))
    found, keys = np.zeros(width), iter(counts)
    for first in range(0, len(counts), _AT_A_TIME):  # one user may have millions of different ones
        part = numbers[first : first + _AT_A_TIME] / length
        found += part @ _signs(itertools.islice(keys, _AT_A_TIME), what, width)
    return found / math.sqrt(width)


@functools.lru_cache(maxsize=4)
def _embedding_signs(length: int, width: int) -> Floats:
    return _signs((str(i) for i in range(length)), b"embedding", width)


def _signs(keys: Iterable[str], what: bytes, width: int) -> Floats:
    """[keys, width] of -1 and 1, by a public hash of each key: the same in every process and version."""
    size = -(-width // 8)
    content = b"".join(
        hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=size, person=what).digest() for key in keys
    )
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8)).reshape(-1, 8 * size)[:, :width]
    return bits.astype(np.float64) * 2.0 - 1.0


_BLOCKS: Mapping[str, Callable[[UserRecords, int], Floats]] = {
    "hours": _hours,
    "words": _bag,
    "ngrams": _ngrams,
    "embedding": _embedding,
}
