"""Features of own records: bounds that hold for anybody, and nothing that depends on anybody else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.plugins import ModelView, UserRecords
from policies.segmentation.features import (
    MEASURES,
    FeatureParameters,
    names_of,
    only_features,
    reach,
    size_of,
    uses_model,
    uses_times,
    vector,
)

ROOT = Path(__file__).resolve().parents[2]
ALL = (*MEASURES, "hours", "words", "ngrams", "embedding")
SIX = 6 * 3600.0

texts = st.lists(st.text(max_size=30), max_size=5)
numbers = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def users(draw):
    """Anybody, whatever the harness might hand over: also numbers that are none."""
    written = tuple(draw(texts))
    view = None
    if draw(st.booleans()):
        view = ModelView((1.0,), (1.0,), (0.5,), 1.0, tuple(draw(st.lists(numbers, max_size=40))))
    times = tuple(draw(st.lists(st.none() | numbers, max_size=5)))
    counts = tuple(draw(st.integers(0, 10**12)) for _ in written)
    return UserRecords(written, counts, draw(st.integers(0, 5)), times=times, model=view)


def features(*names, **more):
    return FeatureParameters(features=names, **more)


def one(name, *written, times=(), model=None, **more):
    """A single feature of a user who wrote this."""
    counts = tuple(len(text) for text in written)
    found = vector(UserRecords(written, counts, 1, times=times, model=model), features(name, **more))
    return found[0] if len(found) == 1 else found


@settings(max_examples=150, deadline=None)
@given(user=users(), chosen=st.sets(st.sampled_from(ALL), min_size=1), dimension=st.integers(1, 20))
def test_anybodys_features_are_bounded(user, chosen, dimension):
    """Red when a number is not cut at its bounds, or a projection is not shortened."""
    parameters = features(*sorted(chosen), dimension=dimension)
    found = vector(user, parameters)
    assert found.shape == (size_of(parameters),)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 0.5 + 1e-12
    assert np.linalg.norm(found) <= reach(parameters) * (1 + 1e-12)
    assert np.array_equal(found, vector(user, parameters))


@pytest.mark.parametrize("numbers", [(8e307, 9e307), (1e308,) * 5, (math.inf, 0.0), (math.nan, 1.0), ()])
def test_an_embedding_beyond_all_bounds_is_short_too(numbers):
    """Without a warning, which is an error here. Red when a projection sums before it is scaled."""
    found = one("embedding", "a", model=ModelView((1.0,), (1.0,), (0.5,), 1.0, numbers), dimension=3)
    assert np.linalg.norm(found) <= 0.5 + 1e-12


@pytest.mark.parametrize(
    ("name", "written", "share"),
    [
        ("records", ("a",), 0.0),
        ("records", ("a",) * 10, 1 / 3),
        ("records", ("a",) * 1000, 1.0),
        ("tokens", ("a" * 1000,), 0.5),
        ("mean_length", ("a" * 40, "a" * 60), math.log(10) / math.log(1000)),
        ("median_length", ("a" * 50, "a" * 5, "a" * 500), math.log(10) / math.log(1000)),
        ("digits", ("a1 ", "bcde fghi"), 0.5),
        ("digits", ("11", "aa"), 1.0),
        ("capitals", ("Abcd 12",), 0.5),
        ("punctuation", ("abcdefg,",), 0.5),
        ("distinct_words", ("one two One", "two"), 0.5),
        ("distinct_words", (), 0.0),
        ("capitals", ("",), 0.0),
    ],
)
def test_numbers_lie_between_their_bounds(name, written, share):
    """Red when a share is of other characters, or a logarithmic number counts linearly."""
    assert one(name, *written) == pytest.approx(share - 0.5)


def test_bounds_are_the_specs():
    """Red when the usual bounds are kept."""
    assert one("records", *"abcd", bounds={"records": [1, 16]}) == pytest.approx(0.0)
    assert one("digits", "a" * 9 + "1", bounds={"digits": [0, 0.4]}) == pytest.approx(-0.25)


def test_bounds_of_any_size_give_finite_numbers():
    """Red when a number is divided by a bound before its logarithm is taken."""
    for bounds in ([1e-320, 1e9], [5e-324, 1e-300]):
        assert -0.5 <= one("tokens", "abc", bounds={"tokens": bounds}) <= 0.5


def test_hours_are_shares_of_the_day():
    """Red when the parts of the day are shifted, or a time that is not known counts."""
    at = lambda *times: one("hours", "a", times=times)  # noqa: E731
    assert at(0.0, SIX - 1) == pytest.approx(np.array([0.75, -0.25, -0.25, -0.25]) / math.sqrt(0.75) / 2)
    assert at(SIX, None, float("nan"), 3 * SIX + 86400, -1.0)[[1, 3]] == pytest.approx(
        [(1 / 3 - 0.25) / math.sqrt(0.75) / 2, (2 / 3 - 0.25) / math.sqrt(0.75) / 2]
    )
    assert not at().any()
    assert np.linalg.norm(at(0.0)) == pytest.approx(0.5)


def test_projections_keep_who_is_alike():
    """Of two topics, users of the same one are nearer. Red when words are hashed to one place for all."""
    tide, clock = "the tide turns at the north pier", "a clock strikes in the old tower"
    for name in ("words", "ngrams"):
        a, b, c = (one(name, text, dimension=32) for text in (tide, f"{tide} now", clock))
        assert np.linalg.norm(a - b) < np.linalg.norm(a - c) / 2
        assert not one(name, "").any()


def test_an_embedding_is_projected_as_it_is():
    """Linear in the embedding, of any length, and zero where there is none. Red when the projection is not fixed."""
    rng = np.random.default_rng(3)

    def projected(numbers):
        return one("embedding", "a", model=ModelView((1.0,), (1.0,), (0.5,), 1.0, tuple(numbers)), dimension=16)

    a, b = (v / np.linalg.norm(v) / 3 for v in rng.standard_normal((2, 64)))
    assert projected(a) + projected(b) == pytest.approx(projected(a + b))
    assert not one("embedding", "a").any()
    assert not projected([]).any()
    assert not projected([float("nan"), 1.0]).any()
    apart = [np.linalg.norm(2 * projected(v)) / (1 / 3) for v in (a, b, a * 0.5 + b * 0.5)]
    assert min(apart) > 0.4  # a projection of a length of 1 has about that length
    assert np.linalg.norm(projected(1e200 * a)) <= 0.5 + 1e-12


def test_what_is_needed_follows_from_the_features():
    """Red when a plugin would not be given times, or a model's view."""
    assert (uses_times(features("hours")), uses_model(features("hours"))) == (True, False)
    assert (uses_times(features("embedding")), uses_model(features("embedding"))) == (False, True)
    assert names_of(FeatureParameters(features="embedding")) == ("embedding",)


