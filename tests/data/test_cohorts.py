"""Who takes part, on which worker, in which micro-batch: drawn once, dealt whole, never capped.

Statistical tests run under one fixed key; each p-value is held to be above 1e-6.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.data.cohorts import Unit, deal, draw_cohort, micro_batches
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness

KEY = bytes(range(32))
FALSE_ALARM = 1e-6


class Corpus:
    """Examples of made users: user u has `counts[u]` of them, of the given lengths."""

    def __init__(self, counts, lengths=None, names=None):
        self.names = names or [f"user-{u}" for u in range(len(counts))]
        self.edges = np.concatenate([[0], np.cumsum(counts)])
        total = int(self.edges[-1])
        self.example_lengths = np.array(
            [2 + i % 9 for i in range(total)] if lengths is None else lengths, dtype=np.int32
        )
        self.example_targets = self.example_lengths - 1

    def examples_of(self, user):
        return int(self.edges[user]), int(self.edges[user + 1])

    def user_id(self, user):
        return self.names[user]


USERS = 120
CORPUS = Corpus([u % 5 for u in range(USERS)])
MEMBERS = [np.arange(0, 80, dtype=np.int64), np.arange(80, USERS, dtype=np.int64)[::-1].copy()]
LIGHT = GroupMechanism("light", 80.0, 0.15, 0.6, 30, 3)
HEAVY = GroupMechanism("heavy", 40.0, 0.4, 0.25, 10, 2)
MECHANISM = Mechanism(30, 0.9, (LIGHT, HEAVY), "add_or_remove")


def draw(step=0, *, mechanism=MECHANISM, members=MEMBERS, corpus=CORPUS, key=KEY):
    return draw_cohort(mechanism, members, corpus, Randomness(key), step)


# --- the draw -----------------------------------------------------------------------------------------------


def test_a_cohort_is_a_function_of_key_and_step():
    """Break: a generator that remembers (numpy's default) in place of the run's draws, or the step left out."""
    one = [draw(step) for step in range(6)]
    assert [draw(step) for step in reversed(range(6))] == one[::-1]
    for a, b in itertools.combinations(one, 2):
        assert {u.user for u in a} != {u.user for u in b}
    assert draw(0, key=KEY[::-1]) != one[0]


def test_each_group_is_drawn_at_its_own_rate():
    """400 steps; every group's share and every user's. False alarm 1e-6 for each group and user.

    Break: one rate for all, the first group's draws used for the second, or the mean of the rates.
    """
    mechanism = dataclasses.replace(
        MECHANISM, steps=400, groups=tuple(dataclasses.replace(g, steps=400) for g in MECHANISM.groups)
    )
    corpus = Corpus([1] * USERS)
    seen = Counter(u.user for step in range(400) for u in draw(step, mechanism=mechanism, corpus=corpus))
    for members, group in zip(MEMBERS, mechanism.groups, strict=True):
        users = members.tolist()
        share = sum(seen[u] for u in users)
        assert stats.binomtest(share, 400 * len(users), group.sampling_rate).pvalue > FALSE_ALARM
        for user in users:
            assert stats.binomtest(seen[user], 400, group.sampling_rate).pvalue > FALSE_ALARM


def test_groups_are_drawn_independently():
    """Users at the same place of two equal groups. Break: the group's name left out of the draw's address."""
    twin = dataclasses.replace(LIGHT, name="twin", sampling_rate=0.5)
    mechanism = dataclasses.replace(MECHANISM, groups=(dataclasses.replace(LIGHT, sampling_rate=0.5), twin))
    members = [np.arange(0, 60), np.arange(60, 120)]
    corpus = Corpus([1] * USERS)
    both = 0
    for step in range(30):
        users = {u.user for u in draw(step, mechanism=mechanism, members=members, corpus=corpus)}
        both += sum((u in users) == (u + 60 in users) for u in range(60))
    assert stats.binomtest(both, 30 * 60, 0.5).pvalue > FALSE_ALARM


def test_a_group_that_does_not_take_part_is_absent():
    """Break: `takes_part` not asked (steps that the accountant never sees)."""
    for step in range(30):
        groups = {u.group for u in draw(step)}
        assert groups == ({0, 1} if MECHANISM.takes_part(1, step) else {0})


def test_users_are_those_of_their_group():
    """Break: the place among the members taken for the user's index."""
    for step in range(30):
        for unit in draw(step):
            assert unit.user in MEMBERS[unit.group]
            first, last = CORPUS.examples_of(unit.user)
            assert all(first <= e < last for e in unit.examples)
            assert unit.targets == sum(int(CORPUS.example_lengths[e]) - 1 for e in unit.examples)
        users = [u.user for u in draw(step)]
        assert len(users) == len(set(users))


def test_no_more_examples_than_the_mechanism_allows():
    """Break: the contribution bound of the first group for all, or none."""
    for step in range(30):
        for unit in draw(step):
            first, last = CORPUS.examples_of(unit.user)
            assert len(unit.examples) == min(last - first, MECHANISM.groups[unit.group].examples_per_user)
            assert len(set(unit.examples)) == len(unit.examples)


def test_a_users_examples_change_from_step_to_step():
    """Each of four examples alike; false alarm 1e-6. Break: always the first ones."""
    mechanism = Mechanism(400, 0.9, (dataclasses.replace(LIGHT, sampling_rate=1.0, steps=400),), "add_or_remove")
    seen = Counter(
        e
        for step in range(400)
        for u in draw(step, mechanism=mechanism, members=[np.array([0])], corpus=Corpus([4]))
        for e in u.examples
    )
    assert sum(seen.values()) == 400 * 3
    assert all(stats.binomtest(seen[e], 400, 3 / 4).pvalue > FALSE_ALARM for e in range(4))


def test_users_without_usable_examples_contribute_nothing():
    """No examples, or none with a token to predict. Break: ``targets >= 0`` (a division by zero later)."""
    corpus = Corpus([0, 1, 1, 2, 0], [1, 5, 1, 1])
    everybody = Mechanism(1, 0.9, (dataclasses.replace(LIGHT, sampling_rate=1.0, steps=1),), "add_or_remove")
    found = draw(0, mechanism=everybody, members=[np.arange(5)], corpus=corpus)
    assert found == [Unit(2, 0, (1,), 4)]
    assert draw(0, mechanism=everybody, members=[np.arange(0)], corpus=corpus) == []


def test_a_cohort_has_no_maximum_size():
    """At rate 1 everybody is there, however many. Break: any cut of the list."""
    users = 20_000
    corpus = Corpus([1] * users, [3] * users)
    everybody = Mechanism(1, 0.9, (dataclasses.replace(LIGHT, sampling_rate=1.0, steps=1),), "add_or_remove")
    assert len(draw(0, mechanism=everybody, members=[np.arange(users)], corpus=corpus)) == users


def test_one_users_records_move_no_other_user():
    """More or fewer examples of one user. Break: examples numbered over the whole cohort's stream."""
    counts = [2] * USERS
    before = {s: {u.user: len(u.examples) for u in draw(s, corpus=Corpus(counts))} for s in range(10)}
    emptied = Corpus([0 if u == 7 else c for u, c in enumerate(counts)])
    grown = Corpus([9 if u == 7 else c for u, c in enumerate(counts)])
    took_part = False
    for step, users in before.items():
        took_part |= 7 in users
        others = {u: n for u, n in users.items() if u != 7}
        assert {u.user: len(u.examples) for u in draw(step, corpus=emptied)} == others
        units = draw(step, corpus=grown)
        assert {u.user: len(u.examples) for u in units if u.user != 7} == others
        assert any(u.user == 7 for u in units) == (7 in users)
    assert took_part


# --- the deal -----------------------------------------------------------------------------------------------

UNITS = st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=5), max_size=25)


