"""The one-run audit: its numbers, that it raises no false alarms, and that it catches what it is for.

All simulations are fixed; their false-alarm rates are those of a fresh draw.
"""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

from harness.auditing.one_run import Question, judge, run_tests, usable_guesses, verdict
from harness.auditing.scores import observed_sigma, spread_scores, step_scores
from harness.errors import ArgumentError
from harness.privacy.guesses import ceiling, epsilon_bound, p_value
from tests.auditing.mechanisms import simulate

RUNS = 50


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "expected"), [(0.0, 1.6308), (1e-5, 1.6261)])
def test_known_bounds(delta: float, expected: float) -> None:
    """Broken by P[Bin > v] for P[Bin ≥ v], or by mδα for 2mδα."""
    assert epsilon_bound(1000, 100, 90, delta) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("guesses", "expected"), [(20, 1.823), (100, 3.493), (1000, 5.809)])
def test_known_ceilings(guesses: int, expected: float) -> None:
    assert ceiling(1000, guesses, 0.0) == pytest.approx(expected, abs=5e-4)


def test_p_is_what_its_formula_says_term_by_term() -> None:
    q, v, r, m, delta = float(expit(0.7)), 14, 20, 60, 1e-3
    chance = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum(chance[v:])
    alpha = max(sum(chance[v - i : v]) / i for i in range(1, v + 1))
    assert p_value(m, r, v, 0.7, delta) == pytest.approx(beta + 2 * m * delta * alpha, rel=1e-9)
    assert p_value(m, r, 0, 0.7, 0.0) == 1.0


def test_far_tails_are_exact() -> None:
    """Broken by 1 − P[Bin < v]."""
    assert p_value(100, 100, 100, 0.0, 0.0) == pytest.approx(2.0**-100, rel=1e-9)


def test_bounds_grow_with_right_guesses_and_fall_with_delta_and_confidence() -> None:
    found = [epsilon_bound(500, 200, v, 1e-5) for v in range(201)]
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert found[100] == 0.0 < found[120]
    assert epsilon_bound(500, 200, 150, 1e-3) < epsilon_bound(500, 200, 150, 0.0)
    assert epsilon_bound(500, 200, 150, 0.0, 0.99) < epsilon_bound(500, 200, 150, 0.0, 0.95)


def test_what_is_found_is_the_largest_that_is_refuted() -> None:
    bound = epsilon_bound(1000, 400, 300, 1e-5)
    assert p_value(1000, 400, 300, bound, 1e-5) <= 0.05 < p_value(1000, 400, 300, bound + 1e-6, 1e-5)


@pytest.mark.parametrize("correct", [0, 50_000, 60_000, 99_999, 100_000])
def test_large_audits_are_finite(correct: int) -> None:
    bound = epsilon_bound(100_000, 100_000, correct, 1e-9)
    assert 0 <= bound <= 12
    assert bound == pytest.approx(0, abs=0.02) if correct <= 50_000 else bound > 0.3


def test_nothing_guessed_is_nothing_known() -> None:
    assert epsilon_bound(10, 0, 0, 0.0) == 0.0 == ceiling(10, 0, 0.0)
    assert epsilon_bound(10, 4, 4, 1.0) == 0.0


@pytest.mark.parametrize("numbers", [(10, 12, 5), (10, 8, 9), (10, 8, -1)])
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="0 ≤ correct ≤ guesses ≤ canaries"):
        epsilon_bound(*numbers, 0.0)


@pytest.mark.parametrize(("delta", "confidence"), [(-1e-9, 0.95), (0.0, 1.0), (0.0, 0.0)])
def test_a_level_that_is_none_is_refused(delta: float, confidence: float) -> None:
    with pytest.raises(ArgumentError, match="a confidence within"):
        epsilon_bound(10, 4, 4, delta, confidence)


# --- guesses ------------------------------------------------------------------------------------------------


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    included = np.array([True, False, False, True, True])
    assert judge(scores, included, 2) == 2  # 5 in, 1 out
    assert judge(scores, included, 4) == 2  # also 4 in, 2 out, both wrong
    assert judge(-scores, included, 2) == 0