def test_the_same_in_another_process():
    """Red when Python's own hash, which differs between processes, is used for the projections."""
    user = ("the tide turns", "at the north pier 💡")
    code = (
        "import json; from harness.plugins import UserRecords;"
        "from policies.segmentation.features import FeatureParameters, vector;"
        f"p = FeatureParameters(features=('words', 'ngrams')); u = UserRecords({user!r}, (3, 4), 1);"
        "print(json.dumps(vector(u, p).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    here = vector(UserRecords(user, (3, 4), 1), features("words", "ngrams"))
    assert json.loads(done.stdout) == here.tolist()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"features": []}, "at least 1 item"),
        ({"features": ["tokens", "tokens"]}, 'features: "tokens" is given twice'),
        ({"features": ["token"]}, "'records', 'tokens'"),
        ({"bounds": {"digits": [0, 1]}}, 'bounds: "digits" is not among the features'),
        ({"bounds": {"tokens": [10, 10]}}, "lower bound first"),
        ({"bounds": {"tokens": [0, 10]}}, "bounds above 0"),
        ({"bounds": {"words": [1, 10]}}, "'records', 'tokens'"),
        ({"bounds": {"tokens": [1]}}, "Field required"),
        ({"bounds": {"tokens": [1, float("inf")]}}, "finite number"),
        ({"dimension": 0}, "greater than or equal to 1"),
    ],
)
def test_parameters_that_make_no_sense(parameters, message):
    """Red when any one check is taken out."""
    with pytest.raises(ValidationError, match=message):
        FeatureParameters.model_validate(parameters)


def test_what_travels_is_the_features_alone():
    """Red when a plugin's other parameters change a statistic, and so the address of its answer."""

    class More(FeatureParameters):
        k: int = 3

    chosen = {"features": ("tokens", "words"), "bounds": {"tokens": (1.0, 9.0)}, "dimension": 3}
    assert only_features(More(**chosen, k=5)) == FeatureParameters(**chosen)
