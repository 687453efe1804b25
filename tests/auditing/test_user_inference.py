"""User inference: direct computations of its numbers, and that its intervals cover."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from harness.auditing.intervals import clopper_pearson
from harness.auditing.user_inference import compare, compare_groups, user_scores


def test_scores_are_means_of_examples_not_of_tokens() -> None:
    """Broken by dividing a user's summed ratios by their tokens."""
    users = np.array([0, 0, 1, 1, 2])
    tuned, base = np.array([10.0, 4.0, 5.0, 9.0, 1.0]), np.array([12.0, 9.0, 4.0, 9.0, 1.0])
    found = user_scores(users, tuned, base, np.array([2, 10, 4, 0, 0]), 4)
    assert found[:2].tolist() == pytest.approx([(1.0 + 0.5) / 2, -0.25])
    assert np.isnan(found[2:]).all()


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 23) / 5 + 0.2, rng.integers(0, 7, 31) / 5
    pairs = np.sign(members[:, None] - others[None])
    assert compare(members, others, 0.95, 0).auc == pytest.approx(float((pairs + 1).mean() / 2))


def test_the_interval_covers_the_truth() -> None:
    """200 comparisons of 60 against 60 at 90 %: the bootstrap covers about 89 %; false-alarm rate below 1e-4."""
    rng = np.random.default_rng(1)
    truth = float(norm.cdf(0.8 / 2**0.5))
    covered = 0
    for seed in range(200):
        found = compare(rng.normal(0.8, 1, 60), rng.normal(0, 1, 60), 0.9, seed, resamples=300)
        assert found.interval is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert covered >= 155


def test_members_and_others_are_resampled_apart() -> None:
    """Broken by resampling all users together: a side's size would vary, and the seed must decide everything."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 1, 300)
    assert compare(a, b, 0.95, 7) == compare(a, b, 0.95, 7)
    assert compare(a, b, 0.95, 7).interval != compare(a, b, 0.95, 8).interval
    low, high = compare(a, b, 0.95, 7).interval or (0, 0)
    drawn = [(rng.choice(a, 40)[:, None] > rng.choice(b, 300)[None]).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012)


def test_a_perfect_separation_is_not_a_point() -> None:
    found = compare(np.arange(12.0) + 100, np.arange(50.0), 0.95, 0)
    assert (found.auc, found.interval) == (1.0, clopper_pearson(12, 12, 0.95))


@pytest.mark.parametrize(("others", "above"), [(100, 1), (199, 1), (200, 2), (1000, 10)])
def test_the_false_positive_rate_is_never_above_what_is_said(others: int, above: int) -> None:
    """Broken by rounding the number of false positives, or by a threshold that is met with equality."""
    rng = np.random.default_rng(3)
    held = np.round(rng.normal(0, 1, others), 1)  # with ties
    members = np.round(rng.normal(1, 1, 400), 1)
    found = compare(members, held, 0.95, 0).true_positives[0]
    best = max((members > t).mean() for t in held if (held > t).sum() <= above)
    assert found.found == pytest.approx(best)
    assert found.interval == clopper_pearson(round(best * 400), 400, 0.95)


@pytest.mark.parametrize(("others", "known"), [(99, (False, False)), (999, (True, False)), (1000, (True, True))])
def test_too_few_others_give_no_rate(others: int, known: tuple[bool, bool]) -> None:
    """At 0.1 % of 999 users there is no false positive to allow: "0 of them" would not be that rate."""
    rng = np.random.default_rng(4)
    found = compare(rng.normal(2, 1, 50), rng.normal(0, 1, others), 0.95, 0)
    assert tuple(t.found is not None for t in found.true_positives) == known
    for t in found.true_positives:
        assert (t.document()["reason"] is None) == (t.found is not None)
    assert found.true_positives[1].document()["reason"] in (None, "needs 1000 held-out users or more")


def test_what_is_not_finite_counts_as_the_lowest() -> None:
    members = np.array([np.nan] * 10 + [2.0] * 10)
    assert compare(members, np.ones(20), 0.95, 0).auc == 0.5


def test_groups_are_told_apart_and_small_ones_say_nothing() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat([0, 1, 2], [300, 200, 9])
    members = rng.normal(0, 1, 509) + np.where(groups == 1, 3.0, 0.0)
    found = compare_groups(members, groups, rng.normal(0, 1, 509), groups, ["a", "b", "c"], 0.95, 0)
    assert found.groups["a"].auc == pytest.approx(0.5, abs=0.1)
    assert found.groups["b"].auc > 0.95  # type: ignore[operator]
    assert 0.5 < found.overall.auc < 0.9  # type: ignore[operator]
    small = found.groups["c"]
    assert (small.members, small.auc, small.interval, small.true_positives) == (9, None, None, ())
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["groups"]["c"]["reason"] == "fewer than 10 trained or held-out users"
    assert document["overall"]["reason"] is None
