"""Sensitivity by the base model's view, and by several scores at once."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from harness import plugins
from harness.conformance import check_score
from harness.plugins import ModelView, OwnRecordsScore, PluginError, PluginParameters, SessionScore, UserRecords
from policies.segmentation.product import Product
from policies.sensitivity.exposure import BOUNDS

VIEW = ModelView((2.0, 4.0), (6.0, 10.0), (0.5, 0.1), 0.4, (1.0, 0.0))
ANN = UserRecords(("a", "b"), (40, 60), 2, model=VIEW)


def exposure(**parameters):
    return plugins.sensitivity.build("exposure", parameters)


def composite(*scores, **parameters):
    return plugins.sensitivity.build("composite", {"scores": list(scores)} | parameters)


# --- exposure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "low", "high", "score"),
    [
        ("loss", 2, 6, 0.25),
        ("tail", 4, 12, 0.5),
        ("memorised", 0.2, 0.4, 0.5),
        ("gradient", 0.1, 1.6, 0.5),
        ("loss", 3, 6, 0.0),
        ("loss", 1, 3, 1.0),
        ("gradient", 0.5, 1, 0.0),
        ("gradient", 0.1, 0.2, 1.0),
    ],
)
def test_a_measure_lies_between_its_constants(measure, low, high, score):
    """Break: one measure taken for another, the largest in place of the mean, a gradient on a linear scale."""
    assert exposure(measure=measure, low=low, high=high).score(ANN) == pytest.approx(score)


def test_who_was_not_seen_scores_nothing():
    """A user without examples, and one whose numbers were not finite."""
    unseen = ModelView((), (), (), 0.0, (0.0, 0.0))
    neutral = ModelView((0.0,), (0.0,), (0.0,), 0.0, (0.0, 0.0))
    for measure in BOUNDS:
        for view in (unseen, neutral, None):
            assert exposure(measure=measure).score(UserRecords(("",), (0,), 0, model=view)) == 0.0


def test_it_asks_for_the_model_and_others_do_not():
    assert exposure().uses_model
    assert not plugins.sensitivity.build("volume", {}).uses_model


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"low": 3, "high": 3}, "high: must be above low"),
        ({"low": 9}, r"low: must be below high \(7\)"),
        ({"measure": "memorised", "high": 0.1}, r"high: must be above low \(0.1\)"),
        ({"measure": "gradient", "low": 0}, "low: must be above 0"),
        ({"measure": "perplexity"}, "measure"),
        ({"high": math.inf}, "high"),
        ({"low": -1}, "low"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        exposure(**parameters)


@pytest.mark.parametrize("measure", list(BOUNDS))
def test_exposure_conforms(measure):
    """Also that made users are seen by a made model there. Break: leave the made views out of the check."""
    cls = plugins.sensitivity.get("exposure")
    check_score(cls, {"measure": measure})


class Needy(OwnRecordsScore):
    """Fails where it is not shown the view that it asks for."""

    @property
    def uses_model(self):
        return True

    def score(self, user):
        return min(1.0, sum(user.model.guessed) / 100 + abs(user.model.embedding[0]) / 2)


class Sneaking(Needy):
    @property
    def uses_model(self):
        return False


def test_the_check_shows_a_view_to_whoever_asks_and_to_nobody_else():
    check_score(Needy)
    with pytest.raises(AttributeError):
        check_score(Sneaking)


# --- composite ----------------------------------------------------------------------------------------------

VOLUME = {"type": "volume", "measure": "tokens", "low": 10, "high": 1000}  # 0.5
MODEL = {"type": "exposure", "measure": "loss", "low": 2, "high": 6}  # 0.25


@pytest.mark.parametrize(
    ("parameters", "score"),
    [
        ({}, 0.5),
        ({"combine": "weighted"}, 0.375),
        ({"combine": "weighted", "weights": [1, 4]}, 0.3),
        ({"combine": "probabilistic_or"}, 1 - 0.5 * 0.75),
    ],
)
def test_scores_are_combined(parameters, score):
    """Break: weights in another order, or a sum in place of the mean."""
    assert composite(VOLUME, MODEL, **parameters).score(ANN) == pytest.approx(score)


def test_composites_nest():
    inner = {"type": "composite", "scores": [VOLUME, MODEL], "combine": "weighted"}
    assert composite(inner, MODEL, combine="probabilistic_or").score(ANN) == pytest.approx(1 - 0.625 * 0.75)


class Looking(OwnRecordsScore):
    """Says what it was shown: half for times, one for a view."""

    def score(self, user):
        return 0.5 * bool(user.times) + 1.0 * (user.model is not None)


class Timely(Looking):
    uses_times = True


def test_a_part_sees_what_it_uses(monkeypatch):
    """Break: hand the user to every part as they are; say of no composite that it uses the model."""
    both = composite(VOLUME, MODEL)
    assert (both.uses_model, both.uses_times) == (True, False)
    assert not composite(VOLUME).uses_model
    both.parts = (Looking(PluginParameters()), exposure(measure="loss", low=2, high=6))
    timed = UserRecords(ANN.texts, ANN.token_counts, 2, times=(1.0, 2.0), model=VIEW)
    assert both.score(timed) == 0.25
    both.parts = (Timely(PluginParameters()),)
    assert both.uses_times
    assert both.score(timed) == 0.5


class Learning(SessionScore):
    """Learns from noisy answers."""

    __module__ = "policies.made_up"
    queries = ()

    def fit(self, session):
        raise NotImplementedError


def test_a_score_that_learns_or_is_not_ours_is_refused(monkeypatch):
    """Break: leave either check out: somebody's code would run beside records in this process."""
    with pytest.raises(PluginError, match="does not come with uudp: only such plugins are combined") as caught:
        composite(VOLUME, {"type": f"{__name__}:Looking"})
    assert caught.value.key == ("scores", 1, "type")
    find = plugins.sensitivity.get
    monkeypatch.setattr(plugins.sensitivity, "get", lambda name: Learning if name == "learning" else find(name))
    with pytest.raises(PluginError, match="learns from noisy answers: it can't be combined yet") as caught:
        composite({"type": "learning"})
    assert caught.value.key == ("scores", 0, "type")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weights": [1, 2]}, "weights: only a mean has weights; add combine: weighted"),
        ({"combine": "weighted", "weights": [1]}, "weights: must be 2, one for each score"),
        ({"combine": "weighted", "weights": [1, 0]}, "weights"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(parameters, message):
    with pytest.raises(ValidationError, match=message):
        composite(VOLUME, MODEL, **parameters)


def test_composite_conforms():
    check_score(plugins.sensitivity.get("composite"), {"scores": [VOLUME, MODEL], "combine": "probabilistic_or"})


def test_a_product_of_segments_passes_on_what_its_parts_use(monkeypatch):
    """Break: leave `uses_model` out of `product`."""
    parts = {k: {"type": "usage", "edges": [3], "names": [k, "many"]} for k in ("first", "second")}
    made = plugins.segmentation.build("product", parts)
    assert isinstance(made, Product)
    assert (made.uses_model, made.uses_times) == (False, False)
    monkeypatch.setattr(type(made.parts[0]), "uses_model", True)
    assert made.uses_model
