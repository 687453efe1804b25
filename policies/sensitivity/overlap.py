"""Sensitivity by how much of a user's text other users have as well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import (
    OwnRecordsScore,
    Page,
    PluginParameters,
    PrivateSession,
    UserRecords,
    bucket_of,
)
from policies.sensitivity.sketches import Sketch, SketchScore


class OverlapParameters(PluginParameters):
    """Parameters of `overlap`."""

    size: int = Field(default=12, ge=1, le=100, description="words in a row that make a shingle")
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


class Overlap(SketchScore):
    """The share of a user's text that many other users have too, from 0 (none) to 1 (a share of `high`, or more).

    One noisy histogram, charged to every user, counts the users per hash bucket of shingles (`size` words in a row). A
    user counts for at most `most` shingles, those with the smallest hashes, so that users who share text keep the same
    ones. A shingle counts as shared in proportion to how many others have it, whole from `users` on; the score is the
    mean over the user's shingles, where the noise (noise_multiplier × √most on a count) averages out to about
    noise_multiplier / users. Text that is shared is in the data even without the user; or it gives them away, as one
    of a circle who know it: which of the two is for the spec to say, by the tier that it puts high scores into.

    It finds text that at least a few times noise_multiplier users share. It does not find pairs: no answer that
    protects a user can tell whether one other has their text. Measured on 2,000 made support customers, groups of whom
    had half of their records in common with k - 1 others, at 5 % false alarms: with the defaults it finds 97 % at
    k = 80, 84 % at 40, 23 % at 20, 12 % at 10, 2 % at 5 and none at 2; with a quarter of the noise 99, 99, 38, 6, 0 and
    0 %, since made text itself repeats. With shingles of 16 words that is 97, 82, 40, 16, 4 and 0 %, and 100, 100, 95,
    32, 14 and 0 %. The households and single copies of the synthetic source are not found (area under the ROC curve
    0.51 and 0.57 with the defaults; by chance 0.5).

    Limits: shingles that share a bucket count together (the median count, which chance adds, is taken off); a changed
    word changes `size` shingles; of a user with more than `most` shingles a sample is looked at.
    """

    Parameters = OverlapParameters
    parameters: OverlapParameters
    page = Page(
        formula=(
            "score = (mean over the user's kept shingles of min(1, noisy count of others / users)) / high, "
            "cut to [0, 1];\n"
            "std of each count: noise_multiplier · √most"
        ),
        sees="The user's own texts; counts of users per shingle through one noisy answer.",
        when="Text that many share gives a circle of users away, or is in the data even without any one of them.",
        costs=(
            "Privacy: one charged answer. Only the largest ε over groups is claimed. Weights of the groups must be "
            "given or noisy."
        ),
        ends="0: none of the user's text is shared by many. 1: a share of `high` of it, or more, is.",
        example="{type: overlap}",
    )

    def fit(self, session: PrivateSession) -> OwnRecordsScore:
        """Finds how far each bucket is shared."""
        p = self.parameters
        counts = self.counts(session, Sketch("word", p.size, p.most))
        # Cut on both sides alike: of a shingle that nobody shares the noise averages out over a user's shingles.
        return SharedText(p, np.clip((counts - 1) / p.users, -1, 1))


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
