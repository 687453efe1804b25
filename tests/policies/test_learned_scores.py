"""Scores that learn from noisy histograms: what one user can move, what 0 and 1 mean, what is found in made text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.conformance import check_score
from harness.data.synthetic.parameters import SyntheticParameters
from harness.data.synthetic.population import Population
from harness.data.trial import learn
from harness.plugins import UserRecords
from harness.privacy import contributions
from policies.sensitivity.overlap import Overlap, OverlapParameters
from policies.sensitivity.rarity import Rarity, RarityParameters
from policies.sensitivity.sketches import Sketch, grams, kept

QUIET = 0.1
"""Little noise: 0.1 · √most users on a count."""
WORDS = st.sampled_from(["tide", "lamp", "north", "Straße", "x", "😀", "ﬀ", "\udc80", "a_b", ""])
TEXTS = st.lists(st.lists(WORDS, max_size=30).map(" ".join), max_size=4)


def user(*texts):
    return UserRecords(tuple(texts), (1,) * len(texts), 1)


def alike(count, text):
    return [user(text) for _ in range(count)]


def test_both_conform():
    check_score(Rarity)
    check_score(Rarity, {"unit": "character", "size": 4, "most": 16, "buckets": 512})
    check_score(Overlap, {"size": 2, "buckets": 512})


# --- sketches -------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_text():
    """Break: all texts of a user joined."""
    assert grams(("One two", "THREE four"), "word", 2) == {"one two", "three four"}
    assert grams(("ab  c",), "character", 3) == {"ab ", "b c"}
    assert grams(("one",), "word", 2) == set()


def test_users_keep_the_same_of_what_they_share():
    """Whoever holds all keys of another keeps no key that the other would have dropped for one they share.

    Break: the first keys kept, or those with the smallest hash of a hash that differs between users.
    """
    own = {f"key {i}" for i in range(200)}
    both = own | {f"more {i}" for i in range(200)}
    few, many = kept(own, 50), kept(both, 50)
    assert len(set(few)) == len(set(many)) == 50
    assert set(many) & own <= set(few)
    assert kept(sorted(own, reverse=True), 50) == few


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6), most=st.integers(1, 8), unit=st.sampled_from(["word", "character"])
)
def test_adding_or_removing_any_user_moves_the_histogram_by_its_sensitivity(texts, most, unit):
    """Of every user of a made population, by the exact sums that the session takes. Break: twice `most` kept, or all of
    a user's keys counted by the query.
    """
    rarity = RarityParameters(unit=unit, size=2, most=most, buckets=64, noise_multiplier=1.0)
    overlap = OverlapParameters(size=2, most=most, buckets=64, noise_multiplier=1.0)
    users = [user(*each) for each in texts]
    for plugin, sketch in (
        (Rarity(rarity), Sketch(unit, 2, most)),
        (Overlap(overlap), Sketch("word", 2, most)),
    ):
        (query,) = plugin.queries
        assert contributions.sensitivity_of(query) == math.sqrt(most)
        assert all(len(set(value)) == len(value) <= most for value in map(sketch.value, users))
        # And of whoever gave more than was declared.
        values: list[object] = [[*sketch.value(one), *sorted(grams(one.texts, unit, 1))] for one in users]
        whole = np.array(contributions.total(query, values), dtype=float)
        for i in range(len(users)):
            without = np.array(contributions.total(query, values[:i] + values[i + 1 :]), dtype=float)
            moved = np.linalg.norm(whole - without) * contributions.grain_of(query)
            assert moved <= math.sqrt(most) * (1 + 1e-9)


# --- rarity ---------------------------------------------------------------------------------------------------


def rare_score(users, who, draw=0, **parameters):
    given = {"most": 8, "buckets": 4096, "few": 10.0, "high": 1.0, "noise_multiplier": QUIET} | parameters
    return learn(Rarity(RarityParameters(**given)), users, draw).score(who)


def test_zero_is_what_many_say_and_one_is_what_few_say():
    """Break: the comparison turned round; `high` not divided by; a user without words scored 1."""
    users = [*alike(40, "tide lamp north"), *alike(3, "quartz zither")]
    assert rare_score(users, users[0]) == 0.0
    assert rare_score(users, users[-1]) == 1.0
    assert rare_score(users, user("tide quartz")) == 0.5
    assert rare_score(users, user("tide quartz"), high=0.5) == 1.0
    assert rare_score(users, user("tide", "lamp, north! QUARTZ")) == 0.25
    assert rare_score(users, user()) == rare_score(users, user("!")) == 0.0


def test_the_threshold_follows_the_noise():
    """96 users with the defaults. Break: √most left out."""
    assert RarityParameters().threshold == 3 * 4 * 8 == 96
    assert RarityParameters(noise_multiplier=1, most=16).threshold == 12


@settings(max_examples=20, deadline=None)
@given(texts=TEXTS, draw=st.integers(0, 5), noise=st.sampled_from([0.1, 1.0, 50.0]))
def test_scores_are_numbers_in_the_range_and_any_order_of_records_scores_alike(texts, draw, noise):
    """Break: no cut at 1; the mean of negative noise below 0; the first records alone looked at."""
    users = [*alike(5, "tide lamp north a b c d e"), user(*texts)]
    for plugin in (
        Rarity(RarityParameters(buckets=64, most=4, noise_multiplier=noise)),
        Overlap(OverlapParameters(size=2, buckets=64, most=4, users=1000, noise_multiplier=noise)),
    ):
        rule = learn(plugin, users, draw)
        found = rule.score(user(*texts))
        assert 0 <= found <= 1
        assert rule.score(user(*reversed(texts))) == found


# --- overlap --------------------------------------------------------------------------------------------------


def shared_score(users, who, **parameters):
    given = {"size": 3, "most": 8, "buckets": 4096, "users": 20.0, "noise_multiplier": QUIET} | parameters
    return learn(Overlap(OverlapParameters(**given)), users, 0).score(who)


def test_zero_is_own_text_and_one_is_what_so_many_others_have():
    """Break: the user counted among the others; words in place of runs of them; no scale."""
    users = [*alike(41, "the tide comes in at noon"), *alike(11, "a lamp burns in the north"), user("nobody says this")]
    assert shared_score(users, users[0]) == pytest.approx(1.0, abs=0.02)
    assert shared_score(users, users[41]) == pytest.approx(0.5, abs=0.05)
    assert shared_score(users, users[-1]) == pytest.approx(0.0, abs=0.05)
    assert shared_score(users, user("noon at in comes tide the")) == pytest.approx(0.0, abs=0.05)
    assert shared_score(users, user("the tide comes in", "quite another tale")) == pytest.approx(2 / 3, abs=0.05)
    assert shared_score(users, user("tide")) == 0.0


def test_noise_averages_out_over_the_shingles_of_a_user():
    """Of a text that nobody shares the mean over 64 shingles is off by 4 × 8 / 64 / √64 = 0.06, not by 0.5.

    Break: the counts cut at 0 before their mean (0.2 for everybody). False alarms: 60 draws, 5 standard errors.
    """
    text = " ".join(f"w{i}" for i in range(80))
    rule = [learn(Overlap(OverlapParameters(buckets=4096)), [user(text)], draw) for draw in range(60)]
    found = [float(np.mean([one.shared[i] for i in range(64)])) for one in rule]
    assert abs(np.mean(found)) < 5 * 0.063 / math.sqrt(60)
    assert np.std(found) < 0.1


# --- made text, whose truth is known ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population():
    """300 support customers, of whom 18 write about a rare topic or in an odd style."""
    return Population(
        SyntheticParameters.model_validate(
            {
                "scenario": "support",
                "users": 300,
                "seed": 1,
                "records": {"law": "fixed", "count": 4},
                "outliers": {"fraction": 0.06, "kinds": ["topic", "style"]},
            }
        )
    )


def test_unusual_users_have_rarer_words(population):
    """AUC, with noise of 8 users on each count, for three draws of it. Break: the share of common words scored."""
    users = [user(*population.texts(i)) for i in range(300)]
    unusual = np.array([population.truth(i).outlier is not None for i in range(300)])
    for draw in range(3):
        rule = learn(Rarity(RarityParameters(noise_multiplier=1.0)), users, draw)
        found = np.array([rule.score(one) for one in users])
        above = (found[unusual][:, None] > found[~unusual][None]).mean()
        assert above + (found[unusual][:, None] == found[~unusual][None]).mean() / 2 > 0.9


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"few": 20}, "few: must be at least 32 "),
        ({"most": 200, "buckets": 100}, r"most: must be at most buckets \(100\)"),
        ({"unit": "words"}, "word"),
    ],
)
def test_parameters_that_mean_nothing(parameters, message):
    """Break: `_fits` left out."""
    with pytest.raises(ValueError, match=message):
        RarityParameters.model_validate(parameters)
    with pytest.raises(ValueError, match="users: must be at least 32 "):
        OverlapParameters(users=20)
