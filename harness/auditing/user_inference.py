"""Was this user trained on? (Kandpal et al., 2023) Users who were, against users who were held out.

The attacker has fresh texts of a user and asks how much likelier training has made them. Of real users everything here
is private (`mechanism.md` §10) unless their data are public.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.auditing.intervals import Interval, clopper_pearson

FEWEST_USERS = 10
"""On either side: of fewer, nothing is said."""
RATES = (0.01, 0.001)
RESAMPLES = 2000
_MOST_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class TruePositives:
    """How many members are found while at most a given share of others is taken for members.

    Attributes:
        rate: That share, in (0, 1).
        found: Share of members found, in [0, 1]; None: there are fewer than 1 / `rate` others to choose a threshold on.
        interval: Clopper–Pearson interval of `found`, the threshold being what it is.
    """

    rate: float
    found: float | None
    interval: Interval | None

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        reason = None if self.found is not None else f"needs {round(1 / self.rate)} held-out users or more"
        return {"fpr": self.rate, "tpr": self.found, "interval": _listed(self.interval), "reason": reason}


@dataclass(frozen=True)
class Comparison:
    """Members against others.

    Attributes:
        members: Number of users trained on.
        others: Number of held-out users.
        auc: The probability that a member scores higher than another user, ties counting half; 0.5: no attack. None:
            fewer than `FEWEST_USERS` on a side.
        interval: Its bootstrap interval, members and others resampled apart.
        true_positives: At each of `RATES`.
        confidence: Of every interval, in (0, 1).
    """

    members: int
    others: int
    auc: float | None
    interval: Interval | None
    true_positives: tuple[TruePositives, ...]
    confidence: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        few = f"fewer than {FEWEST_USERS} trained or held-out users" if self.auc is None else None
        return {
            "members": self.members,
            "others": self.others,
            "auc": self.auc,
            "interval": _listed(self.interval),
            "true_positives": [t.document() for t in self.true_positives],
            "confidence": self.confidence,
            "reason": few,
        }


@dataclass(frozen=True)
class UserInference:
    """The attack on everybody, and on each privacy group by itself.

    Attributes:
        overall: All users.
        groups: By name.
    """

    overall: Comparison
    groups: dict[str, Comparison]

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {"overall": self.overall.document(), "groups": {n: c.document() for n, c in self.groups.items()}}


def user_scores(
    users: NDArray[np.int64],
    tuned: NDArray[np.float64],
    base: NDArray[np.float64],
    tokens: NDArray[np.int64],
    count: int,
) -> NDArray[np.float64]:
    """Each user's score: the mean over their examples of (log p_tuned − log p_base) per predicted token.

    Args:
        users: Whose each example is, 0 … count − 1, shape [examples].
        tuned: Summed loss of each example under the trained model, nats, shape [examples].
        base: The same under the base model.
        tokens: Predicted tokens of each example; one without any counts nowhere.
        count: Number of users.

    Returns:
        Nats per token, shape [count]; nan for a user without an example.
    """
    kept = tokens > 0
    ratios = (base[kept] - tuned[kept]) / tokens[kept]
    sums = np.bincount(users[kept], weights=ratios, minlength=count)
    numbers = np.bincount(users[kept], minlength=count)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = sums / numbers
    return means


def compare(
    members: NDArray[np.float64], others: NDArray[np.float64], confidence: float, seed: int, resamples: int = RESAMPLES
) -> Comparison:
    """Tells members from others by their scores.

    A perfect separation has no spread to resample; the lower end is then what as many users as the smaller side has,
    all of them told apart, would give (Clopper–Pearson).

    Args:
        members: Scores of users trained on, shape [members]; one that is not finite counts as the lowest.
        others: Of held-out users.
        confidence: Of every interval, in (0, 1).
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
    """
    n, m = len(members), len(others)
    if min(n, m) < FEWEST_USERS:
        return Comparison(n, m, None, None, (), confidence)
    given = np.concatenate([members, others])
    # Places in the order of all scores: all that is looked at.
    places = np.unique(np.where(np.isfinite(given), given, -np.inf), return_inverse=True)[1].reshape(-1)
    a, b = places[:n], places[n:]
    auc = float(_aucs(a[None], b[None])[0])
    if auc in (0.0, 1.0):
        interval = clopper_pearson(min(n, m) if auc else 0, min(n, m), confidence)
    else:
        interval = _bootstrap(a, b, confidence, seed, resamples)
    found = tuple(_true_positives(a, b, rate, confidence) for rate in RATES)
    return Comparison(n, m, auc, interval, found, confidence)


def compare_groups(
    members: NDArray[np.float64],
    member_groups: NDArray[np.int64],
    others: NDArray[np.float64],
    other_groups: NDArray[np.int64],
    names: Sequence[str],
    confidence: float,
    seed: int,
) -> UserInference:
    """`compare` overall and within each privacy group.

    Args:
        members: Scores of users trained on, shape [members].
        member_groups: Index of each one's group in `names`; negative: of none.
        others: Scores of held-out users, shape [others].
        other_groups: The same for them.
        names: Of the groups.
        confidence: Of every interval, in (0, 1).
        seed: Of the bootstrap.
    """
    groups = {
        name: compare(members[member_groups == g], others[other_groups == g], confidence, seed)
        for g, name in enumerate(names)
    }
    return UserInference(compare(members, others, confidence, seed), groups)


# --- numbers ------------------------------------------------------------------------------------------------


def _aucs(members: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUC of each row of places: [rows, members], [rows, others] → [rows]."""
    rows = len(members)
    width = int(max(members.max(), others.max())) + 1

    def counted(places: NDArray[np.int64]) -> NDArray[np.int64]:
        flat = places + width * np.arange(rows)[:, None]
        return np.bincount(flat.reshape(-1), minlength=rows * width).reshape(rows, width)

    ours, theirs = counted(members), counted(others)
    beaten = np.cumsum(theirs, axis=1) - theirs + theirs / 2
    pairs = members.shape[1] * others.shape[1]
    result: NDArray[np.float64] = (ours * beaten).sum(axis=1) / pairs
    return result


def _bootstrap(
    members: NDArray[np.int64], others: NDArray[np.int64], confidence: float, seed: int, resamples: int
) -> Interval:
    generator = np.random.default_rng(seed)
    n, m = len(members), len(others)
    at_once = max(1, _MOST_AT_ONCE // (n + m))
    found = []
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = members[generator.integers(n, size=(rows, n))], others[generator.integers(m, size=(rows, m))]
        found.append(_aucs(*drawn))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def _true_positives(
    members: NDArray[np.int64], others: NDArray[np.int64], rate: float, confidence: float
) -> TruePositives:
    allowed = int(rate * len(others) * (1 + 1e-12))
    if not allowed:
        return TruePositives(rate, None, None)
    # Strictly above the first score that would be one false positive too many.
    threshold = np.sort(others)[len(others) - allowed - 1]
    found = int(np.sum(members > threshold))
    return TruePositives(rate, found / len(members), clopper_pearson(found, len(members), confidence))


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
