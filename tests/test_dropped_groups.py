"""Groups that are not trained on: by public constants, never drawn, evaluated all the same, and said wherever ε is."""

from __future__ import annotations

import json

import pytest

from harness.errors import ArgumentError
from harness.planning import make_plan
from tests.plans import ATTRIBUTE, USAGE, posts, write_spec

SEGMENTS = {"type": "attribute", "column": "plan", "values": ["free", "paid"], "fallback": "paid"}
WEIGHTS = {"free": 0.75, "paid": 0.25}
WORDS = 'that nobody in "paid" is trained on (groups.drop)'


@pytest.fixture
def plan(tmp_path):
    """Plans a changed spec."""
    return lambda records=None, **changes: make_plan(write_spec(tmp_path, records, **changes))


def test_it_is_the_mechanism_of_the_other_users_alone(plan):
    """By hand: 750 users in one group. Red when rates or denominators still count those who are dropped."""
    fewer = plan(segmentation=SEGMENTS, data={"weights": WEIGHTS}, groups={"drop": ["paid"]})
    alone = plan(segmentation={"type": "none"}, data={"population": 750})
    (ours,), (theirs,) = fewer.mechanism.groups, alone.mechanism.groups
    assert ours.name == "free"
    assert (ours.users, ours.sampling_rate, ours.clip_norm) == (theirs.users, theirs.sampling_rate, theirs.clip_norm)
    assert ours.sampling_rate == 20 / 750
    assert fewer.mechanism.noise_std == alone.mechanism.noise_std
    assert fewer.guarantee.epsilon == alone.guarantee.epsilon
    assert [group.name for group in fewer.basis.dropped] == ["paid"]


def test_public_counts_are_those_of_whoever_is_left(plan):
    """Of 35 users 29 are left, and 35 · (29 / 35) is not 29. Red when a share of all users stands for the count."""
    users = posts(35, lambda u: "free" if u < 29 else "paid")
    public = {"population": "public", "weights": "public"}
    found = plan(users, segmentation=ATTRIBUTE, data=public, sampling={"expected": 5}, groups={"drop": ["paid"]})
    (group,) = found.mechanism.groups
    assert (group.name, group.users, group.sampling_rate) == ("free", 29.0, 5 / 29)
    assert dict(found.population.weights) == {"free": 1.0}
    with pytest.raises(ArgumentError, match=r'groups\.drop: "other" is no group that holds anybody'):
        plan(segmentation=ATTRIBUTE, data={"population": "public", "weights": "public"}, groups={"drop": ["other"]})


def test_targets_of_the_others_stay(plan):
    weights = {"free": 0.5, "paid": 0.25, "other": 0.25}
    noise = {"type": "scale", "epsilon": {"free": 8, "paid": 2, "other": 4}}
    found = plan(segmentation=ATTRIBUTE, data={"weights": weights}, noise=noise, groups={"drop": ["paid"]})
    assert found.targets == {"free": 8.0, "other": 4.0}
    assert dict(found.population.weights) == {"free": 0.5 / 0.75, "other": 0.25 / 0.75}
    assert found.population.users == 750


def test_dropping_and_merging_go_together(plan):
    """What is dropped is not merged into anything, and what is left is merged by the weights of whoever is left."""
    weights = {"free": 0.9, "paid": 0.06, "other": 0.04}
    found = plan(segmentation=ATTRIBUTE, data={"weights": weights}, groups={"smallest": 0.1, "drop": ["other"]})
    assert [group.name for group in found.mechanism.groups] == ["rest"]
    assert [[one.name for one in held] for held in found.basis.holds] == [["free", "paid"]]
    assert found.population.users == pytest.approx(960)


def test_it_is_said_wherever_epsilon_is(plan):
    """In the plan, and among the guarantee's assumptions, which reports show. Red when either is silent."""
    found = plan(segmentation=SEGMENTS, data={"weights": WEIGHTS}, groups={"drop": ["paid"]})
    document = json.loads(json.dumps(found.document()))
    assert any(note.startswith('Dropped (groups.drop): nobody in "paid" is trained on') for note in document["notes"])
    assert f"Declared public: {WORDS}." in found.guarantee.document("finished", 10)["assumptions"]
    plain = plan(segmentation=SEGMENTS, data={"weights": WEIGHTS})
    assert not any("Dropped" in note for note in plain.document()["notes"])
    assert not any("groups.drop" in line for line in plain.guarantee.assumptions())


def test_groups_of_own_records_can_be_dropped(plan):
    """By their declared weights: whoever falls into one is private, and never drawn."""
    found = plan(segmentation=USAGE, data={"weights": {"few": 0.6, "many": 0.4}}, groups={"drop": ["many"]})
    assert found.guarantee.own_records
    assert found.population.users == 600


def test_a_run_says_who_is_in_a_dropped_group_in_private_alone(tmp_path):
    """As negative numbers that no group of the mechanism has, one for each dropped group."""
    from harness.data.corpus import build_corpus
    from harness.data.sources.base import Columns
    from harness.running.answers import assigned_groups
    from harness.training.job import Folder, dropped_place
    from tests.tiny import _tokenizer, save_base

    values = {"type": "attribute", "column": "plan", "values": ["free", "paid", "team"], "fallback": "team"}
    kinds = ["free", "paid", "team"]
    weights = {"free": 0.4, "paid": 0.3, "team": 0.3}
    path = write_spec(tmp_path, posts(12, lambda u: kinds[u % 3]), segmentation=values,
                      data={"weights": weights, "max_tokens": 32}, groups={"drop": ["team", "free"]})  # fmt: skip
    found = make_plan(path)
    base = save_base(tmp_path / "base")
    corpus = build_corpus(found.source, Columns.of(found.spec.data), tokenizer=_tokenizer(base),
                          tokenizer_digest="characters", data=found.spec.data, cache_dir=tmp_path / "cache",
                          private_dir=None)  # fmt: skip
    folder = Folder(tmp_path / "run")
    folder.private.mkdir(parents=True)
    groups = assigned_groups(found, corpus, folder, tmp_path / "cache")
    expected = {"paid": 0, "team": dropped_place(0), "free": dropped_place(1)}
    assert [int(g) for g in groups] == [expected[str(corpus.attributes(u)["plan"])] for u in range(corpus.n_users)]
    assert sorted(set(map(int, groups))) == [-3, -2, 0]
