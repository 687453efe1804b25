"""Puts users into risk tiers: scores by plugins, one user at a time, cut by edges that are public or noisy answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness import plugins
from harness.data import asking, guard
from harness.data.views import Views, seen, shown
from harness.errors import ArgumentError
from harness.packages import name_of
from harness.plugins import OwnRecordsScore, SensitivityScore, SessionScore
from harness.queries import Query
from harness.spec.models import SensitivityBlock

if TYPE_CHECKING:
    from harness.data.sessions import Session
    from harness.data.store import Corpus

Floats = npt.NDArray[np.float64]


SCORE_GRID = tuple(i / 20 for i in range(1, 21))
"""Between which quantiles of scores are found. Coarse: each count has noise of its own, which adds up over them."""


def score_query(quantile: float, noise_multiplier: float, name: str) -> Query:
    """A quantile of the combined score of training users with records, on a public grid."""
    return Query(name, "quantile", noise_multiplier, quantile=quantile, edges=SCORE_GRID)


@dataclass(frozen=True)
class Sensitivity:
    """How users are assessed. All of it is public; what it says of a user is private.

    Attributes:
        scores: Each gives a user a number in [0, 1].
        weights: Of the mean of the scores; None: the largest score counts.
        edges: Rising public edges; a value equal to one lies above it. None: they are noisy quantiles.
        names: One name more than edges, from the least at stake to the most.
        quantiles: Of the users, rising: where no edges are given.
    """

    scores: tuple[SensitivityScore, ...]
    weights: tuple[float, ...] | None
    edges: tuple[float, ...] | None
    names: tuple[str, ...]
    quantiles: tuple[float, ...] = ()

    @classmethod
    def of(cls, block: SensitivityBlock) -> Sensitivity:
        """What a spec's block means."""
        scores = tuple(plugins.sensitivity.build(one.type, one.parameters) for one in block.scores)
        weights = None if block.combine == "max" else block.weights or (1.0,) * len(scores)
        return cls(scores, weights, block.tiers.edges, block.tiers.names, block.tiers.quantiles or ())

    def combine(self, values: tuple[float, ...]) -> float:
        """One number in [0, 1] from all scores of a user."""
        if self.weights is None:
            return max(values)
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True)) / math.fsum(self.weights)


def combined_scores(
    corpus: Corpus,
    sensitivity: Sensitivity,
    *,
    private_dir: Path | None = None,
    sessions: Mapping[int, Session] | None = None,
    views: Views | None = None,
) -> Floats:
    """One number in [0, 1] for every user, shape [users]. Private.

    A score is asked of each user afresh, so that it can keep nothing of one for the next: see `asking`.

    Args:
        corpus: The users.
        sensitivity: How they are assessed.
        private_dir: Gets the details of a plugin's failure; None: nobody does.
        sessions: What each `SessionScore` asks, by its place among the scores; its charge is reserved.
        views: How the base model sees the users; for scores that use it.

    Raises:
        ArgumentError: A score fails, or is no number in [0, 1]. The message names the plugin alone.
    """
    opened = sessions or {}
    columns = [_scores(corpus, score, private_dir, opened.get(i), views) for i, score in enumerate(sensitivity.scores)]
    found = (sensitivity.combine(tuple(map(float, values))) for values in zip(*columns, strict=True))
    return np.fromiter(found, dtype=np.float64, count=corpus.n_users)


def cut(values: Floats, edges: Sequence[float]) -> npt.NDArray[np.int16]:
    """The tier of every user with these combined scores, by number. Private.

    Args:
        values: [users] as `combined_scores` gives them.
        edges: Not falling; a value equal to one lies above it. Between two equal ones there is nobody.
    """
    return np.searchsorted(np.asarray(edges, dtype=np.float64), values, side="right").astype(np.int16)


def monotone(edges: Sequence[float]) -> tuple[float, ...]:
    """Noisy quantiles in their order, none below the one before it."""
    return tuple(float(edge) for edge in np.maximum.accumulate(np.asarray(edges, dtype=np.float64)))


def _scores(
    corpus: Corpus, score: SensitivityScore, private_dir: Path | None, session: Session | None, views: Views | None
) -> Floats:
    """What one score says of all users, shape [users]."""
    rule = None
    if isinstance(score, SessionScore):
        if session is None:
            raise ArgumentError(f"sensitivity: {name_of(type(score))} needs a private session")
        rule = session.fit(score)
    elif not isinstance(score, OwnRecordsScore):
        raise ArgumentError(f"sensitivity: {name_of(type(score))} has no access tier")
    its = shown(score, views)
    users = (seen(corpus.own_records(user), user, its) for user in range(corpus.n_users))
    answers = asking.ask_each(score, "score", users, private_dir, rule=rule, refused=(corpus.folder,))
    return np.fromiter((_number(score, a, private_dir) for a in answers), dtype=np.float64, count=corpus.n_users)


def _number(score: SensitivityScore, answer: object, private_dir: Path | None) -> float:
    usable = isinstance(answer, int | float | np.floating) and not isinstance(answer, bool)
    value = float(answer) if usable else math.nan  # type: ignore[arg-type]
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise guard.plugin_error(score, "gave a score that is no number in [0, 1]", repr(answer), private_dir)
    return value
