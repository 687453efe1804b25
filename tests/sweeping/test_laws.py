"""The number of trials: exactly its law's, of which dp-accounting computes the price."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from scipy import stats

from harness.errors import MachineError
from harness.privacy.randomness import Randomness
from harness.privacy.search import Trials
from harness.sweeping import laws
from harness.sweeping.laws import draw_number, probabilities

LAWS = [
    Trials("geometric", 10.0),
    Trials("geometric", 1.0),
    Trials("geometric", 1.01),
    Trials("logarithmic", 10.0),
    Trials("logarithmic", 1.0),
    Trials("logarithmic", 40.0),
    Trials("poisson", 3.0),
    Trials("poisson", 1.0),
    Trials("poisson", 60.0),
    Trials("negative_binomial", 10.0, 0.5),
    Trials("negative_binomial", 10.0, 1.0),
    Trials("negative_binomial", 10.0, 30.0),
    Trials("negative_binomial", 1.0, 3.0),
]
ALARM = 1e-6
"""False-alarm rate of each test of a law, were its key not fixed."""


class Known(Randomness):
    """Gives these words in place of random ones."""

    def __init__(self, number: int) -> None:
        super().__init__(bytes(32))
        self.number = number

    def words(self, purpose: str, step: int, name: str, start: int, count: int) -> Any:
        assert count == 4
        return np.array([(self.number >> (64 * i)) & (2**64 - 1) for i in range(count)], dtype=np.uint64)


def listed(trials: Trials, least: float = 1e-30) -> list[tuple[int, float]]:
    """The law, but for what is less likely than `least`."""
    with localcontext() as context:
        context.prec = laws.DIGITS
        found = []
        for number, probability in probabilities(trials):
            found.append((number, float(probability)))
            if number > trials.mean and probability < Decimal(least):
                return found
            if found[-1][1] == 1.0:
                return found
    raise AssertionError("it has no end")


@pytest.mark.parametrize("trials", LAWS, ids=str)
def test_probabilities_sum_to_one_and_have_the_stated_mean(trials: Trials) -> None:
    """Break: the logarithmic law's first probability without its normalisation; Poisson's from 1 on."""
    law = listed(trials)
    assert [number for number, _ in law] == list(range(law[0][0], law[0][0] + len(law)))
    assert law[0][0] == (0 if trials.law == "poisson" else 1)
    assert math.fsum(p for _, p in law) == pytest.approx(1.0, abs=1e-12)
    # dp-accounting finds γ to a relative 1e-9.
    assert math.fsum(k * p for k, p in law) == pytest.approx(trials.mean, rel=3e-9)


@pytest.mark.parametrize("trials", LAWS, ids=str)
def test_probabilities_are_scipys_with_dp_accountings_gamma(trials: Trials) -> None:
    """γ is the very number that the price is computed of. Break: γ of the geometric law for all."""
    if trials.law == "poisson":
        expected = {k: stats.poisson.pmf(k, trials.mean) for k, _ in listed(trials)}
    else:
        shape = {"geometric": 1.0, "logarithmic": 0.0}.get(trials.law, trials.shape)
        gamma = rdp_privacy_accountant._gamma_truncated_negative_binomial(shape, trials.mean)
        if shape == 0:
            expected = {k: stats.logser.pmf(k, 1 - gamma) for k, _ in listed(trials)}
        elif gamma == 1:
            expected = {1: 1.0}
        else:
            kept = -math.expm1(shape * math.log(gamma))
            expected = {k: stats.nbinom.pmf(k, shape, gamma) / kept for k, _ in listed(trials)}
    for number, probability in listed(trials):
        assert probability == pytest.approx(expected[number], rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("trials", LAWS, ids=str)
def test_draws_follow_the_law(trials: Trials) -> None:
    """Chi-square of 1,500 draws of fixed keys. Break: `uniform` from the first of the four words alone, halved."""
    drawn = [draw_number(trials, Randomness(i.to_bytes(32, "big"))) for i in range(1500)]
    law = listed(trials)
    bins: list[list[float]] = [[0.0, 0.0]]
    for number, probability in law:
        bins[-1][0] += probability * len(drawn)
        bins[-1][1] += drawn.count(number)
        if bins[-1][0] >= 8:
            bins.append([0.0, 0.0])
    bins[-1][1] += sum(number > law[-1][0] for number in drawn)
    last = bins.pop()
    bins[-1] = [a + b for a, b in zip(bins[-1], last, strict=True)]
    assert sum(found for _, found in bins) == len(drawn)
    statistic = sum((found - expected) ** 2 / expected for expected, found in bins)
    assert len(bins) == 1 or stats.chi2.sf(statistic, len(bins) - 1) > ALARM


def test_poisson_gives_none_at_times_and_the_others_never() -> None:
    """Break: ``max(1, …)`` of what was drawn: another law than the price is of."""
    drawn = [draw_number(Trials("poisson", 1.0), Randomness(i.to_bytes(32, "big"))) for i in range(60)]
    assert 0 in drawn
    for trials in LAWS:
        if trials.law != "poisson":
            assert draw_number(trials, Known(0)) == 1


@pytest.mark.parametrize("trials", [t for t in LAWS if t.mean > 1], ids=str)
def test_a_draw_is_where_the_distribution_function_passes(trials: Trials) -> None:
    """To the last of 256 bits: the largest number below each step gives k, the next one k + 1.

    Break: `uniform` as a float, whose 53 bits are not enough to tell these apart.
    """
    with localcontext() as context:
        context.prec = 200
        below, steps = Decimal(0), []
        for number, probability in itertools.islice(probabilities(trials), 12):
            below += probability
            steps.append((number, int(below * Decimal(2) ** 256)))
    for number, step in steps:
        if 0 < step < 2**256 - 2**20:
            assert draw_number(trials, Known(step - 2)) <= number < draw_number(trials, Known(step + 2))


def test_nothing_is_capped() -> None:
    """The largest uniform number leads far beyond any cap. Break: `draw_number` of at most ten times the mean."""
    largest = draw_number(Trials("geometric", 10.0), Known(2**256 - 1))
    # Where less than 2^-257 is left.
    assert largest == math.ceil(-257 * math.log(2) / math.log1p(-0.1))
    assert draw_number(Trials("poisson", 10.0), Known(2**256 - 1)) > 100
    assert draw_number(Trials("logarithmic", 10.0), Known(2**256 - 1)) > 1000


def test_what_no_machine_could_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "_MOST", 5)
    with pytest.raises(MachineError, match="the search releases nothing"):
        draw_number(Trials("geometric", 10.0), Known(2**256 - 1))


def test_a_fixed_number_is_itself() -> None:
    assert draw_number(Trials("fixed", 12.0), Randomness(bytes(32))) == 12


def test_a_draw_is_a_function_of_the_key_alone() -> None:
    """Break: `secrets.randbits` in `draw_number`: a resumed sweep would have another number of trials."""
    trials = Trials("geometric", 1000.0)
    drawn = [draw_number(trials, Randomness(i.to_bytes(32, "big"))) for i in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
