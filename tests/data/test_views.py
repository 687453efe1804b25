"""Views: shown to plugins that use them, in this process, in rooms and in sessions, and to no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import plugins
from harness.data import portable, sessions
from harness.data.groups import assign_groups
from harness.data.rooms import UserRoom
from harness.data.sessions import open_session
from harness.data.tiers import Sensitivity, combined_scores, cut
from harness.data.views import made_view, seen, shown, uses_model
from harness.errors import ArgumentError
from harness.plugins import PluginParameters, UserRecords
from harness.privacy.randomness import Randomness
from tests.data import rules

WIDTH = 4
ANN = UserRecords(("a text",), (5,), 2)


def assign_tiers(made, assessed, **more):
    """The tier of every user."""
    return cut(combined_scores(made, assessed, **more), assessed.edges)


class MadeViews:
    """A view for every user, and a note of whom one was asked for."""

    width = WIDTH

    def __init__(self, identity="a model 1"):
        self.identity = identity
        self.asked = []

    def __call__(self, user):
        self.asked.append(user)
        return made_view(user, 2, WIDTH)


@pytest.fixture
def made(posts, write_jsonl, make_data, build):
    return build(make_data(write_jsonl(posts)))


def test_a_room_is_shown_the_view(tmp_path):
    """Number for number. Break: leave it out of what `within._answer` rebuilds."""
    view = made_view(3, 2, WIDTH)
    thing = portable.describe(rules.Seen(PluginParameters()))
    with UserRoom(thing, "score", who="them", private_dir=tmp_path / "private") as room:
        for user in (replace(ANN, model=view), ANN, replace(ANN, model=made_view(4, 0, WIDTH))):
            reply = room.ask(user)
            assert not reply.failed
            assert reply.answer == rules.Seen(PluginParameters()).score(user)
    assert rules.Seen(PluginParameters()).score(replace(ANN, model=view)) > 0


@pytest.mark.parametrize("built_in", [True, False])
def test_scores_that_use_the_model_are_shown_it(built_in, made):
    """Red when the views are not passed on, or are passed on to everybody."""
    score = plugins.sensitivity.build("exposure", {"low": 1, "high": 5}) if built_in else rules.Seen(PluginParameters())
    views = MadeViews()
    found = assign_tiers(made, Sensitivity((score,), None, (0.3, 0.5), ("low", "medium", "high")), views=views)
    own = [score.score(replace(made.own_records(u), model=made_view(u, 2, WIDTH))) for u in range(made.n_users)]
    assert found.tolist() == [(value >= 0.3) + (value >= 0.5) for value in own]
    assert len(set(found.tolist())) > 1
    assert views.asked == list(range(made.n_users))
    blind = MadeViews()
    volume = plugins.sensitivity.build("volume", {})
    assign_tiers(made, Sensitivity((volume,), None, (0.5,), ("low", "high")), views=blind)
    assert blind.asked == []


def test_rules_that_use_the_model_are_shown_it(made):
    views = MadeViews()
    rule = rules.SeenRule(PluginParameters())
    found = assign_groups(made, rule, rule.segments, views=views)
    assert found.tolist() == [int(made_view(u, 2, WIDTH).losses[0] > 3) for u in range(made.n_users)]
    assert set(found.tolist()) == {0, 1}


def test_without_views_a_plugin_that_needs_them_is_not_asked(made):
    """Red when it is asked all the same, and every user scores as if nobody had been seen."""
    score = plugins.sensitivity.build("exposure", {})
    with pytest.raises(RuntimeError, match="uses the base model's views, and there are none"):
        assign_tiers(made, Sensitivity((score,), None, (0.5,), ("low", "high")))
    assert shown(plugins.sensitivity.build("volume", {}), MadeViews()) is None
    assert seen(ANN, 3, None).model is None


def test_a_plugin_that_can_not_say_is_one_line():
    with pytest.raises(ArgumentError, match=r"Unsure fails \(ZeroDivisionError: division by zero\)$"):
        uses_model(rules.Unsure(PluginParameters()))


def opened(corpus, folder, rule, views, run):
    private = folder / run / "private"
    users = corpus.users(holdout=False)
    randomness = Randomness(bytes(32))
    return open_session(corpus, users, rule.queries, randomness, private, folder / "sessions", views=views)


def test_a_session_shows_the_view_and_keeps_answers_by_model(made, tmp_path):
    """What is asked of one model's views is not answered with another's. Red when `identity` is no part of the key."""
    rule = rules.SeenLearner(PluginParameters())
    edges = {}
    for run, identity in (("a", "a model 1"), ("b", "a model 1"), ("c", "another 1")):
        views = MadeViews(identity)
        session = opened(made, tmp_path, rule, views, run)
        edges[run] = (portable.rebuild(session.fit(rule), rules.SeenRule).edge, len(views.asked))
    trained = [u for u in made.users(holdout=False) if made.n_records[u] > 0]
    assert edges["a"][0] == pytest.approx(sum(made_view(int(u), 2, WIDTH).losses[0] for u in trained), abs=0.1)
    assert edges["b"] == (edges["a"][0], 0)  # found among the answers
    assert edges["c"][1] == len(trained)
    assert sessions.ANSWERS
