"""Hold-out users: picked by their name alone."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from harness.data.holdout import holdout_order, is_holdout

NAMES = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1)


@given(NAMES, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_holds_out_all_that_a_smaller_one_does(user, a, b):
    small, large = sorted((a, b))
    assert is_holdout(user, "posts", large) or not is_holdout(user, "posts", small)


def test_nobody_and_everybody():
    users = [f"user {i}" for i in range(1000)]
    assert not any(is_holdout(user, "posts", 0.0) for user in users)
    assert all(is_holdout(user, "posts", 1.0) for user in users)


def test_the_fraction_is_met():
    n, fraction = 20_000, 0.1
    held = sum(is_holdout(f"user {i}", "posts", fraction) for i in range(n))
    # fixed names, so a fixed outcome; five standard deviations of a binomial around its mean
    assert abs(held - n * fraction) < 5 * math.sqrt(n * fraction * (1 - fraction))


def test_another_data_set_holds_out_others():
    users = [f"user {i}" for i in range(1000)]
    one, two = ({u for u in users if is_holdout(u, name, 0.5)} for name in ("posts", "mail"))
    assert 400 < len(one ^ two) < 600


def test_the_choice_never_changes_between_versions():
    assert holdout_order("hamlet/HAMLET", "shakespeare") == 12850160488439570400
