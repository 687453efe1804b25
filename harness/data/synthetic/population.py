"""A made population: every user's records are a pure function of the public parameters and the user's number.

Nothing is held: who lives with whom, who copies from whom and who has a secret are computed when asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

from harness.data.synthetic import identifiers, words
from harness.data.synthetic.draws import Draws, Shuffle, Weighted
from harness.data.synthetic.moments import Habits, habits_of, moments
from harness.data.synthetic.parameters import OutlierKind, SyntheticParameters, check
from harness.data.synthetic.scenarios import SCENARIOS
from harness.data.synthetic.scenarios.base import EXTRAS
from harness.data.synthetic.styles import ODD_SURFACES, SURFACES
from harness.data.synthetic.truth import UserTruth
from harness.data.synthetic.volume import Volume

VERSION = 1
"""Of the generator: to be raised whenever the same parameters give other texts."""

SECRET_DIGITS = 12
_TRIES = 16
_VOLUME_FACTOR = 20
_FIRST_TOPIC = 0.7  # of the records on a user's own two topics


class Planted(NamedTuple):
    """A planted secret: whose, what, and in which of their records (numbered from 0)."""

    user: str
    secret: str
    record: int


@dataclass(frozen=True)
class _Profile:
    """What is constant of a user."""

    outlier: OutlierKind | None
    records: int
    topics: tuple[str, ...]
    surface: str
    facts: Mapping[str, str]
    identifiers: Mapping[str, str]
    habits: Mapping[str, int]


class Population:
    """Users by number, from 0; see `SyntheticParameters` for what is what.

    Raises:
        PluginError: The parameters contradict each other.
    """

    def __init__(self, parameters: SyntheticParameters) -> None:
        check(parameters)
        self.parameters = parameters
        self.scenario = SCENARIOS[parameters.scenario]
        self._draws = Draws(parameters.seed)
        self._volume = Volume(parameters.records)
        self._columns = [(name, Weighted(values)) for name, values in parameters.demographics.items()]
        rates = [(kind, getattr(parameters.identifiers, kind)) for kind in identifiers.KINDS]
        self._rates = [("home", parameters.households.mentions), *rates]
        n, secrets = parameters.users, parameters.secrets.users
        self._n_secrets = secrets if isinstance(secrets, int) else round(secrets * n)
        self._n_outliers = round(parameters.outliers.fraction * n)
        self._n_households = round(parameters.households.fraction * n / parameters.households.size)
        self._n_households = min(self._n_households, n // parameters.households.size)
        self._secret_order = Shuffle(self._draws, "secrets", n)
        self._outlier_order = Shuffle(self._draws, "outliers", n)
        self._household_order = Shuffle(self._draws, "households", n)
        # Copies ask for others' profiles again and again; the cache is small and changes nothing but speed.
        self._profile: Callable[[int], _Profile] = lru_cache(maxsize=256)(self._make_profile)

    def __len__(self) -> int:
        return self.parameters.users

    def describe(self) -> bytes:
        """All that decides what anybody writes, for a fingerprint."""
        document = {"version": VERSION, "parameters": self.parameters.model_dump(mode="json")}
        scenario = asdict(self.scenario)
        scenario["habits"] = sorted(self.scenario.habits)
        return json.dumps([document, scenario], sort_keys=True).encode()

    # --- public -------------------------------------------------------------------------------------------------

    def user(self, i: int) -> str:
        """The id of a user."""
        return f"u{i:06d}"

    def attributes(self, i: int) -> dict[str, str]:
        """The public columns of a user."""
        return {name: values.at(self._draws.fraction(f"column {name}", i)) for name, values in self._columns}

    # --- texts --------------------------------------------------------------------------------------------------

    def texts(self, i: int) -> Iterator[str]:
        """All records of a user, in order."""
        code = self.secret(i)
        holders = self._secret_records(i) if code else ()
        for j in range(self._profile(i).records):
            origin = self.origin(i, j)
            text = self._text(*origin) if origin else None
            secret = f"{self.scenario.secret}{code}." if j in holders else ""
            if text is None:
                yield self._text(i, j, secret)
            else:
                yield f"{text} {secret}" if secret else text

    def times(self, i: int) -> list[int]:
        """When a user wrote each record, in their order: seconds since 1970."""
        return moments(self._draws, self.parameters.times, i, self._profile(i).records)

    def habits(self, i: int) -> Habits:
        """When a user writes at all."""
        return habits_of(self._draws, self.parameters.times, i)

    def volume(self, i: int) -> int:
        """How many records a user has."""
        return self._profile(i).records

    def origin(self, i: int, j: int) -> tuple[int, int] | None:
        """User and record that a record is copied from; None: it is the user's own.

        What is copied is always somebody's own text, and never their secret.
        """
        if not self._would_copy(i, j):
            return None
        draws = self._draws.stream("origin", i, j)
        for _ in range(_TRIES):
            other = (i + 1 + draws.below(len(self) - 1)) % len(self)
            record = draws.below(self._profile(other).records)
            if not self._would_copy(other, record):
                return other, record
        return None

    def _would_copy(self, i: int, j: int) -> bool:
        fraction = self.parameters.copies.fraction
        return fraction > 0 and self._draws.fraction("copy", i, j) < fraction

    def _text(self, i: int, j: int, secret: str = "") -> str:
        """What user i says of their own in record j."""
        profile = self._profile(i)
        draws = self._draws.stream("text", i, j)
        own = profile.outlier == "topic" or draws.chance(self.parameters.topics.focus)
        favourite = profile.topics[0] if draws.chance(_FIRST_TOPIC) else profile.topics[1]
        topic = favourite if own else draws.choice(tuple(self.scenario.topics))
        odd = profile.outlier == "style"
        strength = 1.0 if odd else self.parameters.styles.strength

        def choose(symbol: str, n: int) -> int:
            if symbol in self.scenario.habits and draws.chance(strength):
                return profile.habits[symbol] % n
            return draws.below(n)

        grammar = self.scenario.grammar(topic, odd=odd)
        body = SURFACES[profile.surface](grammar.expand("body", choose, profile.facts))
        extras: list[str] = []
        for kind in self._extras(i, j):
            if kind == "home":
                extras.append(grammar.expand("says_home", choose, profile.facts))
                continue
            given = {**profile.facts, "my_value": profile.identifiers[kind]}
            extras.append(grammar.expand(f"says_{kind}", choose, given))
        if secret:
            extras.append(secret)
        return body.replace(EXTRAS, "".join(f" {sentence}" for sentence in extras)).strip()

    def _extras(self, i: int, j: int) -> list[str]:
        """What else user i's own record j holds: "home", and kinds of identifiers."""
        draws = self._draws.stream("extras", i, j)
        return [kind for kind, rate in self._rates if draws.chance(rate)]

    # --- people -------------------------------------------------------------------------------------------------

    def _make_profile(self, i: int) -> _Profile:
        draws = self._draws.stream("profile", i)
        outlier = self.outlier(i)
        records = self._volume.at(self._draws.fraction("records", i))
        if outlier == "volume":
            records = min(records * _VOLUME_FACTOR, self._volume.max)
        topics = tuple(self.scenario.rare if outlier == "topic" else self.scenario.topics)
        first = draws.below(len(topics))
        second = (first + 1 + draws.below(len(topics) - 1)) % len(topics)
        surface = draws.choice(ODD_SURFACES if outlier == "style" else self.scenario.surfaces)
        if outlier != "style" and not draws.chance(self.parameters.styles.strength):
            surface = "plain"
        facts = {**self.home(i), "my_first": draws.choice(words.FIRST)}
        names = facts["my_first"], facts["my_last"]
        own = {kind: identifiers.make(kind, self._draws.stream(f"own {kind}", i), *names) for kind in identifiers.KINDS}
        habits = {symbol: self._draws.number(f"habit {symbol}", i) for symbol in self.scenario.habits}
        return _Profile(outlier, records, (topics[first], topics[second]), surface, facts, own, habits)

    def household(self, i: int) -> int | None:
        """The number of the household that a user shares with others; None: there is none."""
        if not self._n_households:
            return None
        number = self._household_order.place(i) // self.parameters.households.size
        return number if number < self._n_households else None

    def home(self, i: int) -> dict[str, str]:
        """Facts that all of a household share: address, landline, pet and last name."""
        shared = self.household(i)
        draws = self._draws.stream("home of one", i) if shared is None else self._draws.stream("home of many", shared)
        street = f"{draws.choice(words.STREETS)} {draws.choice(words.KINDS_OF_STREET)}"
        return {
            "my_last": draws.choice(words.LAST),
            "my_address": f"{1 + draws.below(199)} {street}, {draws.choice(words.CITIES)}",
            "my_landline": identifiers.phone(draws),
            "my_pet": f"{draws.choice(words.PETS)} {draws.choice(words.PET_NAMES)}",
        }

    def outlier(self, i: int) -> OutlierKind | None:
        """What is unusual about a user; None: nothing."""
        if not self._n_outliers or self._outlier_order.place(i) >= self._n_outliers:
            return None
        kinds = self.parameters.outliers.kinds
        return kinds[self._draws.number("kind of outlier", i) % len(kinds)]

    # --- what an audit knows ------------------------------------------------------------------------------------

    def secret(self, i: int) -> str | None:
        """The planted secret of a user; None: they have none."""
        if not self._n_secrets or self._secret_order.place(i) >= self._n_secrets:
            return None
        return self._secret(i)

    def planted(self) -> Iterator[Planted]:
        """Every planted secret, once per record that holds it, in a fixed order."""
        for place in range(self._n_secrets):
            i = self._secret_order.at(place)
            for record in self._secret_records(i):
                yield Planted(self.user(i), self._secret(i), record)

    def truth(self, i: int) -> UserTruth:
        """What is true of a user."""
        profile = self._profile(i)
        found: dict[str, int] = {}
        copied: list[tuple[int, str, int]] = []
        for j in range(profile.records):
            origin = self.origin(i, j)
            if origin:
                copied.append((j, self.user(origin[0]), origin[1]))
                continue
            for kind in self._extras(i, j):
                if kind != "home":
                    found[kind] = found.get(kind, 0) + 1
        return UserTruth(
            user=self.user(i),
            records=profile.records,
            topics=profile.topics,
            secrets=self._secret_records(i) if self.secret(i) else (),
            identifiers=found,
            household=self.household(i),
            copied=tuple(copied),
            outlier=profile.outlier,
        )

    def _secret(self, i: int) -> str:
        digits = self._draws.stream("secret", i).digits(SECRET_DIGITS)
        return "-".join(digits[k : k + 4] for k in range(0, SECRET_DIGITS, 4))

    def _secret_records(self, i: int) -> tuple[int, ...]:
        """Numbers of the records of user i that hold the secret they have."""
        records = self._profile(i).records
        first = self._draws.number("secret's record", i) % records
        return tuple(sorted((first + k) % records for k in range(min(self.parameters.secrets.repeats, records))))


def planted(parameters: SyntheticParameters) -> Iterator[Planted]:
    """Every secret that a population holds: its user, the secret itself, and the number of the record.

    Raises:
        PluginError: The parameters contradict each other.
    """
    return Population(parameters).planted()
