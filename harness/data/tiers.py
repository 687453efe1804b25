"""Puts users into risk tiers: scores by plugins, one user at a time, cut by public edges."""

from __future__ import annotations

import math
from bisect import bisect_right
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
from harness.plugins import OwnRecordsScore, SensitivityScore
from harness.spec.models import SensitivityBlock

if TYPE_CHECKING:
    from harness.data.store import Corpus


@dataclass(frozen=True)
class Sensitivity:
    """How users are assessed. All of it is public; what it says of a user is private.

    Attributes:
        scores: Each gives a user a number in [0, 1].
        weights: Of the mean of the scores; None: the largest score counts.
        edges: Rising public edges; a value equal to one lies above it.
        names: One name more than edges, from the least at stake to the most.
    """

    scores: tuple[SensitivityScore, ...]
    weights: tuple[float, ...] | None
    edges: tuple[float, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, block: SensitivityBlock) -> Sensitivity:
        """What a spec's block means."""
        scores = tuple(plugins.sensitivity.build(one.type, one.parameters) for one in block.scores)
        weights = None if block.combine == "max" else block.weights or (1.0,) * len(scores)
        return cls(scores, weights, block.tiers.edges, block.tiers.names)

    def combine(self, values: tuple[float, ...]) -> float:
        """One number in [0, 1] from all scores of a user."""
        if self.weights is None:
            return max(values)
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True)) / math.fsum(self.weights)

    def tier(self, values: tuple[float, ...]) -> int:
        """The tier of a user with these scores, as an index into `names`. Private."""
        return bisect_right(self.edges, self.combine(values))


def assign_tiers(
    corpus: Corpus, sensitivity: Sensitivity, *, private_dir: Path | None = None, views: Views | None = None
) -> npt.NDArray[np.int16]:
    """The tier of every user, as an index into `sensitivity.names`. Private.

    A score is asked of each user afresh, so that it can keep nothing of one for the next: see `asking`.

    Args:
        corpus: The users.
        sensitivity: How they are assessed.
        private_dir: Gets the details of a plugin's failure; None: nobody does.
        views: How the base model sees the users; for scores that use it.

    Raises:
        ArgumentError: A score fails, or is no number in [0, 1]. The message names the plugin alone.
    """
    columns = [_scores(corpus, score, private_dir, views) for score in sensitivity.scores]
    found = (sensitivity.tier(tuple(map(float, values))) for values in zip(*columns, strict=True))
    return np.fromiter(found, dtype=np.int16, count=corpus.n_users)


def _scores(
    corpus: Corpus, score: SensitivityScore, private_dir: Path | None, views: Views | None
) -> npt.NDArray[np.float64]:
    """What one score says of all users, shape [users]."""
    if not isinstance(score, OwnRecordsScore):
        raise ArgumentError(f"sensitivity: {name_of(type(score))} is no score of a user's own records")
    its = shown(score, views)
    users = (seen(corpus.own_records(user), user, its) for user in range(corpus.n_users))
    answers = asking.ask_each(score, "score", users, private_dir, refused=(corpus.folder,))
    return np.fromiter((_number(score, a, private_dir) for a in answers), dtype=np.float64, count=corpus.n_users)


def _number(score: SensitivityScore, answer: object, private_dir: Path | None) -> float:
    usable = isinstance(answer, int | float | np.floating) and not isinstance(answer, bool)
    value = float(answer) if usable else math.nan  # type: ignore[arg-type]
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise guard.plugin_error(score, "gave a score that is no number in [0, 1]", repr(answer), private_dir)
    return value