def units_of(shape):
    """Units whose examples have these lengths, and the lengths by example."""
    units, lengths = [], []
    for user, sizes in enumerate(shape):
        examples = tuple(range(len(lengths), len(lengths) + len(sizes)))
        units.append(Unit(user, user % 3, examples, sum(sizes) - len(sizes)))
        lengths.extend(sizes)
    return units, np.array(lengths, dtype=np.int32)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(shape=UNITS, workers=st.integers(1, 5), data=st.data())
def test_every_user_is_dealt_whole_to_one_worker(shape, workers, data):
    """For any number of workers the same cohort, each user once; in whatever order it is given.

    Break: examples dealt one by one, the last units dropped where they don't divide, or a worker's own draw.
    """
    units, _ = units_of(shape)
    shares = deal(units, workers)
    assert len(shares) == workers
    assert sorted((u for share in shares for u in share), key=lambda u: u.user) == units
    assert deal(data.draw(st.permutations(units)), workers) == shares


def test_the_deal_is_even():
    """Break: everything to the first worker."""
    units, _ = units_of([[9] * (1 + i % 4) for i in range(40)])
    loads = [sum(u.targets for u in share) for share in deal(units, 4)]
    assert max(loads) - min(loads) <= 4 * 9
    assert [len(share) for share in deal(units[:1], 3)] == [1, 0, 0]
    assert deal([], 2) == [[], []]


