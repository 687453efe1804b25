"""Segments by the parts of a Gaussian mixture, found by a private expectation maximisation."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from harness.plugins import OwnRecordsSegmenter, Page, PrivateSession, Query, Statistic, UserRecords
from policies.segmentation import clusters, features, learning
from policies.segmentation.clusters import ClusterParameters, Scaled
from policies.segmentation.features import FeatureParameters, Floats
from policies.segmentation.learning import RANGES, Scale

Covariance = Literal["spherical", "diagonal"]

_SHARES = {"spherical": (0.15, 0.65, 0.2), "diagonal": (0.1, 0.45, 0.45)}
"""Of the square of a user's contribution: their counts, features and squares."""
_FIRST_VARIANCE = 0.05
_VARIANCES = (0.01, 1.0)
"""Of a scaled feature within a part, at least and at most."""
_VARIANCES_DIFFER = 0.05
"""By so much from part to part, roughly: where noise is larger, a part's variance is that of all parts."""


class MixtureParameters(ClusterParameters):
    """Parameters of `mixture`."""

    covariance: Covariance = Field(
        default="spherical",
        description="a part's variance: one number for all features, or diagonal: one for each, which needs more users",
    )


class Mixture(learning.FeatureSegmenter):
    """One segment per part of a Gaussian mixture over features of users' own records, learned by EM with noise.

    Use it in place of `kmeans` where kinds of users differ in how common or how alike they are: a user goes to the part
    that most probably made them. It asks what `kmeans` asks up to the first round; every later round asks one vector:
    the users, features and squares that each part is responsible for. A user's responsibilities sum to 1, which bounds
    what they add (`Responsible`). `noise_multiplier` is that of everything asked together: the ranges take a quarter of
    the cost, all rounds the rest alike.

    The default costs ε = 0.73 by itself (δ = 1e-5). With it, three uneven parts are found about as well as by `kmeans`
    among 1,200 users, better among 3,000, and worse among 600; `diagonal` needs some 3,000. Parts are named by their
    first feature, the lowest first. Which part a user belongs to is private.
    """

    Parameters = MixtureParameters
    parameters: MixtureParameters
    page = Page(
        formula=(
            "r_j = p_j N(x; m_j, v_j) / Σ_i p_i N(x; m_i, v_i); of every part, noisy sums of r, r x and r x² over "
            "users, round by round"
        ),
        sees="Features of each user's own records, through noisy answers alone; then one user at a time.",
        when="Kinds of users differ in how common or how alike they are, and there are several thousand users.",
        costs=(
            "Privacy: every answer is a charge (ε = 0.73 alone with the defaults at δ = 1e-5). Only the largest ε over "
            "groups is claimed. Weights of the groups must be given or noisy."
        ),
        example=("type: mixture\nk: 3\nfeatures: [tokens, median_length, distinct_words]"),
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """From the lowest to the highest first feature of the parts' means."""
        return clusters.names_of(self.parameters)

    @property
    def queries(self) -> tuple[Query, ...]:
        """One for the features' ranges, two for the first round, one for every other round."""
        parameters = self.parameters
        share = (1 - clusters.RANGES_SHARE) / (parameters.iterations + 1)
        rounds = {_name(number): share for number in range(parameters.iterations)}
        shares = {RANGES: clusters.RANGES_SHARE} | clusters.first_shares(share) | rounds
        noise = learning.split(parameters.noise_multiplier, shares)
        size = features.size_of(parameters)
        dimension = parameters.k * _width(size, parameters.covariance)
        return (
            learning.ranges_query(parameters, noise[RANGES]),
            *clusters.first_queries(parameters, noise),
            *(Query(name, "sum", noise[name], dimension=dimension, norm=1.0) for name in rounds),
        )

    def fit(self, session: PrivateSession) -> MostProbable:
        """Asks its rounds; a part that makes too few users keeps its mean and variance."""
        parameters = self.parameters
        scale = learning.ask_scale(session, parameters)
        means, shares = clusters.ask_first(session, parameters, scale)
        width = 1 if parameters.covariance == "spherical" else means.shape[1]
        parts = Parts(shares, means, np.full((parameters.k, width), _FIRST_VARIANCE))
        for number in range(parameters.iterations):
            answer = session.ask(_name(number), Responsible(parameters, scale, parts))
            parts = _maximised(parts, np.array(answer.noisy), answer.std, parameters.covariance)
        order = clusters.in_order(parts.means.tolist())
        found = Parts(parts.shares[order], parts.means[order], parts.variances[order])
        return MostProbable(parameters, scale, found, self.segments)


class Parts:
    """A mixture. Public: made of noisy answers.

    Attributes:
        shares: [k] above 0, of a sum of 1.
        means: [k, size] of scaled features.
        variances: [k, 1] for all features of a part, or [k, size].
    """

    def __init__(self, shares: Floats, means: Floats, variances: Floats) -> None:
        self.shares, self.means, self.variances = shares, means, variances

    def logarithms(self, scaled: Floats) -> Floats:
        """[k] log of share and density, but for a constant."""
        size = self.means.shape[1]
        spread = np.sum(np.log(self.variances), axis=1) * (size / self.variances.shape[1])
        squares = np.sum((scaled - self.means) ** 2 / self.variances, axis=1)
        found: Floats = np.log(self.shares) - (spread + squares) / 2
        return found


class _Mixed(Scaled):
    """One user's features, and the parts that may have made them."""

    def __init__(self, parameters: FeatureParameters, scale: Scale, parts: Parts) -> None:
        super().__init__(parameters, scale)
        self.shares, self.means, self.variances = parts.shares, parts.means, parts.variances

    def _logarithms(self, scaled: Floats) -> Floats:
        return Parts(self.shares, self.means, self.variances).logarithms(scaled)


class Responsible(_Mixed, Statistic):
    """How far each part is responsible for a user, and their features and squares as far as it is.

    For every part j with responsibility r_j it holds r_j · (√a, √b · z / R, √c · q / Q), where a + b + c = 1; z are the
    scaled features, of an l2 norm of at most R; q their mean square (at most Q = R² / size), or their squares (of an l2
    norm of at most Q = R, since none is above 1). So its squared l2 norm is at most Σ r_j² · (a + b + c) ≤ 1.
    """

    def value(self, user: UserRecords) -> Floats:
        """[k · width] of an l2 norm of at most 1."""
        scaled = self.scaled(user)
        logarithms = self._logarithms(scaled)
        responsible = np.exp(logarithms - np.max(logarithms))
        responsible /= np.sum(responsible)
        kind: Covariance = "spherical" if self.variances.shape[1] == 1 else "diagonal"
        squares = np.array([np.mean(scaled**2)]) if kind == "spherical" else scaled**2
        counts, sums, seconds = _units(len(scaled), kind)
        own = np.concatenate([[counts], scaled * sums, squares * seconds])
        found: Floats = (responsible[:, None] * own).reshape(-1)
        return found


class MostProbable(_Mixed, OwnRecordsSegmenter):
    """What `mixture` learns: a user belongs to the part that most probably made them."""

    parameters: FeatureParameters

    def __init__(self, parameters: FeatureParameters, scale: Scale, parts: Parts, segments: tuple[str, ...]) -> None:
        super().__init__(parameters, scale, parts)
        self.names = segments

    @property
    def segments(self) -> tuple[str, ...]:
        """In the order of the parts."""
        return self.names

    def assign(self, user: UserRecords) -> str:
        """The most probable part's segment; of equally probable ones the first."""
        return self.names[int(np.argmax(self._logarithms(self.scaled(user))))]


def _units(size: int, covariance: Covariance) -> tuple[float, float, float]:
    """What a user's 1, features and squares are multiplied by: √a, √b / R and √c / Q of `Responsible`."""
    reach = learning.scaled_reach(size)
    counts, sums, squares = (math.sqrt(share) for share in _SHARES[covariance])
    return counts, sums / reach, squares / (reach**2 / size if covariance == "spherical" else reach)


def _width(size: int, covariance: Covariance) -> int:
    return 1 + size + (1 if covariance == "spherical" else size)


def _maximised(before: Parts, noisy: Floats, std: float, covariance: Covariance) -> Parts:
    """The mixture that noisy sums of `Responsible` lead to, with noise of `std` in each number."""
    k, size = before.means.shape
    units = _units(size, covariance)
    answers = noisy.reshape(k, -1)
    counts = answers[:, 0] / units[0]
    noise = [std / unit for unit in units]
    enough = counts >= max(1.0, noise[0] + noise[1] / 4)
    kept = np.maximum(counts, 1.0)
    means = clusters.means(before.means, counts, answers[:, 1 : 1 + size] / units[1], enough)
    # Noise in a mean makes its square too large.
    centred = means**2 - ((noise[1] / kept) ** 2)[:, None]
    if covariance == "spherical":
        centred = np.mean(centred, axis=1, keepdims=True)
    squares = answers[:, 1 + size :] / units[2] / kept[:, None] - np.maximum(centred, 0.0)
    shares = kept / np.sum(kept)
    together = np.sum(shares[:, None] * squares, axis=0)
    trusted = 1 / (1 + (noise[2] / kept / _VARIANCES_DIFFER) ** 2)
    variances = np.clip(together + trusted[:, None] * (squares - together), *_VARIANCES)
    return Parts(shares, means, np.where(enough[:, None], variances, before.variances))


def _name(number: int) -> str:
    return f"round {number + 1}"
