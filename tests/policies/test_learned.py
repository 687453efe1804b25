"""`kmeans`, `mixture` and `anomaly`: what they find, what they cost, and how little one user can move them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.cluster.vq import kmeans2

from harness import plugins
from harness.conformance import check_segmenter
from harness.data import portable, trial
from harness.data.synthetic import Population, SyntheticParameters
from harness.planning import make_plan
from harness.plugins import (
    Access,
    ModelView,
    OwnRecordsSegmenter,
    PluginError,
    SessionSegmenter,
    Statistic,
    UserRecords,
)
from harness.privacy import contributions
from harness.privacy.session import check_queries, multiplier_of
from harness.spec import SpecErrors, load_spec
from policies.segmentation import anomaly, clusters, features, learning, mixture
from tests.plans import write_spec
from tests.policies.made import agreement, blobs, of_kinds
from tests.policies.test_features import users

KINDS = ("kmeans", "mixture", "anomaly")
SETTINGS = [
    ("kmeans", {}),
    ("kmeans", {"k": 2, "features": "embedding", "dimension": 3, "iterations": 1}),
    ("mixture", {}),
    ("mixture", {"covariance": "diagonal", "features": ["records", "hours", "words"], "iterations": 2}),
    ("anomaly", {}),
    ("anomaly", {"threshold": 3.0, "distance": "mean", "features": ["ngrams", "digits"]}),
]
NO_NOISE = 1e-9
"""In place of a noise multiplier, for tests alone: below what a spec may say."""


def built(kind, **parameters) -> SessionSegmenter:
    return plugins.segmentation.build(kind, parameters)


class Asked:
    """A session over users, or over rows of features, that remembers what it was asked; with noise from a seed."""

    def __init__(self, plugin, everybody, seed, noise=1.0):
        self.queries = {query.name: query for query in check_queries(plugin.queries)}
        self.everybody, self.noise, self.rng = everybody, noise, np.random.default_rng(seed)
        self.asked: dict[str, Statistic] = {}

    def ask(self, query, statistic):
        assert query not in self.asked
        self.asked[query] = statistic
        one = self.queries[query]
        exact = np.array(contributions.total(one, (statistic.value(user) for user in self.everybody)), dtype=float)
        exact *= contributions.grain_of(one)
        std = self.noise * one.noise_multiplier * contributions.sensitivity_of(one)
        return contributions.answer(one, exact + std * self.rng.standard_normal(len(exact)))


def named(rule, everybody):
    """Each user's segment, by its number."""
    return np.array([rule.segments.index(rule.assign(user)) for user in everybody])


NUMBERS = ["records", "tokens", "mean_length", "median_length", "digits", "capitals", "punctuation", "distinct_words"]


@pytest.fixture
def rows(monkeypatch):
    """Lets rows of numbers stand for users' features."""
    monkeypatch.setattr(features, "vector", lambda user, parameters: user)

    def learned(kind, points, seed, noise=1.0, **parameters):
        plugin = built(kind, features=NUMBERS[: points.shape[1]], **parameters)
        return plugin.fit(Asked(plugin, list(points), seed, noise))

    return learned


# --- what they find -----------------------------------------------------------------------------------------


def test_kinds_of_users_are_found_as_without_noise():
    """800 users of three kinds by what they wrote, at the defaults (ε = 0.7): about as well as scipy's exact k-means.

    Fixed seeds. Red when sums are divided by the wrong counts, or features are not brought to one scale.
    """
    everybody, kinds = of_kinds(800, seed=4)
    measured = np.array([features.vector(user, features.FeatureParameters()) for user in everybody])
    whitened = (measured - measured.mean(0)) / measured.std(0)
    plain = max(agreement(kmeans2(whitened, 3, minit="++", rng=seed)[1], kinds) for seed in range(4))
    assert plain > 0.85
    for kind in ("kmeans", "mixture"):
        rule = trial.learn(built(kind), everybody, draw=1)
        assert agreement(named(rule, everybody), kinds) > plain - 0.1