# --- micro-batches ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=UNITS, budget=st.integers(1, 200))
def test_micro_batches_cover_every_row_once_and_keep_units_together(shape, budget):
    """Rows of a unit are neighbours, also across a cut, and only the last unit of a micro-batch goes on.

    Break: rows sorted by length over all units; ``continues`` true of any cut; a row too many in the budget; the
    last micro-batch dropped.
    """
    units, lengths = units_of(shape)
    batches = micro_batches(units, lengths, budget)
    flat = [(e, b.units[s]) for b in batches for e, s in zip(b.examples, b.slots, strict=True)]
    assert sorted(e for e, _ in flat) == list(range(len(lengths)))
    assert all(e in unit.examples for e, unit in flat)
    order = [unit.user for unit, _ in itertools.groupby(unit for _, unit in flat)]
    assert len(order) == len(set(order)) == len(units)
    for batch in batches:
        assert len(batch.examples) == 1 or max(lengths[e] for e in batch.examples) * len(batch.examples) <= budget
        assert list(batch.slots) == sorted(batch.slots)
        assert set(batch.slots) == set(range(len(batch.units)))
    for batch, following in itertools.pairwise(batches):
        assert batch.continues == (batch.units[-1] == following.units[0])
    assert not batches or not batches[-1].continues


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=UNITS, budget=st.integers(1, 2000))
def test_packed_micro_batches_are_micro_batches(shape, budget):
    """Each example once, units together, and within the budget: the examples of a row make up its length.

    Seen red: rows counted without the widest of them.
    """
    units, lengths = units_of(shape)
    batches = micro_batches(units, lengths, budget, pack=True)
    flat = [(e, b.units[s]) for b in batches for e, s in zip(b.examples, b.slots, strict=True)]
    assert sorted(e for e, _ in flat) == list(range(len(lengths)))
    order = [unit.user for unit, _ in itertools.groupby(unit for _, unit in flat)]
    assert len(order) == len(set(order)) == len(units)
    for batch in batches:
        assert padded_tokens(batch, lengths) <= budget or len(batch.examples) == 1
        assert set(batch.lines) == set(range(max(batch.lines) + 1))
    for batch, following in itertools.pairwise(batches):
        assert batch.continues == (batch.units[-1] == following.units[0])
    assert sum(padded_tokens(b, lengths) for b in batches) >= sum(lengths)


def padded_tokens(batch, lengths):
    """Rows times the longest of them."""
    ends = [0] * (max(batch.lines) + 1)
    for example, line in zip(batch.examples, batch.lines, strict=True):
        ends[line] += int(lengths[example])
    return len(ends) * max(ends)


RAGGED = {
    "short texts": lambda draws, n: np.clip(draws.lognormal(3.6, 0.9, n), 4, 512),
    "heavy tail": lambda draws, n: np.clip(draws.pareto(1.1, n) * 20 + 5, 5, 512),
    "even": lambda draws, n: draws.integers(8, 128, n),
    "filled windows and a rest": lambda draws, n: np.where(draws.random(n) < 0.8, 128, draws.integers(10, 128, n)),
}


@pytest.mark.parametrize("examples_per_user", [4, 16])
@pytest.mark.parametrize("kind", RAGGED)
def test_padding_stays_under_a_tenth_on_ragged_lengths(kind, examples_per_user):
    """64 users, 2,048 tokens a micro-batch, up to 512 an example. With a row per example up to 61 % are padding.

    Seen red: rows that are never shared.
    """
    lengths = RAGGED[kind](np.random.default_rng(1), 64 * examples_per_user).astype(np.int32)
    each = np.arange(len(lengths)).reshape(64, -1).tolist()
    units = [Unit(user, 0, tuple(examples), 1) for user, examples in enumerate(each)]
    batches = micro_batches(units, lengths, 2048, pack=True)
    assert 1 - lengths.sum() / sum(padded_tokens(b, lengths) for b in batches) < 0.1
    apart = sum(padded_tokens(b, lengths) for b in micro_batches(units, lengths, 2048))
    assert sum(padded_tokens(b, lengths) for b in batches) < apart


def test_rows_are_shared_only_where_it_pays():
    """Equal lengths fill their rows. Seen red: the widest rows, whatever they cost."""
    units, lengths = units_of([[300] * 4] * 4)
    assert not any(b.packed for b in micro_batches(units, lengths, 1200, pack=True))


def test_the_cut_is_as_late_as_the_budget_allows():
    """Padding counts: three rows of 10 in 30 tokens. Break: the sum of lengths in place of the padded size."""
    units, lengths = units_of([[10], [9], [8], [8]])
    assert [b.examples for b in micro_batches(units, lengths, 30)] == [(0, 1, 2), (3,)]
    assert [b.examples for b in micro_batches(units, lengths, 29)] == [(0, 1), (2, 3)]
    assert [b.examples for b in micro_batches(units, lengths, 1)] == [(0,), (1,), (2,), (3,)]
    assert micro_batches([], lengths, 30) == []


def test_a_unit_may_go_on_over_many_micro_batches():
    """It is one unit throughout: clipped once. Break: the unit cut into two, each of its own."""
    units, lengths = units_of([[7] * 5, [3]])
    batches = micro_batches(units, lengths, 14)
    assert [b.continues for b in batches] == [True, True, False]
    assert [b.units for b in batches] == [(units[0],), (units[0],), (units[0], units[1])]
    assert [b.slots for b in batches] == [(0, 0), (0, 0), (0, 1)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_cohort_of_a_step_is_the_same_for_any_number_of_workers(workers):
    """From the draw to the rows. Break: the number of workers in the draw's address."""
    cohort = draw(3)
    rows = []
    for share in deal(draw(3), workers):
        for batch in micro_batches(share, CORPUS.example_lengths, 16):
            rows.extend(batch.examples)
    assert sorted(rows) == sorted(e for unit in cohort for e in unit.examples)
