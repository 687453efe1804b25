"""Examples that are left out of a training: a user's last ones, by the user's own number alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.data.holding_back import WithoutLast, held_back
from tests.data.test_canaries import Examples


@given(st.integers(0, 10_000), st.integers(1, 1000))
def test_never_more_than_half_and_never_the_only_one(examples, most):
    """Break: `(examples + 1) // 2`, which leaves a user of one example with none."""
    count = held_back(examples, most)
    assert 0 <= count <= most
    assert 2 * count <= examples
    assert count == most or 2 * (count + 1) > examples


def test_they_are_never_trained_on():
    """Break: the first ones left out, which evaluation and the attack take for fresh."""
    whole = Examples()
    less = WithoutLast(whole, 1)
    for user in range(whole.n_users):
        first, last = whole.examples_of(user)
        assert less.examples_of(user) == (first, last - (1 if last - first >= 2 else 0))
        assert less.user_id(user) == whole.user_id(user)
    assert less.tokens(3).tolist() == whole.tokens(3).tolist()
    assert less.targets(3).tolist() == whole.targets(3).tolist()
    assert less.n_users == whole.n_users
