"""The training users of a group are found without a list of them, and are the same users in the same order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.cohorts import draw_cohort
from harness.data.members import BLOCK, GroupMembers
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness
from tests.data.test_cohorts import Corpus


def made(users: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Groups -1 to 2, and hold-out users."""
    draw = np.random.default_rng(seed)
    return draw.integers(-1, 3, users).astype(np.int16), draw.random(users) < share


def listed(groups: np.ndarray, holdout: np.ndarray, group: int) -> np.ndarray:
    return np.flatnonzero((groups == group) & ~holdout)


@settings(max_examples=60, deadline=None)
@given(users=st.integers(0, 3 * BLOCK + 1), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 9))
def test_they_are_those_of_a_list(users: int, share: float, seed: int) -> None:
    """Broken by `side="left"` in the search among the counts, and by hold-out users that are let in."""
    groups, holdout = made(users, share, seed)
    for group in range(4):
        members = GroupMembers(groups, holdout, group)
        expected = listed(groups, holdout, group)
        assert len(members) == len(expected)
        assert members[np.arange(len(expected))].tolist() == expected.tolist()
        assert [int(u) for u in members] == expected.tolist()


def test_places_come_in_any_order_and_blocks_may_be_empty() -> None:
    """Red when the search assumes that every block has a member. (The chunks of counting are crossed as well.)"""
    groups = np.full(20 * BLOCK * 1024 + 5, -1, dtype=np.int16)
    groups[[0, 1, 5 * BLOCK - 1, 5 * BLOCK, BLOCK << 13, -1]] = 0
    members = GroupMembers(groups, np.zeros(len(groups), dtype=np.bool_), 0)
    expected = np.flatnonzero(groups == 0)
    places = np.array([[5, 0], [3, 3], [4, 2]])
    assert members[places].tolist() == expected[places].tolist()


def test_there_is_nobody_beyond_the_last_place() -> None:
    """Red without the check: a place that is wrong would name somebody of another group."""
    members = GroupMembers(*made(300, 0.2), 1)
    for place in (-1, len(members)):
        with pytest.raises(IndexError):
            members[np.array([place])]


@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_cohort_is_the_same_as_from_a_list(unit: str) -> None:
    """Who is drawn may not depend on how users are found (mechanism: the cohort is a function of the key)."""
    groups, holdout = made(2000, 0.1)
    corpus = Corpus([u % 5 for u in range(2000)])
    kinds = tuple(GroupMechanism(str(g), 500.0, 0.1, 0.5, 5, 3) for g in range(3))
    mechanism = Mechanism(5, 0.9, kinds, "add_or_remove", unit)
    found, lists = ([make(groups, holdout, g) for g in range(3)] for make in (GroupMembers, listed))
    for step in range(5):
        drawn = draw_cohort(mechanism, found, corpus, Randomness(bytes(range(32))), step)
        assert drawn == draw_cohort(mechanism, lists, corpus, Randomness(bytes(range(32))), step)
        assert drawn
