"""Sampling of examples: which ones a user keeps for the whole run, and who of them is in a step.

Statistical tests run under one fixed key; each p-value is held to be above 1e-6.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from harness.data.cohorts import Unit, deal, draw_cohort, kept_examples, micro_batches
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness
from tests.data.test_cohorts import FALSE_ALARM, KEY, Corpus

USERS = 90
CORPUS = Corpus([u % 7 for u in range(USERS)])
MEMBERS = [np.arange(0, 60, dtype=np.int64), np.arange(60, USERS, dtype=np.int64)[::-1].copy()]
LIGHT = GroupMechanism("light", 60.0, 0.15, 0.6, 30, 3)
HEAVY = GroupMechanism("heavy", 30.0, 0.4, 0.25, 10, 2)
MECHANISM = Mechanism(30, 0.9, (LIGHT, HEAVY), "add_or_remove", "example")


def draw(step=0, *, mechanism=MECHANISM, members=MEMBERS, corpus=CORPUS, key=KEY):
    return draw_cohort(mechanism, members, corpus, Randomness(key), step)


def longer(steps, **changes):
    """The mechanism with so many steps, in all of which every group takes part."""
    groups = tuple(dataclasses.replace(g, steps=steps, **changes) for g in MECHANISM.groups)
    return dataclasses.replace(MECHANISM, steps=steps, groups=groups)


# --- what is kept -------------------------------------------------------------------------------------------


def test_a_user_keeps_the_same_examples_for_the_whole_run():
    """At most G_p, whatever is drawn: in 60 steps nobody shows more than that. Red when the choice is made per step
    (the step in its address), or when G of another group is taken.
    """
    mechanism = longer(60)
    shown = {u: set() for u in range(USERS)}
    for step in range(60):
        for unit in draw(step, mechanism=mechanism):
            shown[unit.user].update(unit.examples)
    for members, group in zip(MEMBERS, MECHANISM.groups, strict=True):
        for user in members.tolist():
            kept = kept_examples(CORPUS, user, group.examples_per_user, Randomness(KEY))
            first, last = CORPUS.examples_of(user)
            assert len(kept) == len(set(kept)) == min(group.examples_per_user, last - first)
            assert all(first <= e < last for e in kept)
            assert shown[user] == set(kept)  # sixty draws leave none out


def test_kept_examples_are_a_uniform_choice():
    """3 of 6, by 4,000 users: each place is kept half of the time (false alarm 1e-6 each), and each of the 20 subsets
    alike (χ², false alarm 1e-6). Red when the first ones are kept.
    """
    corpus = Corpus([6] * 4000)
    chosen = [tuple(e % 6 for e in kept_examples(corpus, u, 3, Randomness(KEY))) for u in range(4000)]
    places = Counter(itertools.chain.from_iterable(chosen))
    assert all(stats.binomtest(places[j], 4000, 0.5).pvalue > FALSE_ALARM for j in range(6))
    subsets = Counter(chosen)
    assert len(subsets) == 20
    assert stats.chisquare(list(subsets.values())).pvalue > FALSE_ALARM


def test_the_choice_is_the_users_own():
    """The user moves to another place, because others came before: the same examples. Red when the choice is addressed
    by the user's number in the corpus.
    """
    counts, names = [9] * 12, [f"name-{u:02d}" for u in range(12)]
    before = Corpus(counts, names=names)
    after = Corpus([5, 1, *counts], names=["a", "b", *names])
    for user in range(12):
        own, moved = (
            kept_examples(corpus, place, 3, Randomness(KEY)) for corpus, place in ((before, user), (after, user + 2))
        )
        first, later = before.examples_of(user)[0], after.examples_of(user + 2)[0]
        assert [e - first for e in own] == [e - later for e in moved]
    everybody = {tuple(e % 9 for e in kept_examples(before, u, 3, Randomness(KEY))) for u in range(12)}
    assert len(everybody) > 6  # and not one choice for all
    assert kept_examples(before, 0, 3, Randomness(KEY[::-1])) != kept_examples(before, 0, 3, Randomness(KEY))


# --- who is drawn -------------------------------------------------------------------------------------------


def test_each_kept_example_is_drawn_at_the_groups_rate():
    """600 steps: every kept example's frequency, false alarm 1e-6 each (about 200 of them). Red when the rate is shared
    among a user's examples (q/G), or the first group's is taken for all.
    """
    mechanism = longer(600)
    seen = Counter(e for step in range(600) for unit in draw(step, mechanism=mechanism) for e in unit.examples)
    for members, group in zip(MEMBERS, mechanism.groups, strict=True):
        for user in members.tolist():
            for example in kept_examples(CORPUS, user, group.examples_per_user, Randomness(KEY)):
                assert stats.binomtest(seen[example], 600, group.sampling_rate).pvalue > FALSE_ALARM
    assert len(seen) == sum(
        min(c % 7, g.examples_per_user) for m, g in zip(MEMBERS, MECHANISM.groups, strict=True) for c in m.tolist()
    )


def test_examples_of_one_user_are_drawn_independently():
    """The number of a user's examples in a step is binomial: 40 users × 300 steps, χ² against Binom(3, 0.4), false
    alarm 1e-6. Red when one coin decides for all of a user's examples.
    """
    group = dataclasses.replace(LIGHT, sampling_rate=0.4, steps=300)
    mechanism = Mechanism(300, 0.9, (group,), "add_or_remove", "example")
    counts = Counter()
    for step in range(300):
        drawn = Counter(
            u.user for u in draw(step, mechanism=mechanism, members=[np.arange(40)], corpus=Corpus([5] * 40))
        )
        counts.update(drawn[user] for user in range(40))
    expected = stats.binom.pmf(range(4), 3, 0.4) * 300 * 40
    assert stats.chisquare([counts[k] for k in range(4)], expected).pvalue > FALSE_ALARM


def test_two_examples_of_a_user_are_two_units():
    """Each has its own gradient, clip norm and number of targets. Red when a user's examples are one unit."""
    mechanism = longer(4, sampling_rate=1.0)
    units = draw(0, mechanism=mechanism)
    assert all(len(u.examples) == 1 for u in units)
    assert all(u.targets == int(CORPUS.example_targets[u.examples[0]]) for u in units)
    several = Counter(u.user for u in units)
    assert max(several.values()) == 3
    assert len({u.examples for u in units}) == len(units)
    for unit in units:
        first, last = CORPUS.examples_of(unit.user)
        assert first <= unit.examples[0] < last
        assert unit.user in MEMBERS[unit.group]


