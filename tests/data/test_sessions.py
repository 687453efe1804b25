"""A session on a corpus: whom it asks, what it charges nobody twice for, and the rule that it leads to."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from harness.data import sessions
from harness.data.groups import assign_groups
from harness.data.sessions import open_session
from harness.errors import ArgumentError, MachineError
from harness.plugins import Query
from harness.privacy.randomness import Randomness
from tests.data import rules
from tests.data.rules import SECRET, Learner, LearnerParameters

QUIET = 1e-6
"""So little noise that an answer shows the exact one: for tests alone."""


@pytest.fixture
def made(posts, write_jsonl, make_data, build):
    """40 users with one to five posts, and two without a usable record."""
    return build(make_data(write_jsonl([*posts, {"user": "silent", "text": ""}, {"user": "mute", "text": None}])))


def opened(corpus, folder, queries, run="run", key=bytes(32)):
    users = corpus.users(holdout=False)
    return open_session(corpus, users, queries, Randomness(key), folder / run / "private", folder / "sessions")


def training(corpus):
    return [int(u) for u in corpus.users(holdout=False) if corpus.n_records[u] > 0]


def test_what_the_harness_asks_itself(made, tmp_path):
    """Red when held-out users, or users without records, are counted."""
    groups = np.arange(made.n_users) % 3 - 1
    queries = (
        sessions.users_query(QUIET),
        sessions.group_sizes_query(("a", "b"), QUIET),
        sessions.examples_query(QUIET),
        sessions.examples_query(QUIET, quantile=0.9, largest=4, name="many"),
    )
    session = opened(made, tmp_path, queries)
    own = training(made)
    assert 0 < len(own) < made.n_users - 2
    assert session.count_users().value == pytest.approx(len(own), abs=1e-4)
    sizes = [sum(groups[u] == g for u in own) for g in (0, 1)]
    assert session.group_sizes(groups).value == pytest.approx(sizes, abs=1e-4)
    counts = sorted(int(made.n_examples[u]) for u in own)
    found = session.examples_per_user().value
    assert abs(found - np.median(counts)) <= max(1, np.median(counts) / 2)
    assert session.examples_per_user("many").value <= 3.5
    with pytest.raises(ArgumentError, match="session: this query was not declared"):
        session.count_users("median")
    with pytest.raises(ArgumentError, match="was answered already, for another statistic"):
        session.group_sizes(groups[::-1])


def test_queries_that_can_not_be_declared_are_one_line(made, tmp_path):
    """Red when the plugin's error is let through."""
    with pytest.raises(ArgumentError, match='session: the query "users" is declared twice'):
        opened(made, tmp_path, (sessions.users_query(1.0), sessions.users_query(2.0)))


def learner(how="median", **parameters):
    return Learner(LearnerParameters(how=how, **parameters))


def test_a_learned_rule_puts_every_user_into_a_segment(made, tmp_path):
    """Red when the rule is asked of somebody else's records, or users without records fail."""
    rule = learner(noise=QUIET)
    session = opened(made, tmp_path, rule.queries)
    private = tmp_path / "run" / "private"
    groups = assign_groups(made, rule, rule.segments, private_dir=private, session=session)
    edge = json.loads(json.loads((private / "rule.json").read_text())["rule"]["attributes"])["edge"]
    tokens = [sum(made.own_records(u).token_counts) for u in range(made.n_users)]
    assert groups.tolist() == [int(t >= edge) for t in tokens]
    assert 0.2 < groups[training(made)].mean() < 0.8
    for name in ("session.json", "rule.json"):
        assert stat.S_IMODE((private / name).stat().st_mode) == 0o600


def test_a_resumed_run_has_the_same_rule_and_asks_nothing(made, tmp_path, monkeypatch):
    """Red when the rule is not kept, or kept for another segmenter."""
    rule = learner(noise=3.0)
    first = opened(made, tmp_path, rule.queries).fit(rule)
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "run_fit", None)
        assert opened(made, tmp_path, rule.queries, key=bytes([1]) * 32).fit(rule) == first
    (tmp_path / "run" / "private" / "rule.json").unlink()  # a crash before it was written
    assert opened(made, tmp_path, rule.queries, key=bytes([1]) * 32).fit(rule) == first
    other = learner("rounds", noise=3.0)
    (tmp_path / "run" / "private" / "session.json").unlink()
    assert opened(made, tmp_path, other.queries).fit(other) != first


