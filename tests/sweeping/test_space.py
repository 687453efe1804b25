"""Candidates of a space: drawn as the prior says, read back exactly, and all of them where there are finitely many."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.spec.merging import Layer, _command_line
from harness.spec.sweep_block import PriorBlock
from harness.sweeping.space import Candidate, base_values, draw, finite, values_of

FIXED = settings(max_examples=200, deadline=None, derandomize=True)
TEXT = st.text(max_size=12).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
WORDS = st.sampled_from(
    ["yes", "No", "null", "~", "1e-6", "0x1f", "1_000", "a: b", "[x]", "# c", "<<", "=", "-", "???"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False)
    | TEXT
    | WORDS
    | st.text(alphabet="aé\u2028\x85\x07\t\n\"'\\\U0001f600 :,{}[]&*!|>%@`", max_size=6)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | WORDS, inner, max_size=3), max_leaves=6
)
DRAWS = 4000
ALARM = 1e-6
"""False-alarm rate of each test of a law, were its seed not fixed."""


def read(overrides: tuple[str, ...]) -> dict[str, Any]:
    """What the command line makes of overrides, as `load_spec` reads them."""
    layer: Layer = _command_line(overrides, {})
    assert layer.problems == []
    return layer.data


def seeded(seed: int) -> Any:
    source = random.Random(seed)
    return lambda key: 1 - source.random()


def exactly(a: Any, b: Any) -> bool:
    """Equal, of the same types all through: 1 is not 1.0, nor true; and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(exactly(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(exactly, a, b))
    return repr(a) == repr(b)


@FIXED
@given(VALUES)
def test_overrides_read_back_exactly(value: Any) -> None:
    """Break: write text without quotes, or floats with 12 digits."""
    candidate = Candidate((("noise.x", value), ("train.steps", 3)))
    assert exactly(read(candidate.overrides), {"noise": {"x": value}, "train": {"steps": 3}})
    assert all("\n" not in text for text in candidate.overrides)


@FIXED
@given(st.floats(1e-300, 1e14), st.floats(1.001, 10), st.floats(0, 1, exclude_min=True), st.integers(0, 10**12))
def test_draws_lie_in_the_prior_and_read_back(low: float, factor: float, u: float, whole: int) -> None:
    """Ends included, whatever rounding does. Break: don't cut at the ends."""
    space = {
        "a": PriorBlock(uniform=(low, low * factor)),
        "b": PriorBlock(loguniform=(low, low * factor)),
        "c": PriorBlock(int=(-whole - 1, whole)),
        "d": PriorBlock(choice=(1, "x", [2])),
    }
    candidate = draw(space, lambda key: u, {})
    found = candidate.document()
    assert list(found) == ["a", "b", "c", "d"]
    assert low <= found["a"] <= low * factor
    assert low <= found["b"] <= low * factor
    assert isinstance(found["c"], int)
    assert -whole - 1 <= found["c"] <= whole
    assert found["d"] in values_of(space["d"])
    assert exactly(read(candidate.overrides), found)


def test_the_ends_of_a_draw() -> None:
    """u lies in (0, 1]: its ends are the first and the last value."""
    values, whole = PriorBlock(choice=(1, 2, 3)), PriorBlock(int=(5, 7))
    for u, place in ((5e-324, 0), (1 / 3, 0), (0.34, 1), (2 / 3, 1), (0.67, 2), (1.0, 2)):
        drawn = draw({"a": values, "b": whole}, lambda key, u=u: u, {}).document()  # type: ignore[misc]
        assert drawn == {"a": 1 + place, "b": 5 + place}
    assert draw({"a": PriorBlock(uniform=(1, 3))}, lambda key: 1.0, {}).document() == {"a": 3.0}


def test_the_law_of_draws() -> None:
    """Each test has a false-alarm rate of 1e-6; the seed is fixed. Break: draw a loguniform like a uniform."""
    space = {
        "choice": PriorBlock(choice=("a", "b", "c")),
        "grid": PriorBlock(grid=(1, 2)),
        "int": PriorBlock(int=(3, 9)),
        "uniform": PriorBlock(uniform=(-1, 3)),
        "loguniform": PriorBlock(loguniform=(1e-3, 10)),
    }
    uniform = seeded(1)
    drawn = [draw(space, uniform, {}).document() for _ in range(DRAWS)]
    columns = {key: [d[key] for d in drawn] for key in space}
    for key, values in (("choice", ("a", "b", "c")), ("grid", (1, 2)), ("int", range(3, 10))):
        counts = [columns[key].count(v) for v in values]
        assert sum(counts) == DRAWS
        assert stats.chisquare(counts).pvalue > ALARM, key
    assert stats.kstest(columns["uniform"], stats.uniform(-1, 4).cdf).pvalue > ALARM
    assert stats.kstest(columns["loguniform"], stats.loguniform(1e-3, 10).cdf).pvalue > ALARM
    pairs = stats.spearmanr(columns["uniform"], columns["loguniform"])
    assert pairs.pvalue > ALARM


CONDITIONAL = {
    "noise.clip_share": PriorBlock(uniform=(0, 1), when={"noise.type": "product"}),
    "noise.type": PriorBlock(choice=("scale", "product", "sample")),
    "train.optimizer.momentum": PriorBlock(choice=(0.5, 0.9), when={"train.optimizer.type": "sgd"}),
    "clipping.norm": PriorBlock(grid=(1, 2), when={"noise.type": ["scale", "sample"], "seed": [1, 2]}),
}


def test_conditional_keys() -> None:
    """A key comes only where its condition holds, whether that key stands before it or after it.

    Break: hold conditions against the spec alone.
    """
    uniform = seeded(2)
    base = base_values({"noise": {"type": "scale"}, "train": {"optimizer": {"type": "adamw"}}, "seed": 2})
    kinds = {"scale": 0, "product": 0, "sample": 0}
    for _ in range(300):
        found = draw(CONDITIONAL, uniform, base).document()
        kinds[found["noise.type"]] += 1
        assert ("noise.clip_share" in found) == (found["noise.type"] == "product")
        assert ("clipping.norm" in found) == (found["noise.type"] != "product")
        assert "train.optimizer.momentum" not in found
        assert list(found) == [key for key in CONDITIONAL if key in found]
    assert min(kinds.values()) > 50
    other = draw(CONDITIONAL, uniform, {**base, "train.optimizer.type": "sgd", "seed": True}).document()
    assert "train.optimizer.momentum" in other
    assert "clipping.norm" not in other  # true is not 1


def test_a_draw_is_asked_once_for_each_key_that_there_is() -> None:
    asked: list[str] = []

    def uniform(key: str) -> float:
        asked.append(key)
        return 0.1

    draw(CONDITIONAL, uniform, {"noise.type": "product", "seed": 1})
    assert asked == ["noise.type", "clipping.norm"]


def test_a_condition_within_a_block_that_is_drawn() -> None:
    space = {
        "noise": PriorBlock(
            choice=({"type": "scale"}, {"type": "product", "epsilon": {"a": 1}}, {"epsilon": {"b": 2}})
        ),
        "x": PriorBlock(choice=(1,), when={"noise.type": "product"}),
        "y": PriorBlock(choice=(1,), when={"noise.epsilon.a": 1}),
    }
    base = {"noise.type": "product", "noise.epsilon.a": 3}
    found = finite(space, base)
    assert found is not None
    assert [sorted(c.document())[1:] for c in found] == [[], ["x", "y"], ["x"]]


def test_all_candidates_of_a_finite_space() -> None:
    """In a fixed order, the first keys slowest; none twice. Break: take the product of all values."""
    space = {
        "noise.share": PriorBlock(grid=(0.1, 0.2), when={"noise.type": "product"}),
        "noise.type": PriorBlock(choice=("scale", "product")),
        "train.steps": PriorBlock(int=(1, 2)),
    }
    found = finite(space, {})
    assert found is not None
    assert [c.document() for c in found] == [
        {"noise.type": "scale", "train.steps": 1},
        {"noise.type": "scale", "train.steps": 2},
        {"noise.share": 0.1, "noise.type": "product", "train.steps": 1},
        {"noise.share": 0.1, "noise.type": "product", "train.steps": 2},
        {"noise.share": 0.2, "noise.type": "product", "train.steps": 1},
        {"noise.share": 0.2, "noise.type": "product", "train.steps": 2},
    ]
    uniform = seeded(3)
    drawn = {draw(space, uniform, {}).overrides for _ in range(300)}
    assert drawn == {c.overrides for c in found}


@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"a": PriorBlock(uniform=(0, 1))}, None),
        ({"a": PriorBlock(loguniform=(1, 2)), "b": PriorBlock(choice=(1,))}, None),
        ({"a": PriorBlock(int=(1, 10_000))}, 10_000),
        ({"a": PriorBlock(int=(0, 10_000))}, None),
        ({"a": PriorBlock(int=(1, 1000)), "b": PriorBlock(int=(1, 101))}, None),
        ({}, 1),
    ],
)
def test_what_is_not_enumerated(space: dict[str, PriorBlock], count: int | None) -> None:
    found = finite(space, {})
    assert (None if found is None else len(found)) == count


def test_values_that_bound_a_prior() -> None:
    assert values_of(PriorBlock(grid=(3, "a"))) == (3, "a")
    assert values_of(PriorBlock(loguniform=(0.1, 2))) == (0.1, 2)
    assert values_of(PriorBlock(int=(1, 4))) == (1, 4)


def test_the_spec_s_values_by_key() -> None:
    found = base_values({"a": {"b": [1, {"c": 2}]}, "d": None, "sweep": {"space": {}}})
    assert found == {
        "a": {"b": [1, {"c": 2}]},
        "a.b": [1, {"c": 2}],
        "a.b.0": 1,
        "a.b.1": {"c": 2},
        "a.b.1.c": 2,
        "d": None,
    }
