"""Intervals: against what they are defined by, and that they cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from harness.auditing.intervals import clopper_pearson, mean_interval, share_interval


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (10, 20), (19, 20), (20, 20)])
def test_ends_are_where_the_count_becomes_improbable(k: int, n: int) -> None:
    low, high = clopper_pearson(k, n, 0.9)
    assert low == 0.0 if k == 0 else binom.sf(k - 1, n, low) == pytest.approx(0.05)
    assert high == 1.0 if k == n else binom.cdf(k, n, high) == pytest.approx(0.05)


def test_the_mean_of_a_sample_is_covered_as_often_as_said() -> None:
    """4,000 samples at 90 %; false-alarm rate below 1e-6."""
    rng = np.random.default_rng(0)
    covered = 0
    for sample in rng.normal(3.0, 2.0, size=(4000, 6)):
        low, high = mean_interval(sample.tolist(), 0.9) or (0, 0)
        covered += low <= 3.0 <= high
    assert abs(covered - 3600) < 95


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.0], 0.95) is None
    assert share_interval([1.0], 0.95) is None


def test_shares_stay_within_bounds_and_are_never_a_point_at_the_ends() -> None:
    low, high = share_interval([1.0, 0.2, 1.0], 0.95) or (0, 0)
    assert 0 <= low < high <= 1
    assert share_interval([1.0] * 8, 0.95) == clopper_pearson(8, 8, 0.95)
    assert share_interval([0.0] * 8, 0.95) == clopper_pearson(0, 8, 0.95)


def test_shares_that_are_all_the_same_have_an_interval_all_the_same() -> None:
    """Two texts of which a ninth was found each say little. Break: Student's interval, which is a point."""
    assert share_interval([1 / 9, 1 / 9], 0.95) == (0.0, 1.0)
    low, high = share_interval([0.5] * 100, 0.95) or (0.5, 0.5)
    assert (low, high) == (pytest.approx(0.364, abs=1e-3), pytest.approx(0.636, abs=1e-3))
