"""Sensitivity by how much a user wrote."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from harness.plugins import OwnRecordsScore, Page, PluginParameters, UserRecords


class VolumeParameters(PluginParameters):
    """Parameters of `volume`."""

    measure: Literal["tokens", "records", "examples"] = Field(
        default="tokens", description="what is counted of the user's own: tokens, records or packed examples"
    )
    low: int = Field(
        default=100, ge=1, le=10**12, description="a public constant: a user with so much, or less, scores 0"
    )
    high: int = Field(
        default=100_000, ge=2, le=10**12, description="a public constant: a user with so much, or more, scores 1"
    )

    @model_validator(mode="after")
    def _rises(self) -> VolumeParameters:
        if self.high <= self.low:
            raise ValueError(f"high: must be above low ({self.low})")
        return self


class Volume(OwnRecordsScore):
    """How much a user wrote, on a logarithmic scale from 0 (at most `low`) to 1 (at least `high`).

    Who wrote more has more to lose: more of them can be memorised, and more attempts to recognise them succeed.
    Every doubling adds the same. Both ends are constants of the spec, so that one user's score never depends on
    anybody else. Costs no privacy; the score and the tier that follows from it are private.
    """

    Parameters = VolumeParameters
    parameters: VolumeParameters
    page = Page(
        formula="score = log(count / low) / log(high / low), cut to [0, 1]",
        sees="How many tokens, records or examples the user has; no text.",
        when="How much somebody wrote is what you know of their risk.",
        costs=(
            "No privacy. The score, and the tier that follows from it, are private; weights of the groups must be "
            "given or noisy."
        ),
        ends="0: the user wrote at most `low`. 1: at least `high`. In the middle lies the geometric mean of both.",
        example="{type: volume, measure: tokens, low: 50, high: 20000}",
    )

    def score(self, user: UserRecords) -> float:
        """log(count / low) / log(high / low), cut to [0, 1]."""
        count = {
            "tokens": sum(user.token_counts),
            "records": len(user.texts),
            "examples": user.examples,
        }[self.parameters.measure]
        low, high = self.parameters.low, self.parameters.high
        if count <= low:
            return 0.0
        return min(1.0, math.log(count / low) / math.log(high / low))