def test_ties_and_what_is_not_finite_know_nothing_of_who_is_in() -> None:
    """Broken by sorting (score, included) pairs."""
    included = np.arange(100) % 2 == 0
    assert judge(np.zeros(100), included, 100) == 50
    assert judge(np.full(100, np.nan), included, 100) == 50
    last = np.array([1.0, np.nan, 0.0, np.inf])
    assert judge(last, np.array([True, False, True, False]), 4) == 4


@pytest.mark.parametrize("guesses", [3, 6])
def test_impossible_numbers_of_guesses_are_refused(guesses: int) -> None:
    with pytest.raises(ArgumentError, match="even and at most one per canary"):
        judge(np.zeros(5), np.zeros(5, dtype=bool), guesses)


@pytest.mark.parametrize(("asked", "canaries", "made"), [(None, 200, 100), (None, 7, 2), (50, 11, 10), (4, 100, 4)])
def test_how_many_guesses_are_made(asked: int | None, canaries: int, made: int) -> None:
    assert usable_guesses(asked, canaries) == made


def test_documents_are_plain_json() -> None:
    question = Question("text", "ratio", "free", np.arange(30.0), np.arange(30) > 14, 20)
    (test,) = run_tests([question], 1e-5, 0.95)
    assert test.correct == 20
    assert test.bound == test.ceiling
    assert json.loads(json.dumps(test.document(), allow_nan=False))["confidence"] == pytest.approx(0.95)


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("claimed", "expected"), [(1.0, "violated"), (2.0, "consistent"), (10.0, "inconclusive")])
def test_verdicts(claimed: float, expected: str) -> None:
    """A ceiling below the claim never says that all is well."""
    included = np.arange(100) % 10 > 0  # nine tenths of what is guessed "in" is in
    scores = np.concatenate([included[:50] * 0.0 + 1, np.zeros(50)])
    scores[50:] -= included[50:] * 0.0
    question = Question("text", "ratio", None, scores, np.concatenate([included[:50], ~included[50:]]), 100)
    (test,) = run_tests([question], 0.0, 0.95)
    assert test.correct == 90
    assert 1.0 < test.bound < 2.0 < test.ceiling < 10.0
    assert verdict([test], claimed) == expected


def test_without_tests_nothing_is_concluded() -> None:
    assert verdict([], 1.0) == "inconclusive"


# --- false alarms -------------------------------------------------------------------------------------------


def randomised_response(rng: np.random.Generator, epsilon: float, size: tuple[int, int]) -> np.ndarray:
    """Right guesses of audits of a mechanism for which the bound is tight: [runs, tests]."""
    return rng.binomial(100, expit(epsilon), size=size)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_bound_exceeds_the_truth_in_at_most_five_per_cent(epsilon: float) -> None:
    """Randomised response, for which it is tight. 20,000 audits; false-alarm rate of this test: below 1e-6."""
    bounds = {v: epsilon_bound(100, 100, v, 0.0) for v in range(101)}
    found = randomised_response(np.random.default_rng(1), epsilon, (20_000, 1))[:, 0]
    alarms = sum(bounds[int(v)] > epsilon for v in found)
    assert alarms <= binom.isf(1e-6, 20_000, 0.05)
    assert alarms > 0  # it is not valid by being empty


def test_the_best_of_many_tests_raises_false_alarms_unless_they_share_the_confidence() -> None:
    """Eight groups, each tested by itself: without Bonferroni a third of all audits would accuse an honest mechanism.

    4,000 audits; false-alarm rate of this test: below 1e-6.
    """
    epsilon, runs, tests = 1.0, 4000, 8
    found = randomised_response(np.random.default_rng(2), epsilon, (runs, tests))
    alone = {v: epsilon_bound(100, 100, v, 0.0) for v in range(101)}
    shared = {v: epsilon_bound(100, 100, v, 0.0, 1 - 0.05 / tests) for v in range(101)}
    greedy = sum(max(alone[int(v)] for v in row) > epsilon for row in found) / runs
    kept = sum(max(shared[int(v)] for v in row) > epsilon for row in found)
    assert greedy > 0.15
    assert kept <= binom.isf(1e-6, runs, 0.05)


