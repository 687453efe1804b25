"""Canaries: drawn by the key, sampled like anybody of their group, in with probability ½, and nobody else's matter."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from harness.data import canaries
from harness.data.canaries import Canary, Planted, PlantedCorpus, PlantedMembers
from harness.data.cohorts import draw_cohort
from harness.data.members import GroupMembers
from harness.data.store import Corpus
from harness.errors import MachineError
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness
from harness.spec.audit_block import AuditBlock

KEY = bytes(range(32))
AUDIT = AuditBlock.model_validate({"one_run": {"canaries": 402}, "extraction": {"secrets": 31, "copies": 3}})
PLACES = canaries.places(AUDIT, ("gradient", "text"), 3)
FALSE_ALARM = 1e-6


class Examples:
    """Of made users: user u has u % 4 examples of three tokens."""

    n_users = 60

    def __init__(self):
        self.edges = np.concatenate([[0], np.cumsum([u % 4 for u in range(self.n_users)])])
        self.example_lengths = np.full(self.edges[-1], 3, dtype=np.int32)
        self.example_targets = self.example_lengths - 1

    def examples_of(self, user):
        return int(self.edges[user]), int(self.edges[user + 1])

    def user_id(self, user):
        return f"user-{user}"

    def tokens(self, example):
        return np.array([example % 50, 1, 2], dtype=np.int32)

    def targets(self, example):
        return np.array([False, True, False])


def drawn(key: bytes = KEY, copies=(1, 1, 1), found=PLACES) -> tuple[Canary, ...]:
    return canaries.draw(
        found,
        Randomness(key),
        encode=lambda text: [ord(c) for c in text],
        vocabulary=range(100, 200),
        max_tokens=40,
        copies=copies,
        extraction=AUDIT.extraction,
    )


def test_they_are_dealt_evenly_to_kinds_and_groups():
    """Break: `number % groups` for the group, which goes in step with the kinds."""
    counts = Counter((p.kind, p.group) for p in PLACES)
    assert set(counts) == {(kind, group) for kind in ("gradient", "text", "secret") for group in range(3)}
    for kind, total in (("gradient", 201), ("text", 201), ("secret", 31)):
        own = [counts[kind, group] for group in range(3)]
        assert sum(own) == total
        assert max(own) - min(own) <= 1
    two = Counter((p.kind, p.group) for p in canaries.places(AUDIT, ("gradient", "text"), 2))
    assert all(two[kind, group] in (100, 101) for kind in ("gradient", "text") for group in (0, 1))
    assert canaries.places(None, (), 3) == ()
    assert {p.kind for p in canaries.places(AUDIT, ("text",), 3)} == {"text", "secret"}


def test_they_follow_from_the_key_alone(tmp_path):
    """Break: any draw from another source than the key."""
    assert drawn() == drawn()
    assert drawn() != drawn(bytes(32))
    path = tmp_path / "canaries.json"
    canaries.save(drawn(), path)
    assert canaries.load(path) == drawn()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("copies", [1, 2, 64])
def test_copies_are_written_once(tmp_path, copies):
    """Of 64 examples that are one, a file is no larger than of one. Break: all of `examples` written."""
    path, alone = tmp_path / "canaries.json", tmp_path / "alone.json"
    some = canaries.places(AuditBlock.model_validate({"one_run": {"canaries": 40}}), ("gradient", "text"), 1)
    found = drawn(found=some, copies=(copies,))
    canaries.save(found, path)
    canaries.save(drawn(found=some, copies=(1,)), alone)
    assert canaries.load(path) == found
    assert all(len(c.examples) == copies for c in found)
    assert path.stat().st_size < 1.1 * alone.stat().st_size


@pytest.mark.parametrize("content", ["", '{"canaries": [{"kind"', '{"canaries": [{"kind": "text", "group": 0}]}', "[]"])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path, content):
    """Cut off by a full disk, or edited. Break: `load` without its `suppress`."""
    path = tmp_path / "canaries.json"
    path.write_text(content)
    with pytest.raises(MachineError, match="are missing or damaged") as caught:
        canaries.load(path)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(MachineError, match="are missing or damaged"):
        canaries.load(path)


def test_each_is_in_with_probability_one_half():
    """Two-sided binomial test over 400 keys; false-alarm rate 1e-6. Break: probability 0.45."""
    heads = sum(c.included for seed in range(400) for c in drawn(seed.to_bytes(32, "big"), found=PLACES[:50]))
    assert stats.binomtest(heads, 400 * 50, 0.5).pvalue > FALSE_ALARM


def test_what_they_hold():
    """Break: a code that is cut off; texts beyond the longest example; special tokens."""
    for canary in drawn(copies=(1, 5, 1)):
        expected = {"gradient": 5 if canary.group == 1 else 1, "text": 5 if canary.group == 1 else 1, "secret": 3}
        assert len(canary.examples) == expected[canary.kind]
        assert all(len(example) <= 40 for example in canary.examples)
        if canary.kind == "text":
            assert all(100 <= token < 200 for token in canary.examples[0])
            assert len(canary.examples[0]) == canaries.LONGEST_TEXT
        if canary.kind == "secret":
            assert len(canary.code) == 6
            assert all("".join(map(chr, text)).endswith(f"{canary.code}.") for text in canary.examples)
    codes = [c.code for c in drawn() if c.kind == "secret"]
    assert len(set(codes)) == len(codes)


# --- among the users ----------------------------------------------------------------------------------------


def mechanism(unit="user", planted=True) -> Mechanism:
    groups = tuple(GroupMechanism(n, 20.0, q, 1.0, 40, 3) for n, q in (("a", 0.3), ("b", 0.1), ("c", 0.5)))
    found = Mechanism(40, 1.0, groups, "zero_out", unit)
    counts = Counter(p.group for p in PLACES)
    return found.planted([counts[g] for g in range(3)]) if planted else found


def planted(made: tuple[Canary, ...]) -> tuple[PlantedCorpus, list[PlantedMembers], Planted, list[GroupMembers]]:
    corpus = Examples()
    groups = np.arange(60, dtype=np.int16) % 3
    members = [GroupMembers(groups, np.zeros(60, dtype=np.bool_), g) for g in range(3)]
    beside = Planted.beside(corpus, made)
    with_them = [PlantedMembers(m, beside.in_group(g)) for g, m in enumerate(members)]
    return PlantedCorpus(corpus, beside), with_them, beside, members


@pytest.mark.parametrize("unit", ["user", "example"])
def test_nobody_else_is_drawn_differently(unit):
    """Trap 1: the cohort of users is the same with and without canaries. Break: canaries before the users."""
    made = drawn(copies=(3, 3, 3))
    corpus, with_them, beside, members = planted(made)
    for step in range(40):
        several = draw_cohort(mechanism(unit), with_them, corpus, Randomness(KEY), step)
        users = [unit for unit in several if beside.number(unit.user) is None]
        assert users == draw_cohort(mechanism(unit, planted=False), members, Examples(), Randomness(KEY), step)


@pytest.mark.parametrize("unit", ["user", "example"])
def test_those_that_are_in_are_drawn_at_their_groups_rate_and_the_others_never(unit):
    """Binomial tests, false-alarm rate 1e-6. Break: the other groups' rate; a canary that is left out drawn anyway."""
    made = drawn(copies=(3, 3, 3))
    corpus, with_them, beside, _ = planted(made)
    counts: Counter[int] = Counter()
    for step in range(40):
        for one in draw_cohort(mechanism(unit), with_them, corpus, Randomness(KEY), step):
            number = beside.number(one.user)
            if number is not None:
                counts[number] += 1
                assert one.group == made[number].group
    assert all(made[number].included for number in counts)
    for g, group in enumerate(mechanism(unit).groups):
        own = [i for i, c in enumerate(made) if c.group == g and c.included]
        total = sum(counts[i] for i in own)
        trials = 40 * len(own) * (3 if unit == "example" else 1)
        assert stats.binomtest(total, trials, group.sampling_rate).pvalue > FALSE_ALARM


