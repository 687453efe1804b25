"""Sensitivity by how much of a user's text other users have as well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import (
    OwnRecordsScore,
    PluginParameters,
    PrivateSession,
    Query,
    SessionScore,
    UserRecords,
    bucket_of,
)
from policies.sensitivity.sketches import Sketch

COUNTS = "users per bucket"


class OverlapParameters(PluginParameters):
    """Parameters of `overlap`."""

    size: int = Field(default=8, ge=1, le=100, description="words in a row that make a shingle")
    most: int = Field(
        default=64, ge=1, le=1000, description="at most so many different shingles of a user count and are looked at"
    )
    buckets: int = Field(default=65_536, ge=64, le=100_000, description="shingles are hashed into so many")
    users: FiniteFloat = Field(
        default=64.0, gt=0, le=10**9, description="a shingle that so many others have counts whole, else in proportion"
    )
    high: FiniteFloat = Field(
        default=1.0, gt=0, le=1, description="a public constant: a user with so large a share in common has 1"
    )
    noise_multiplier: FiniteFloat = Field(
        default=4.0, ge=0.1, le=1e6, description="noise of the counts over what one user can move; what they cost"
    )

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on each count, in users."""
        return self.noise_multiplier * math.sqrt(self.most)

    @model_validator(mode="after")
    def _fits(self) -> OverlapParameters:
        if self.most > self.buckets:
            raise ValueError(f"most: must be at most buckets ({self.buckets})")
        if self.users < self.noise:
            raise ValueError(
                f"users: must be at least {self.noise:.6g} (noise_multiplier × √most), by which each count is off"
            )
        return self


class Overlap(SessionScore):
    """The share of a user's text that many other users have too, from 0 (none) to 1 (a share of `high`, or more).

    @TEXT@
    """

    Parameters = OverlapParameters
    parameters: OverlapParameters

    @property
    def queries(self) -> tuple[Query, ...]:
        """One histogram of buckets."""
        p = self.parameters
        return (Query(COUNTS, "histogram", p.noise_multiplier, buckets=p.buckets, most=p.most),)

    def fit(self, session: PrivateSession) -> OwnRecordsScore:
        """Finds how far each bucket is shared."""
        p = self.parameters
        answer = session.ask(COUNTS, Sketch("word", p.size, p.most))
        counts = np.array(answer.noisy)
        load = max(0.0, float(np.median(counts)))
        # Cut on both sides alike: of a shingle that nobody shares the noise averages out over a user's shingles.
        return SharedText(p, np.clip((counts - load - 1) / p.users, -1, 1))


class SharedText(OwnRecordsScore):
    """The mean of how far a user's kept shingles are shared, over `high`."""

    Parameters = OverlapParameters
    parameters: OverlapParameters

    def __init__(self, parameters: OverlapParameters, shared: Any) -> None:
        """Takes the constants, and of every bucket how far it is shared, from -1 (noise) to 1."""
        super().__init__(parameters)
        self.shared = shared

    def score(self, user: UserRecords) -> float:
        """The mean over the shingles / high, cut to [0, 1]."""
        p = self.parameters
        own = Sketch("word", p.size, p.most).value(user)
        if not own:
            return 0.0
        total = math.fsum(float(self.shared[bucket_of(key, p.buckets)]) for key in own)
        return min(1.0, max(0.0, total / (len(own) * p.high)))
