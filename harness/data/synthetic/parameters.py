"""What a spec can say of a made population. All of it is public."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from harness.plugins import PluginError, PluginParameters

Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
OutlierKind = Literal["style", "topic", "volume"]

MAX_RECORDS = 100_000
PRIVATE_COLUMNS = ("user", "text", "time")

_BY_LAW = {"lognormal": ("median", "mean", "sigma"), "zipf": ("exponent",), "fixed": ("count",)}


class RecordsParameters(PluginParameters):
    """How many records a user has."""

    law: Literal["lognormal", "zipf", "fixed"] = Field(
        default="lognormal", description="lognormal and zipf are heavy-tailed; fixed: everybody has `count`"
    )
    median: Positive | None = Field(default=None, description="of lognormal; 6 where the mean isn't given either")
    mean: Positive | None = Field(default=None, description="of lognormal, before rounding and `max`; or the median")
    sigma: Annotated[FiniteFloat, Field(ge=0, le=5)] | None = Field(
        default=None, description="of lognormal: std of the logarithm, 1 if left out; larger means heavier tails"
    )
    exponent: Annotated[FiniteFloat, Field(gt=1, le=20)] | None = Field(
        default=None, description="of zipf: P[n records] ∝ n^-exponent, 2 if left out; smaller means heavier tails"
    )
    count: Annotated[int, Field(ge=1, le=MAX_RECORDS, strict=True)] | None = Field(
        default=None, description="of fixed: records of every user; 8 if left out"
    )
    max: Annotated[int, Field(ge=1, le=MAX_RECORDS, strict=True)] = Field(
        default=500, description="no user has more records; outliers neither"
    )


class TopicsParameters(PluginParameters):
    """What users write about."""

    focus: Rate = Field(
        default=0.8, description="fraction of a user's records on their own two topics; the rest are on any topic"
    )


class StylesParameters(PluginParameters):
    """How users write."""

    strength: Rate = Field(
        default=0.8, description="how often a user's own habits decide a phrase; 0: nobody can be told by their style"
    )


class IdentifiersParameters(PluginParameters):
    """Personal identifiers: fraction of records that hold the user's own one. All lie in reserved or test ranges."""

    email: Rate = Field(default=0.04, description="at example.com, example.net or example.org")
    phone: Rate = Field(default=0.03, description="in the ranges kept for fiction")
    card: Rate = Field(default=0.01, description="with a valid Luhn digit, after prefixes of published test cards")
    iban: Rate = Field(default=0.01, description="with valid check digits, at a bank code that no bank can have")
    ip: Rate = Field(default=0.01, description="in the networks kept for documentation")
    birth_date: Rate = Field(default=0.01, description="date of birth")


class SecretsParameters(PluginParameters):
    """Planted secrets: random codes that an audit knows and looks for."""

    users: Annotated[int, Field(ge=0, strict=True)] | Annotated[FiniteFloat, Field(ge=0, lt=1)] = Field(
        default=0, description="who has one: a fraction of the users (below 1), or their whole number"
    )
    repeats: Annotated[int, Field(ge=1, strict=True)] = Field(
        default=1, description="records of the user that hold the secret; fewer where the user has fewer"
    )


class HouseholdsParameters(PluginParameters):
    """Users who share facts: surname, address, landline, pet."""

    fraction: Rate = Field(default=0.0, description="fraction of users who live together with others")
    size: Annotated[int, Field(ge=2, le=1000, strict=True)] = Field(default=3, description="users of a household")
    mentions: Rate = Field(default=0.15, description="fraction of records that tell a fact of the user's home")


class CopiesParameters(PluginParameters):
    """Text copied from others."""

    fraction: Annotated[FiniteFloat, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="fraction of records that repeat another user's record word for word"
    )


class OutliersParameters(PluginParameters):
    """Users unlike the others."""

    fraction: Rate = Field(default=0.0, description="fraction of users")
    kinds: tuple[OutlierKind, ...] = Field(
        default=("style", "topic", "volume"),
        min_length=1,
        description="what is unusual, one of these per user: how they write, what about, or twenty times as much",
    )