def test_tests_share_the_confidence() -> None:
    """Broken by giving every test the whole confidence."""
    rng = np.random.default_rng(0)
    included = rng.random(100) < 0.5
    one = Question("text", "ratio", None, included + rng.normal(0, 0.5, 100), included, 50)
    (alone,) = run_tests([one], 1e-5, 0.95)
    shared = run_tests([one] * 5, 1e-5, 0.95)
    assert [t.confidence for t in shared] == pytest.approx([0.99] * 5)
    assert shared[0].correct == alone.correct
    assert shared[0].bound < alone.bound
    assert shared[0].ceiling < alone.ceiling


def violations(**kind: object) -> int:
    """Of `RUNS` audits of a mechanism that claims ε = 1."""
    rng = np.random.default_rng(3)
    return sum(verdict(simulate(rng, **kind).tests(), 1.0) == "violated" for _ in range(RUNS))  # type: ignore[arg-type]


def test_an_honest_mechanism_is_consistent() -> None:
    """Each of 50 audits is wrong with probability 5 % at most: more than 12 have probability below 1e-6."""
    assert violations() <= 12
    assert verdict(simulate(np.random.default_rng(4)).tests(), 1.0) == "consistent"


@pytest.mark.parametrize(
    "broken",
    [{"noise": 0.1}, {"repeated": True}, {"second_pass": True}, {"clip": 10.0}],
    ids=["noise divided by 10", "the same noise every step", "an unnoised second pass", "a skipped clip"],
)
def test_a_broken_mechanism_is_caught(broken: dict[str, object]) -> None:
    """ε = 1 claimed, 200 canaries, 100 guesses: power of at least 96 % (48 of 50 audits)."""
    assert violations(**broken) >= 48


# --- scores -------------------------------------------------------------------------------------------------


def test_step_scores_are_log_likelihood_ratios() -> None:
    rng = np.random.default_rng(5)
    z, sigma = rng.normal(size=(3, 4)), rng.uniform(0.5, 2, size=(3, 4))
    drawn = np.array([0.5, 0.3, 0.2])
    density = lambda x, s: np.exp(-x * x / (2 * s * s))  # noqa: E731
    mixture = sum(p * density(z - k, sigma) for k, p in enumerate(drawn))
    assert step_scores(z, sigma, drawn[None, None]) == pytest.approx(np.log(mixture / density(z, sigma)).sum(axis=0))


def test_steps_without_the_group_are_left_out() -> None:
    rng = np.random.default_rng(6)
    z, sigma = rng.normal(size=(5, 2)), np.ones((5, 2))
    sigma[3:, 1] = np.nan
    drawn = np.array([0.6, 0.4])[None, None]
    assert step_scores(z, sigma, drawn)[1] == pytest.approx(step_scores(z[:3], sigma[:3], drawn)[1])
    assert spread_scores(z, sigma)[1] == pytest.approx(spread_scores(z[:3], sigma[:3])[1])
    assert spread_scores(z, sigma)[0] == pytest.approx(5 * np.var(z[:, 0]))
    assert np.isnan(observed_sigma(z, sigma)[4, 1])
    nobody = np.full((5, 2), np.nan)
    assert step_scores(z, nobody, drawn).tolist() == [0, 0] == spread_scores(z, nobody).tolist()


def test_without_noise_scores_stay_finite_and_perfect() -> None:
    included = np.arange(40) % 2 == 0
    z = np.where(included, 1.0, 0.0)[None] * np.array([[1.0], [0.0], [1.0]])
    scores = step_scores(z, np.zeros((3, 40)), np.array([0.5, 0.5])[None, None])
    assert np.all(np.isfinite(scores))
    assert judge(scores, included, 40) == 40


def test_observed_noise_is_the_real_one() -> None:
    """Or somewhat more, for those who are drawn: three tenths here, far from where the noise is."""
    rng = np.random.default_rng(7)
    z = 0.1 * rng.standard_normal((20, 2000)) + (rng.random((20, 2000)) < 0.3)
    found = observed_sigma(z, np.full((20, 2000), 2.0))
    assert np.all((found > 0.09) & (found < 0.17))
    honest = observed_sigma(2.0 * rng.standard_normal((20, 2000)), np.full((20, 2000), 2.0))
    assert honest == pytest.approx(np.full((20, 2000), 2.0), rel=0.15)
