"""Tiers: a score sees one user at a time, keeps nothing, and tells nothing when it fails."""

from __future__ import annotations

import numpy as np
import pytest

from harness import plugins
from harness.data.tiers import Sensitivity, combined_scores, cut
from harness.errors import ArgumentError
from harness.plugins import UserRecords
from harness.spec.privacy_groups import groups_of
from tests.data.rules import SECRET, RuleParameters, Score


def volume(**parameters):
    return plugins.sensitivity.build("volume", {"measure": "records", "low": 1, "high": 4} | parameters)


def sensitivity(*scores, weights=None, edges=(0.3, 0.7), names=("low", "medium", "high")):
    return Sensitivity(scores, weights, edges, names)


def own(how):
    return Score(RuleParameters(how=how))


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.0), (2, 0.5), (4, 1.0), (9, 1.0)])
@pytest.mark.parametrize("measure", ["records", "tokens", "examples"])
def test_volume_is_logarithmic_between_its_constants(count, score, measure):
    """Break: a linear scale, or one measure taken for another."""
    held = {"records": 3, "tokens": 3, "examples": 3} | {measure: count}
    user = UserRecords(("x",) * held["records"], (held["tokens"],), held["examples"])
    assert volume(measure=measure).score(user) == pytest.approx(score)


def test_a_user_on_an_edge_is_in_the_stricter_tier_and_scores_are_combined():
    """Break: `side="left"`; or the smallest score in place of the largest."""
    user = UserRecords(("x", "y"), (1, 1), 1)
    half, one = volume(), volume(high=2)
    assert cut(np.array([half.score(user), 0.0, 1.0]), (0.5,)).tolist() == [1, 0, 1]
    assert sensitivity(half, one).combine((half.score(user), one.score(user))) == 1.0
    assert sensitivity(half, one, weights=(3.0, 1.0)).combine((0.5, 1.0)) == 0.625


def assign_tiers(made, assessed, **more):
    return cut(combined_scores(made, assessed, **more), assessed.edges)


def test_every_user_has_the_tier_of_their_own_records(posts, write_jsonl, make_data, build):
    """Break: the first user's score kept for all."""
    made = build(make_data(write_jsonl(posts)))
    found = assign_tiers(made, sensitivity(volume()))
    expected = [0 if n < 2 else 1 if n == 2 else 2 for n in made.n_records]
    assert found.tolist() == expected
    assert set(expected) == {0, 1, 2}


def test_a_score_that_keeps_state_is_powerless(posts, write_jsonl, make_data, build):
    """Red without the fork for every user in `within._serve_users` (later scores depend on earlier users)."""
    made = build(make_data(write_jsonl(posts)))
    assert set(assign_tiers(made, sensitivity(own("state"))).tolist()) == {0}


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("raises", "raised an error"),
        ("nan", "gave a score that is no number"),
        ("inf", "gave a score that is no number"),
        ("above", "gave a score that is no number"),
        ("below", "gave a score that is no number"),
        ("true", "gave a score that is no number"),
        ("text", "gave a score that is no number"),
    ],
)
def test_a_score_that_fails_carries_no_text_out(how, problem, write_jsonl, make_data, build, tmp_path):
    """Break: the value in the message, or the check of the range left out."""
    made = build(make_data(write_jsonl([{"user": "ann", "text": SECRET}])))
    with pytest.raises(ArgumentError) as caught:
        assign_tiers(made, sensitivity(own(how)), private_dir=tmp_path / "private")
    assert problem in str(caught.value)
    assert "Score" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (SECRET, "ann", "1.0001", "nan"))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_groups_are_segments_by_tiers():
    """Break: ``everyone/low`` for one segment, or two groups of one name."""
    assert [g.name for g in groups_of(("everyone",), ("low", "high"))] == ["low", "high"]
    assert [g.name for g in groups_of(("a", "b"))] == ["a", "b"]
    both = groups_of(("a", "b"), ("low", "high"), {"a/low": 0.1, "a/high": 0.2, "b/low": 0.3, "b/high": 0.4})
    assert [(g.name, g.segment, g.tier, g.weight) for g in both][1] == ("a/high", "a", "high", 0.2)
    assert len({g.name for g in both}) == 4
