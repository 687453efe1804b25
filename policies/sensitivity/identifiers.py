"""Sensitivity by the personal identifiers that a user wrote."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from harness.plugins import OwnRecordsScore, Page, PluginParameters, UserRecords
from policies.sensitivity.recognisers import recognise

Weight = Annotated[FiniteFloat, Field(ge=0, le=1000)]


class WeightsParameters(PluginParameters):
    """What one distinct identifier of each kind counts; 0 leaves the kind out. Public constants."""

    email: Weight = Field(default=1.0, description="e-mail addresses")
    phone: Weight = Field(default=1.0, description="phone numbers: with a calling code, or in the form of a locale")
    card: Weight = Field(default=3.0, description="payment cards: a known network and a valid Luhn digit")
    iban: Weight = Field(default=3.0, description="bank accounts: the country's length and valid check digits")
    ip: Weight = Field(default=0.5, description="IPv4 and IPv6 addresses, but for private and local ones")
    key: Weight = Field(default=3.0, description="keys and tokens of known issuers, private keys, passwords")
    national_id: Weight = Field(default=3.0, description="national ids of the locales, by checksum or by range")
    birth_date: Weight = Field(default=1.0, description="dates that the text says somebody was born on")


class IdentifiersParameters(PluginParameters):
    """Parameters of `identifiers`."""

    weights: WeightsParameters = Field(default=WeightsParameters(), description="what one identifier counts, by kind")
    locales: tuple[Literal["us", "gb", "de", "fr", "es", "it", "nl"], ...] = Field(
        default=("us", "gb", "de", "fr", "es", "it", "nl"),
        min_length=1,
        description="countries whose phone numbers, national ids and dates are read; the first one's reading counts",
    )
    low: FiniteFloat = Field(
        default=0.5, gt=0, le=10**9, description="a public constant: a user with so much weight, or less, scores 0"
    )
    high: FiniteFloat = Field(
        default=20.0, gt=0, le=10**9, description="a public constant: a user with so much weight, or more, scores 1"
    )

    @field_validator("locales")
    @classmethod
    def _once(cls, locales: tuple[str, ...]) -> tuple[str, ...]:
        for name in locales:
            if locales.count(name) > 1:
                raise ValueError(f'"{name}" is given more than once')
        return locales

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: WeightsParameters) -> WeightsParameters:
        if not any(weights.model_dump().values()):
            raise ValueError("at least one kind must count")
        return weights

    @model_validator(mode="after")
    def _rises(self) -> IdentifiersParameters:
        if self.high <= self.low:
            raise ValueError(f"high: must be above low ({self.low:g})")
        return self


class Identifiers(OwnRecordsScore):
    """The personal identifiers that a user wrote, on a logarithmic scale from 0 (at most `low`) to 1 (at least `high`).

    Each distinct identifier in the user's records counts once, however often it is written, with the weight of its
    kind: e-mail, phone, card, IBAN, IP, key or token, national id, date of birth. Every doubling of the sum adds the
    same. Whose identifiers they are is not told apart. Recognisers are forms, checksums and words; they miss some, and
    take a few other numbers for one. All constants are the spec's, so that one user's score never depends on anybody
    else. Costs no privacy; the score and the tier that follows from it are private.
    """

    Parameters = IdentifiersParameters
    parameters: IdentifiersParameters
    page = Page(
        formula="score = log(Σ weight of each distinct identifier / low) / log(high / low), cut to [0, 1]",
        sees="The user's own texts.",
        when="Texts hold contact data, numbers of accounts and cards, keys or ids, of the user or of others.",
        costs=(
            "No privacy. The score, and the tier that follows from it, are private; weights of the groups must be "
            "given or noisy."
        ),
        ends="0: the identifiers found weigh at most `low`, as none do. 1: at least `high`, such as seven cards.",
        example="{type: identifiers, locales: [us, gb], low: 0.5, high: 20}",
    )

    def score(self, user: UserRecords) -> float:
        """log(sum of weights / low) / log(high / low), cut to [0, 1]."""
        distinct = {(one.kind, one.value) for text in user.texts for one in recognise(text, self.parameters.locales)}
        weights: dict[str, float] = self.parameters.weights.model_dump()
        # An exact sum: a set's order differs between processes.
        weight = math.fsum(weights[kind] for kind, _ in distinct)
        low, high = self.parameters.low, self.parameters.high
        if weight <= low:
            return 0.0
        return min(1.0, math.log(weight / low) / math.log(high / low))