class TimesParameters(PluginParameters):
    """When users write, where the spec names ``data.time: time``. All in UTC."""

    until: date = Field(
        default=date(2026, 1, 31), ge=date(1970, 1, 1), description="the last day on which anybody writes"
    )
    days: Annotated[int, Field(ge=1, le=36_500, strict=True)] = Field(
        default=365, description="everything is written within so many days"
    )
    session: Annotated[FiniteFloat, Field(ge=1, le=1000)] = Field(
        default=3.0, description="mean records of one sitting, a few minutes apart"
    )
    night: Rate = Field(default=0.2, description="fraction of users who write between 22 and 6 o'clock")
    lapsed: Rate = Field(default=0.2, description="fraction of users who wrote nothing in the second half of the days")


class SyntheticParameters(PluginParameters):
    """A made population."""

    scenario: Literal["support", "chat", "health-notes", "code-review"] = Field(
        description="what the texts are: tickets, short messages, a health diary, or comments on code"
    )
    users: Annotated[int, Field(ge=1, le=100_000_000, strict=True)] = Field(description="number of users")
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = Field(
        default=0, description="public: the same seed and parameters give the same population"
    )
    records: RecordsParameters = Field(default=RecordsParameters(), description="how many records a user has")
    demographics: dict[str, dict[str, Positive]] = Field(
        default={
            "plan": {"free": 0.7, "team": 0.2, "enterprise": 0.1},
            "region": {"north": 0.3, "south": 0.3, "east": 0.2, "west": 0.2},
            "age_band": {"18-29": 0.25, "30-44": 0.35, "45-64": 0.28, "65+": 0.12},
        },
        description="public columns, independent of each other: their values with relative weights",
    )
    topics: TopicsParameters = Field(default=TopicsParameters(), description="what users write about")
    styles: StylesParameters = Field(default=StylesParameters(), description="how users write")
    identifiers: IdentifiersParameters = Field(
        default=IdentifiersParameters(), description="personal identifiers, by fraction of records"
    )
    secrets: SecretsParameters = Field(default=SecretsParameters(), description="planted secrets, known to an audit")
    households: HouseholdsParameters = Field(default=HouseholdsParameters(), description="users who share facts")
    copies: CopiesParameters = Field(default=CopiesParameters(), description="text copied from other users")
    outliers: OutliersParameters = Field(default=OutliersParameters(), description="users unlike the others")
    times: TimesParameters = Field(default=TimesParameters(), description="when users write")


def check(parameters: SyntheticParameters) -> None:
    """What no single parameter can know.

    Raises:
        PluginError: At the parameter at fault.
    """
    _check_records(parameters.records)
    for name, values in parameters.demographics.items():
        if not name.strip():
            raise PluginError("a column needs a name", ("demographics", name))
        if name in PRIVATE_COLUMNS:
            raise PluginError(f'the column "{name}" can\'t be a public one', ("demographics", name))
        if not values:
            raise PluginError("at least one value with its weight must be given", ("demographics", name))
    wanted = parameters.secrets.users
    if isinstance(wanted, int) and wanted > parameters.users:
        raise PluginError(f"{wanted} are more than the {parameters.users} users", ("secrets", "users"))
    if parameters.copies.fraction and parameters.users < 2:
        raise PluginError("one user alone has nobody to copy from", ("copies", "fraction"))
    size = parameters.households.size
    if parameters.households.fraction and size > parameters.users:
        raise PluginError(f"{size} are more than the {parameters.users} users", ("households", "size"))


def _check_records(records: RecordsParameters) -> None:
    for law, names in _BY_LAW.items():
        for name in names:
            if law != records.law and getattr(records, name) is not None:
                has = ", ".join(_BY_LAW[records.law])
                raise PluginError(f"is no parameter of {records.law}, which has {has}", ("records", name))
    if records.median is not None and records.mean is not None:
        raise PluginError("give either median or mean, not both", ("records", "mean"))
    for name in ("median", "mean", "count"):
        value = getattr(records, name)
        if value is not None and value > records.max:
            raise PluginError(f"{value:g} is above records.max ({records.max})", ("records", name))