def test_directions_are_told_from_texts_and_texts_can_be_read():
    """Break: a direction among the texts, whose stand-in tokens would be trained on."""
    made = drawn()
    corpus, with_them, beside, _ = planted(made)
    texts, directions = beside.split(draw_cohort(mechanism(), with_them, corpus, Randomness(KEY), 0))
    kinds = {made[n].kind for one in texts if (n := beside.number(one.user)) is not None}
    assert kinds == {"text", "secret"}
    assert {made[beside.number(one.user) or 0].kind for one in directions} == {"gradient"}
    one = next(one for one in texts if beside.number(one.user) is not None)
    number = beside.number(one.user)
    assert number is not None
    assert corpus.tokens(one.examples[0]).tolist() in [list(e) for e in made[number].examples]
    assert corpus.targets(one.examples[0]).tolist() == [False] + [True] * (len(corpus.tokens(one.examples[0])) - 1)
    assert int(corpus.example_lengths[one.examples[0]]) == len(corpus.tokens(one.examples[0]))
    assert one.targets == sum(len(corpus.tokens(e)) - 1 for e in one.examples)
    assert corpus.user_id(5) == "user-5"
    assert corpus.user_id(60).startswith("\0")
    assert isinstance(corpus.tokens(3), np.ndarray)


def test_only_the_corpuss_own_examples_are_fetched(monkeypatch):
    """Those of canaries lie nowhere else. Break: ask the corpus for all."""
    corpus, *_ = planted(drawn())
    asked: list[int] = []
    monkeypatch.setattr(Examples, "fetch", lambda self, examples: asked.extend(examples), raising=False)
    corpus.fetch(range(len(corpus.example_lengths)))
    assert asked == list(range(len(Examples().example_lengths)))
    assert len(asked) < len(corpus.example_lengths)


def test_they_count_in_the_denominator_and_nowhere_else():
    """Trap 4. Break: canaries left out of `units`, or counted in an event."""
    with_them, without = mechanism(), mechanism(planted=False)
    counts = Counter(p.group for p in PLACES)
    more = sum(counts[g] * group.sampling_rate for g, group in enumerate(without.groups))
    assert with_them.denominator(0) == pytest.approx(without.denominator(0) + more)
    assert with_them.event(0) == without.event(0)
    assert with_them.digest != without.digest
    assert with_them.without_privacy() == without.without_privacy()
    assert Mechanism.from_dict(with_them.to_dict()) == with_them
    with pytest.raises(ValueError, match="canaries"):
        dataclasses.replace(with_them.groups[0], canaries=-1)


def test_a_corpus_is_what_they_are_planted_beside():
    """The protocol that training reads is the real corpus's. Break: a renamed method of either."""
    for name in ("n_users", "examples_of", "user_id", "fetch", "tokens", "targets"):
        assert hasattr(Corpus, name)
        assert hasattr(PlantedCorpus(Examples(), Planted.beside(Examples(), drawn())), name)