@pytest.mark.parametrize(
    ("kind", "k", "size", "least"), [("kmeans", 3, 5, 0.9), ("kmeans", 5, 8, 0.9), ("mixture", 3, 5, 0.8)]
)
def test_clusters_are_found_wherever_they_are(rows, kind, k, size, least):
    """Of 1,200 users; fixed seeds. Red when the first round looks at as few places as there are clusters."""
    for seed in range(3):
        points, kinds = blobs(1200, k, size, seed, apart=7)
        assert agreement(named(rows(kind, points, seed + 100, k=k), points), kinds) > least


def uneven(n, seed):
    """Three parts of different size and spread in the plane: a common wide one, and a rare narrow one near it."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, size=n, p=[0.6, 0.15, 0.25])
    centres, spreads = np.array([[-0.1, 0.0], [0.2, 0.0], [0.0, 0.35]]), np.array([0.1, 0.02, 0.03])
    return centres[kinds] + spreads[kinds, None] * rng.standard_normal((n, 2)), kinds


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_a_mixture_knows_how_common_and_how_wide_its_parts_are(rows, covariance):
    """With little noise it finds shares, means and spreads; fixed seed. Red when a variance keeps its mean's square."""
    points, _ = uneven(2000, seed=2)
    rule = rows("mixture", points, 3, 0.05, k=3, iterations=12, covariance=covariance)
    scale = learning.Scale(rule.centre, rule.spread)
    means = rule.means * learning.SPREADS * np.array(scale.spread) + np.array(scale.centre)
    assert means == pytest.approx(np.array([[-0.1, 0.0], [0.0, 0.35], [0.2, 0.0]]), abs=0.03)
    assert rule.shares == pytest.approx([0.6, 0.25, 0.15], abs=0.05)
    deviations = np.sqrt(np.mean(rule.variances * (learning.SPREADS * np.array(scale.spread)) ** 2, axis=1))
    assert deviations[0] > 1.2 * max(deviations[1:])


def test_outliers_are_found():
    """Nearly all of the 40 made users who write in an odd style, of 1,000, and few others; fixed seed.

    Red when a distance is not in spreads, or the tail is summed from the wrong end.
    """
    made = {"scenario": "support", "users": 1000, "seed": 5, "records": {"median": 4, "sigma": 0.7, "max": 40}}
    population = Population(
        SyntheticParameters.model_validate(made | {"outliers": {"fraction": 0.04, "kinds": ["style"]}})
    )
    everybody = [
        UserRecords(texts, (9,) * len(texts), 1) for texts in (tuple(population.texts(i)) for i in range(1000))
    ]
    odd = np.array([population.outlier(i) is not None for i in range(1000)])
    for more in ({"outliers": 0.06}, {"threshold": 4.5}):
        plugin = built("anomaly", features=["capitals", "punctuation"], **more)
        found = named(trial.learn(plugin, everybody, draw=1), everybody) == 1
        assert found[odd].mean() > 0.9
        assert found[~odd].mean() < 0.08


