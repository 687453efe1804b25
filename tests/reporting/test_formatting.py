"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reporting import formatting as f


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.9931, "8.00"), (2.0, "2.00"), (2.0000000000000004, "2.00"), (2.0001, "2.01"), (0.0123, "0.0123"), (0, "0"),
     (None, "–")],
)  # fmt: skip
def test_epsilon(value: float | None, text: str) -> None:
    assert f.epsilon(value) == text


@given(st.floats(1e-6, 1e4))
def test_epsilon_is_never_understated(value: float) -> None:
    assert float(f.epsilon(value)) >= value * (1 - 1e-6) - 1e-7


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "10⁻⁵"), (1e-6, "10⁻⁶"), (7.8369e-5, "7.84 × 10⁻⁵"), (9.999e-7, "10⁻⁶"), (0.01, "10⁻²"), (None, "–")],
)
def test_delta(value: float | None, text: str) -> None:
    assert f.delta(value) == text


@pytest.mark.parametrize(
    ("value", "padded", "text"),
    [(0.46, False, "0.46"), (0.46, True, "0.460"), (1276.0, False, "1,276"), (1e-7, False, "1.00 × 10⁻⁷"),
     (-0.5, False, "−0.5"), (0.0, True, "0"), (None, True, "–")],
)  # fmt: skip
def test_significant(value: float | None, padded: bool, text: str) -> None:
    assert f.significant(value, padded=padded) == text


def test_rates_and_shares() -> None:
    assert (f.rate(0.02508), f.percent(0.833), f.percent(-0.2)) == ("2.51 %", "83 %", "−20 %")


def test_guess_by_its_definition() -> None:
    for epsilon, delta in ((0.1, 0.0), (2.0, 1e-5), (8.0, 1e-5)):
        expected = (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1)
        assert f.guess(epsilon, delta) == pytest.approx(expected, rel=1e-12)
    assert f.guess(0.0, 0.0) == 0.5
    assert f.guess(5000.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50 %"), (0.8808, "89 %"), (0.99966, "99.97 %"), (0.9999999, "practically 100 %"), (1.0, "100 %")],
)
def test_a_guess_is_rounded_up_but_never_to_certainty(value: float, text: str) -> None:
    assert f.guess_text(value) == text


def test_passwords_are_taken_out_of_urls() -> None:
    assert f.without_credentials("postgresql://ann:s3cret@db/x") == "postgresql://…@db/x"
    assert f.scalar({"ledger": "postgresql://ann:s3cret@db/x"}) == "{ledger: postgresql://…@db/x}"
    assert f.without_credentials("sqlite:///ledger.db") == "sqlite:///ledger.db"


def test_scalars_are_written_as_yaml_writes_them() -> None:
    assert f.scalar([None, True, 0.5, "a", {"k": [1]}]) == "[null, true, 0.5, a, {k: [1]}]"