def test_places_without_an_example_contribute_nothing():
    """Users with none, fewer than G, or only such without a token to predict. Red when a place beyond the user's
    examples is filled (with the last one, say): its owner would count more often than is accounted.
    """
    corpus = Corpus([0, 1, 2, 5], [9, 1, 6, 3, 3, 3, 3, 3])
    group = dataclasses.replace(LIGHT, sampling_rate=1.0, steps=1, examples_per_user=4)
    found = draw(
        0, mechanism=Mechanism(1, 0.9, (group,), "add_or_remove", "example"), members=[np.arange(4)], corpus=corpus
    )
    assert found[:2] == [Unit(1, 0, (0,), 8), Unit(2, 0, (2,), 5)]
    assert [u.user for u in found[2:]] == [3] * 4
    assert draw(0, members=[np.arange(0), np.arange(0)]) == []


def test_a_group_enters_in_its_steps_alone():
    """Red when `takes_part` is not asked."""
    for step in range(30):
        groups = {u.group for u in draw(step)}
        assert groups == ({0, 1} if MECHANISM.takes_part(1, step) else {0})


def test_one_users_records_move_no_other_user():
    """More or fewer records of one user; the others' draws stay. Red when places are numbered over the examples that
    there are, in place of G for everybody.
    """
    counts = [2] * USERS
    base, grown, emptied = (Corpus([new if u == 7 else c for u, c in enumerate(counts)]) for new in (2, 9, 0))

    def others(corpus, step):
        return [
            (u.user, u.examples[0] - corpus.examples_of(u.user)[0]) for u in draw(step, corpus=corpus) if u.user != 7
        ]

    assert any(u.user == 7 for step in range(10) for u in draw(step, corpus=grown))
    for step in range(10):
        assert others(base, step) == others(grown, step) == others(emptied, step)


def test_the_cost_grows_with_the_cohort():
    """100,000 users with 100 places each, of which a few are drawn. Red when every place is looked at."""
    users = 100_000
    corpus = Corpus([1] * 10)
    corpus.examples_of = lambda user: (user % 10, user % 10 + 1)
    corpus.user_id = str
    group = GroupMechanism("one", float(users), 1e-6, 1.0, 3, 100)
    randomness = Randomness(KEY)
    asked = []
    real = randomness.uniforms
    randomness.uniforms = lambda *a: asked.append(a[-1]) or real(*a)
    draw_cohort(Mechanism(3, 1.0, (group,), "zero_out", "example"), [np.arange(users)], corpus, randomness, 0)
    assert 0 < sum(asked) < 1000


# --- on workers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_cohort_of_a_step_is_the_same_for_any_number_of_workers(workers):
    """Every sampled example once, on one worker, as a unit of its own. Red when the deal drops a user's second unit."""
    mechanism = longer(5, sampling_rate=0.7)
    cohort = draw(3, mechanism=mechanism)
    assert max(Counter(u.user for u in cohort).values()) > 1
    dealt = []
    for share in deal(draw(3, mechanism=mechanism), workers):
        batches = micro_batches(share, CORPUS.example_lengths, 16)
        assert not any(b.continues for b in batches)
        for batch in batches:
            assert batch.slots == tuple(range(len(batch.examples)))
            assert tuple(u.examples[0] for u in batch.units) == batch.examples
            dealt.extend(batch.units)
    assert sorted(dealt, key=lambda u: u.examples) == sorted(cohort, key=lambda u: u.examples)


def test_the_deal_does_not_depend_on_the_order():
    """Two units of one user and one length. Red when the user's number alone breaks ties."""
    units = [Unit(4, 0, (e,), 5) for e in (8, 9, 10)]
    for order in itertools.permutations(units):
        assert deal(order, 2) == deal(units, 2)
        assert micro_batches(order, np.full(20, 6, dtype=np.int32), 12) == micro_batches(
            units, np.full(20, 6, dtype=np.int32), 12
        )