def test_a_threshold_leaves_the_wanted_share_beyond():
    """Without noise, within the share of the bins beside it. Red when it is summed from the near end."""
    counts = np.array([500.0, 300, 100, 40, 30, 20, 10, 0, 0, 0, 0, 0, 0, 0])
    edges = np.array(anomaly._EDGES)
    assert anomaly.threshold_of(counts, 0.06) == pytest.approx(edges[3])
    assert edges[3] < anomaly.threshold_of(counts, 0.045) < edges[4]
    assert anomaly.threshold_of(counts, 1e-6) == pytest.approx(edges[6], rel=0.2)
    assert anomaly.threshold_of(np.zeros(14), 0.05) in (edges[0], edges[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_huge_noise_breaks_nothing(rows, kind):
    """The rule still names a segment for everybody. Red when a noisy count divides, or has a logarithm, as it is."""
    points, _ = blobs(60, 3, 3, 1, apart=4)
    for seed in range(8):
        rule = rows(kind, points, seed, noise_multiplier=1e6)
        assert np.isfinite([np.max(np.abs(v)) for v in vars(rule).values() if isinstance(v, np.ndarray)]).all()
        assert set(named(rule, points)) <= set(range(len(rule.segments)))


def test_clusters_are_named_by_their_first_feature(rows):
    """Whatever the noise makes of their order. Red when the centroids are not sorted, or names go another way."""
    points, _ = blobs(700, 3, 3, 2, apart=5)
    for kind in ("kmeans", "mixture"):
        for seed in range(2):
            rule = rows(kind, points, seed, names=("low", "middle", "high"))
            middles = [points[named(rule, points) == j, 0].mean() for j in range(3)]
            assert middles == sorted(middles)
            assert rule.segments == ("low", "middle", "high")


def test_a_cluster_without_users_keeps_its_place():
    """Red when noise is divided by noise."""
    before = np.array([[0.5, 0.5], [-0.5, 0.0]])
    found = clusters.means(
        before, np.array([100.0, 3.0]), np.array([[20.0, -10.0], [90.0, 90.0]]), np.array([True, False])
    )
    assert found.tolist() == [[0.2, -0.1], [-0.5, 0.0]]
    far = clusters.means(before, np.array([2.0, 2.0]), np.array([[90.0, 0.0], [0.0, -90.0]]), np.array([True, True]))
    assert np.abs(far).max() <= 1


# --- what they cost, and how little one user moves ----------------------------------------------------------


@pytest.mark.parametrize(("kind", "parameters"), SETTINGS)
def test_all_queries_together_cost_what_the_knob_says(kind, parameters):
    """Red when a query's share is left out of the split."""
    for noise in (5.0, 40.0):
        assert multiplier_of(built(kind, **parameters, noise_multiplier=noise).queries) == pytest.approx(noise)


@pytest.mark.parametrize(("kind", "parameters"), SETTINGS)
def test_exactly_the_declared_queries_are_asked(kind, parameters):
    """Red when a round is asked that was not declared, or paid for and not asked."""
    plugin = built(kind, **parameters)
    session = Asked(plugin, [UserRecords(("a b",), (2,), 1)], 1)
    plugin.fit(session)
    assert list(session.asked) == [query.name for query in plugin.queries]


def statistics_of(kind, parameters):
    """All that a plugin asks, after some noise."""
    plugin = built(kind, **parameters)
    session = Asked(plugin, [UserRecords(("a b",), (2,), 1)] * 3, 7)
    rule = plugin.fit(session)
    return [(session.queries[name], statistic) for name, statistic in session.asked.items()], rule


@pytest.mark.parametrize(("kind", "parameters"), SETTINGS)
def test_nobody_contributes_more_than_was_declared(kind, parameters):
    """Any user's own contribution, before the session clips it, is within the declared bounds, so that none is cut.

    And adding the user to others moves the exact answer by at most the sensitivity. Red when responsibilities are not
    normalised, a key is named twice, or the norm of the sums is declared too small.
    """
    asked, rule = statistics_of(kind, parameters)
    others = [UserRecords(("A b, c!",), (3,), 1), UserRecords((), (), 0)]

    @settings(max_examples=25, deadline=None)
    @given(user=users())
    def holds(user):
        assert rule.assign(user) in rule.segments
        for query, statistic in asked:
            value = statistic.value(user)
            if query.kind == "sum":
                assert np.asarray(value).shape == (query.dimension,)
                assert np.linalg.norm(value) <= query.norm * (1 + 1e-9)
            else:
                keys = [value] if isinstance(value, str) else list(value)
                assert len(keys) == len(set(keys)) <= query.most
                assert set(keys) <= set(query.domain)
            without = contributions.total(query, [statistic.value(u) for u in others])
            with_user = contributions.total(query, [value, *(statistic.value(u) for u in others)])
            moved = np.linalg.norm([float(a - b) for a, b in zip(with_user, without, strict=True)])
            assert moved * contributions.grain_of(query) <= contributions.sensitivity_of(query)

    holds()


@settings(max_examples=60, deadline=None)
@given(
    covariance=st.sampled_from(["spherical", "diagonal"]),
    numbers=st.lists(st.floats(-100, 100), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
)
def test_a_responsible_contribution_has_a_norm_of_at_most_one(covariance, numbers, seed):
    """For any mixture and any place. Red when squares are divided by less than their largest norm."""
    rng, size = np.random.default_rng(seed), len(numbers)
    width = 1 if covariance == "spherical" else size
    shares = rng.dirichlet(np.ones(3))
    parts = mixture.Parts(shares, rng.uniform(-1, 1, (3, size)), rng.uniform(0.01, 1, (3, width)))
    scale = learning.Scale((0.0,) * size, (0.5,) * size)
    statistic = mixture.Responsible(features.FeatureParameters(features=("words",), dimension=size), scale, parts)
    statistic.scaled = lambda user: scale.scaled(np.array(user))  # type: ignore[method-assign]
    assert np.linalg.norm(statistic.value(numbers)) <= 1 + 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "parameters"), SETTINGS)
def test_the_rule_is_its_attributes_and_one_user(kind, parameters):
    """Rebuilt, copied, asked in any order, it says the same. Red when something is kept from one user for the next."""
    _, rule = statistics_of(kind, parameters)
    everybody = of_kinds(12, seed=1)[0]
    again = portable.rebuild(portable.describe(rule), OwnRecordsSegmenter)
    said = [rule.assign(user) for user in everybody]
    assert [again.assign(user) for user in reversed(everybody)] == said[::-1]
    assert [copy.deepcopy(rule).assign(user) for user in everybody] == said
    assert json.loads(portable.describe(rule).attributes).keys() >= {"parameters", "centre", "spread"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_follows_from_the_answers_alone(kind):
    """The order of users does not matter, bit by bit. Red when something beside an answer has a part in it."""
    everybody = of_kinds(40, seed=3)[0]
    one, other = (trial.learn(built(kind), users, draw=5) for users in (everybody, everybody[::-1]))
    assert portable.describe(one) == portable.describe(other)


@pytest.mark.parametrize(("kind", "parameters"), SETTINGS)
def test_they_conform(kind, parameters):
    """Red when the rule keeps state, answers otherwise in another process, or reaches for files."""
    if parameters.get("features") != "embedding":  # made users there have no model
        check_segmenter(plugins.segmentation.get(kind), parameters)
    plugin = built(kind, **parameters)
    assert plugin.access is Access.SESSION
    assert plugin.uses_model == (parameters.get("features") == "embedding")
    assert plugin.uses_times == ("hours" in parameters.get("features", ()))


def test_embeddings_are_clustered():
    """Two kinds of embeddings of unit length, of a length that no parameter says. Red when `model` is not looked at."""
    rng = np.random.default_rng(8)
    centres = rng.standard_normal((2, 96))
    kinds = rng.integers(2, size=500)
    everybody = []
    for kind in kinds:
        mean = centres[kind] + 0.5 * rng.standard_normal(96)
        view = ModelView((1.0,), (1.0,), (0.5,), 1.0, tuple(mean / np.linalg.norm(mean)))
        everybody.append(UserRecords(("a",), (1,), 1, model=view))
    rule = trial.learn(built("kmeans", k=2, features="embedding", dimension=4), everybody, draw=2)
    assert agreement(named(rule, everybody), kinds) > 0.9


# --- the parts they are made of -----------------------------------------------------------------------------


@given(numbers=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_rising_fit_rises_and_keeps_the_mean(numbers):
    """Red when neighbours are pooled without their widths."""
    found = learning.rising_fit(np.array(numbers))
    assert (np.diff(found) >= -1e-6).all()
    assert found.mean() == pytest.approx(np.mean(numbers), abs=1e-3)
    assert learning.rising_fit(np.sort(numbers)).tolist() == sorted(numbers)


def test_scales_are_quantiles(rows):
    """Without noise, within a bin. Red when a quantile is read off at the wrong end of its bin."""
    points = np.random.default_rng(1).normal([0.1, -0.2], [0.1, 0.05], (5000, 2))
    plugin = built("kmeans", features=NUMBERS[:2])
    scale = learning.ask_scale(Asked(plugin, list(points), 0, NO_NOISE), plugin.parameters)
    assert scale.centre == pytest.approx([0.1, -0.2], abs=0.01)
    assert scale.spread == pytest.approx([0.1, 0.05], abs=0.01)


FIRST = (-0.5064667050292773, 0.45989391556712256, -0.10949458032764654)


def test_first_places_are_a_public_constant():
    """The same in every version. Red when numpy's generators, whose streams may change, have a part in them."""
    places = clusters.first_places(12, 3)
    assert places.shape == (12, 3)
    assert np.linalg.norm(places, axis=1) == pytest.approx(0.8 * np.sqrt(3) / 2)
    assert min(np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]) > 0.3
    assert places[0] == pytest.approx(FIRST, abs=1e-9)


def test_merging_finds_heavy_places():
    """Red when weights are left out."""
    places = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [1.0, 0.9], [-1.0, 0.5]])
    centroids, shares = clusters.merged(places, np.array([10.0, 30.0, 20.0, 20.0, 20.0]), 3)
    found = sorted(
        (round(float(x), 3), round(float(y), 3), round(float(s), 3))
        for (x, y), s in zip(centroids, shares, strict=True)
    )
    assert found == [(-1.0, 0.5, 0.2), (0.075, 0.0, 0.4), (1.0, 0.95, 0.4)]