def test_another_run_on_the_same_data_is_told_the_same(made, tmp_path):
    """Red when answers are not kept in the cache; or when they are found for other users."""
    rule = learner(noise=3.0)
    first = opened(made, tmp_path, rule.queries).fit(rule)
    assert opened(made, tmp_path, rule.queries, "second", key=bytes([1]) * 32).fit(rule) == first
    users = made.users(holdout=False)[:-1]
    private, cache = tmp_path / "third" / "private", tmp_path / "sessions"
    fewer = open_session(made, users, rule.queries, Randomness(bytes([1]) * 32), private, cache)
    assert fewer.fit(rule) != first


@pytest.mark.parametrize(
    "how", ["raises", "exits", "ends", "huge", "huge integer", "nan", "infinite", "text", "list", "deep", "none",
            "object", "dictionary", "sly", "large"],
)  # fmt: skip
def test_whatever_one_user_contributes_it_is_bounded_and_nothing_is_said(
    how, write_jsonl, make_data, build, tmp_path, monkeypatch
):
    """One of six users brings the statistic to misbehave; the sum moves by no more than that user's bound.

    Red when an answer is not clipped, or when a failure on somebody's records stops the run, which would tell of them.
    """
    lines = [{"user": f"u{i}", "text": SECRET if i == 2 else "words"} for i in range(6)]
    made = build(make_data(write_jsonl(lines)))
    session = open_session(
        made,
        np.arange(6),
        (Query("sum", "sum", QUIET, low=-2.0, high=2.0),),
        Randomness(bytes(32)),
        tmp_path / "private",
        tmp_path / "sessions",
    )
    found = session._declared.answer("sum", sessions.portable.describe(rules.Failing(how)))
    assert 3.0 - 1e-3 <= found.value <= 7.0 + 1e-3
    assert found.value == pytest.approx(7.0 if how in ("huge", "sly") else 5.0, abs=1e-3)


def test_what_fails_for_anybody_is_said_before_a_record_is_read(made, tmp_path, monkeypatch, capfd):
    """Red when the made users are not asked first."""
    rule = learner("failing")
    session = opened(made, tmp_path, rule.queries)
    monkeypatch.setattr(type(made), "own_records", None)
    with pytest.raises(ArgumentError, match="Learner raised an error, or took too long, for a made user"):
        session.fit(rule)
    assert capfd.readouterr() == ("", "")


def test_what_a_statistic_prints_is_private(made, tmp_path, capfd):
    """Red when the room's log goes to the console."""
    rule = learner("loud", noise=QUIET)
    opened(made, tmp_path, rule.queries).fit(rule)
    assert capfd.readouterr() == ("", "")
    assert "post 0 of 1" in (tmp_path / "run" / "private" / "plugin-errors.log").read_text()


def test_a_built_in_segmenter_learns_the_same_in_this_process(made, tmp_path, monkeypatch):
    """Red when its statistics keep something from one user for the next, or a rule of another kind is taken."""
    rule = learner(noise=3.0)
    first = opened(made, tmp_path, rule.queries).fit(rule)
    monkeypatch.setattr(sessions.asking, "is_built_in", lambda thing: True)
    monkeypatch.setattr(sessions, "run_fit", None)
    (tmp_path / "sessions" / "answers").rename(tmp_path / "gone")
    assert opened(made, tmp_path, rule.queries, "two").fit(rule) == first
    counting = opened(made, tmp_path, (Query("sum", "sum", QUIET, low=0.0, high=1.0),), "three")
    counting._users.trusted.append(True)
    for how in ("attribute", "class_attribute"):
        found = counting._users.values(sessions.portable.describe(rules.Attack(how)))
        assert sum(found) == (0.0 if how == "attribute" else len(training(made)) - 1)  # our own code is trusted
    for how, message in (("no rule", "gave no own-records rule"), ("raises", "raised an error")):
        with pytest.raises(ArgumentError, match=message):
            opened(made, tmp_path, rule.queries, how).fit(learner(how))


def test_a_damaged_rule_is_one_line(made, tmp_path):
    """Red when it is taken for none, or comes as a traceback."""
    rule = learner()
    session = opened(made, tmp_path, rule.queries)
    (tmp_path / "run" / "private").mkdir(parents=True)
    (tmp_path / "run" / "private" / "rule.json").write_text("{")
    with pytest.raises(MachineError, match=r"rule\.json is damaged"):
        session.fit(rule)
