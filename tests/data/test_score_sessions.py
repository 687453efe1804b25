"""Scores that learn: each asks in a session of its own; tiers are cut at noisy, charged quantiles."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from harness import plugins
from harness.data import sessions
from harness.data.sessions import open_session
from harness.data.tiers import SCORE_GRID, Sensitivity, combined_scores, cut, monotone, score_query
from harness.errors import ArgumentError
from harness.planning import make_plan
from harness.planning.learners import cuts, learners
from harness.privacy import contributions
from harness.privacy.randomness import Randomness, create_key
from harness.running import answers
from harness.training.job import Folder
from tests.data.rules import SECRET
from tests.data.scores import Learner, LearnerParameters
from tests.plans import write_spec

QUIET = 1e-6
"""So little noise that an answer shows the exact one: for tests alone."""


@pytest.fixture
def made(posts, write_jsonl, make_data, build):
    """40 users with one to five posts."""
    return build(make_data(write_jsonl(posts)))


def learner(how="median", noise=QUIET):
    return Learner(LearnerParameters(how=how, noise=noise))


def rarity(**parameters):
    return plugins.sensitivity.build("rarity", {"buckets": 256, "most": 8} | parameters)


def opened(corpus, folder, queries, name="", key=bytes(32)):
    users = corpus.users(holdout=False)
    files = (f"session{name}.json", f"score{name}.json")
    return open_session(corpus, users, queries, Randomness(key), folder / "private", folder / "cache", *files)


def scores_of(corpus, folder, *scores, **more):
    assessed = Sensitivity(scores, (1.0,) * len(scores), (0.5,), ("low", "high"))
    asked = {
        i: opened(corpus, folder, s.queries, f"-{i}", **more)
        for i, s in enumerate(scores)
        if s.access.name == "SESSION"
    }
    return combined_scores(corpus, assessed, private_dir=folder / "private", sessions=asked)


def tokens(corpus):
    return np.array([sum(corpus.own_records(u).token_counts) for u in range(corpus.n_users)])


def test_somebodys_learned_score_is_asked_of_every_user_in_a_room(made, tmp_path):
    """Break: the score itself asked in place of what it learnt; the answers readable by others."""
    found = scores_of(made, tmp_path, learner())
    edge = json.loads(json.loads((tmp_path / "private" / "score-0.json").read_text())["rule"]["attributes"])["edge"]
    assert found.tolist() == (tokens(made) >= edge).astype(float).tolist()
    assert 0.2 < found.mean() < 0.8
    for name in ("session-0.json", "score-0.json"):
        assert stat.S_IMODE((tmp_path / "private" / name).stat().st_mode) == 0o600


def test_a_learned_score_that_keeps_state_is_powerless(made, tmp_path):
    """Red when the learned score is asked of all users in one process (`OwnRecordsScore` of a room, not forked)."""
    assert set(scores_of(made, tmp_path, learner("remembers")).tolist()) == {0.0}


def test_a_score_asks_nothing_but_its_own_declared_queries_each_for_one_statistic(made, tmp_path):
    """Also not a query of another score of the same run. Break: one session that holds the queries of all scores."""
    found = scores_of(made, tmp_path, learner("caught"), rarity(few=1000.0))
    assert set(found.tolist()) == {1.0}  # the mean of 1, where all was refused, and 1, since all words are rare
    first = json.loads((tmp_path / "private" / "session-0.json").read_text())
    assert set(first) <= {"median", "users"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("undeclared", "raised an error"),
        ("another", "raised an error"),
        ("raises", "raised an error"),
        ("no score", "raised an error"),
    ],
)
def test_a_score_that_cheats_or_fails_is_one_line(how, message, made, tmp_path, capfd):
    """Break: what it raised in the message; a rule of another kind taken for a score."""
    with pytest.raises(ArgumentError, match=rf"the plugin .*Learner {message}") as caught:
        scores_of(made, tmp_path, learner(how))
    assert SECRET not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "private" / "score-0.json").exists()


def test_scores_without_a_session_are_refused(made):
    """Break: an unlearnt score asked."""
    assessed = Sensitivity((learner(),), None, (0.5,), ("low", "high"))
    with pytest.raises(ArgumentError, match="Learner needs a private session"):
        combined_scores(made, assessed)


def test_several_scores_learn_apart_and_a_resumed_run_has_the_same(made, tmp_path, monkeypatch):
    """With another key, and nothing asked again. Break: one file for what all of them learn."""
    scores = (rarity(noise_multiplier=2.0), learner(noise=3.0), rarity(unit="character", size=3, noise_multiplier=2.0))
    first = scores_of(made, tmp_path, *scores)
    kept = sorted(p.name for p in (tmp_path / "private").glob("score-*.json"))
    assert kept == ["score-0.json", "score-1.json", "score-2.json"]
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "run_fit", None)
        patched.setattr(contributions, "total", None)
        again = scores_of(made, tmp_path, *scores, key=bytes([1]) * 32)
    assert again.tolist() == first.tolist()
    (tmp_path / "private" / "score-1.json").unlink()  # a crash before it was written, after the answers
    monkeypatch.setattr(contributions, "total", None)
    assert scores_of(made, tmp_path, *scores, key=bytes([1]) * 32).tolist() == first.tolist()


def test_a_built_in_score_learns_the_same_here_and_in_a_room(made, tmp_path, monkeypatch):
    """Red when one of the two paths loses an attribute (an array of bits, parameters)."""
    here = scores_of(made, tmp_path / "here", rarity(noise_multiplier=2.0))
    (tmp_path / "room" / "cache").mkdir(parents=True, mode=0o700)
    key = tmp_path / "here" / "cache" / "fingerprint.key"
    (tmp_path / "room" / "cache" / "fingerprint.key").write_bytes(key.read_bytes())
    (tmp_path / "room" / "cache" / "fingerprint.key").chmod(0o600)
    monkeypatch.setattr(sessions.asking, "is_built_in", lambda thing: False)
    assert scores_of(made, tmp_path / "room", rarity(noise_multiplier=2.0)).tolist() == here.tolist()


# --- edges ----------------------------------------------------------------------------------------------------


def test_quantiles_of_scores_are_those_of_the_training_users(made, tmp_path):
    """To the grid. Break: held-out users asked as well; the answers in another order."""
    values = np.linspace(0, 1, made.n_users)
    values[made.holdout] = 1.0
    own = values[~made.holdout]
    queries = tuple(score_query(q, QUIET, f"q{q}") for q in (0.25, 0.5, 0.9))
    found = opened(made, tmp_path, queries).score_quantiles(values)
    assert found == pytest.approx(np.quantile(own, [0.25, 0.5, 0.9]), abs=0.05)


def test_one_user_moves_a_quantiles_counts_by_one(made):
    """Break: a user counted in every bin below their score, as a cumulated histogram would."""
    query = score_query(0.5, 1.0, "q")
    grains = {value: contributions.contribution(query, value) for value in (0.0, 0.049, 0.05, 0.5, 1.0)}
    assert all(np.sqrt(np.sum((g / contributions.GRAINS) ** 2)) == 1.0 for g in grains.values())
    assert len(SCORE_GRID) == 20
    assert (grains[0.0] == grains[0.049]).all()
    assert not (grains[0.049] == grains[0.05]).all()


def test_edges_never_fall():
    """Two noisy quantiles in the wrong order. Break: `monotone` left out: the tier of everybody between is wrong."""
    assert monotone((0.4, 0.3, 0.6)) == (0.4, 0.4, 0.6)
    assert cut(np.array([0.0, 0.35, 0.4, 0.7]), monotone((0.4, 0.3, 0.6))).tolist() == [0, 0, 2, 3]


# --- a run's ----------------------------------------------------------------------------------------------------


def test_a_run_that_crashed_between_answers_and_groups_finds_the_same_groups(made, tmp_path, monkeypatch):
    """With another key and nothing counted again; only what was charged is asked.

    Break: the edges not written before the groups; one file for the answers to all who learn.
    """
    score = {"type": "rarity", "buckets": 256, "most": 8, "noise_multiplier": 2.0}
    tiers = {"quantiles": [0.3, 0.7], "names": ["low", "mid", "high"]}
    scores = [score, {"type": "tests.data.scores:Learner", "noise": 2.0}]
    (tmp_path / "plan").mkdir()
    path = write_spec(
        tmp_path / "plan",
        sensitivity={"scores": scores, "combine": "mean", "tiers": tiers},
        data={"weights": {"low": 0.4, "mid": 0.3, "high": 0.3}},
        privacy={"session": {"noise_multiplier": 2.0}, "accountant": "rdp"},
    )
    plan, folder, cache = make_plan(path), Folder(tmp_path / "run"), tmp_path / "cache"
    folder.private.mkdir(parents=True, mode=0o700)
    create_key(folder.key, bytes(32))
    with monkeypatch.context() as patched:
        patched.setattr(answers, "monotone", lambda edges: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answers.assigned_groups(plan, made, folder, cache)
    folder.key.unlink()
    create_key(folder.key, bytes([1]) * 32)
    with monkeypatch.context() as patched:
        patched.setattr(contributions, "total", None)
        groups = answers.assigned_groups(plan, made, folder, cache)
        assert answers.assigned_groups(plan, made, folder, cache).tolist() == groups.tolist()
    assert set(groups.tolist()) <= {0, 1, 2}
    assert len(set(groups.tolist())) > 1
    settled = answers.ask(plan, made, groups, folder, cache)
    assert settled.edges == tuple(answers.read_edges(folder)) == answers.settled(plan, folder).edges
    asked = {name for file in folder.private.glob("*.json") for name in _asked(file)}
    declared = {query.name for one in learners(plan.basis) for query in one.queries}
    assert asked == declared - {"users"} | {query.name for query in cuts(plan.basis)}


def _asked(path):
    """The queries that a file of answers holds."""
    held = json.loads(path.read_text())
    return [name for name, one in held.items() if isinstance(one, dict) and "digest" in one]