# --- specs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("kmeans", {"k": 1}, "greater than or equal to 2"),
        ("kmeans", {"names": ["a", "b"]}, "names: 3 clusters need as many names"),
        ("mixture", {"k": 2, "names": ["a", "a"]}, "names: the same name twice"),
        ("kmeans", {"iterations": 0}, "greater than or equal to 1"),
        ("kmeans", {"noise_multiplier": 0}, "greater than or equal to 0.1"),
        ("mixture", {"covariance": "full"}, "'spherical' or 'diagonal'"),
        ("anomaly", {"threshold": 3.0, "outliers": 0.1}, "either a threshold or outliers"),
        ("anomaly", {"outliers": 0.6}, "less than or equal to 0.5"),
        ("anomaly", {"distance": "median"}, "'largest' or 'mean'"),
    ],
)
def test_parameters_that_make_no_sense(kind, parameters, message):
    """Red when any one check is taken out."""
    with pytest.raises(ValidationError, match=message):
        built(kind, **parameters)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "kmeans", "features": ["tokns"]}, r'segmentation\.features.*did you mean "tokens"\?'),
        ({"type": "kmeans", "features": "embeding"}, r'segmentation\.features.*did you mean "embedding"\?'),
        (
            {"type": "mixture", "bounds": {"digits": [0, 1]}},
            r'segmentation\.bounds: "digits" is not among the features',
        ),
        ({"type": "anomaly", "outliers": 2}, r"segmentation\.outliers: must be"),
    ],
)
def test_a_spec_is_told_in_one_line(tmp_path, block, message):
    """Red when a union's error names its branches."""
    with pytest.raises(SpecErrors, match=message) as caught:
        load_spec(write_spec(tmp_path, segmentation=block))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_charges_every_query_and_waits_for_weights(tmp_path, kind):
    """Red when the groups of a learned segmentation are counted, or a query is not charged."""
    names = built(kind).segments
    spec = write_spec(
        tmp_path,
        data={"weights": "noisy", "attributes": []},
        segmentation={"type": kind},
        noise={"type": "scale", "epsilon": dict.fromkeys(names, 6) | {names[0]: 8}},
    )
    plan = make_plan(load_spec(spec))
    charges = {charge.what: charge.noise_multiplier for charge in plan.mechanism.charges}
    for query in built(kind).queries:
        assert charges[f"segmentation: {query.name}"] == query.noise_multiplier
    assert [group.name for group in plan.groups] == list(names)


def test_learned_parts_are_not_combined_yet():
    """Red when a product takes a part that asks a session."""
    with pytest.raises(PluginError, match="learns from noisy answers"):
        built("product", first={"type": "kmeans"}, second={"type": "usage", "edges": [3]})
