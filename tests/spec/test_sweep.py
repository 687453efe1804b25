"""The sweep block: every message that it can provoke, with its place, and what a right one turns into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.spec import LoadedSpec, SpecErrors, load_spec, loading
from harness.spec.sweep_block import SweepBlock, TrialsBlock
from harness.sweeping.space import base_values, draw, finite

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("sweep_cases.yaml").read_text(encoding="utf-8"))
NORM = "{space: {clipping.norm: {choice: [1]}}"
EPSILON = "{free: 8, paid: 4, other: 2}"


def load(text: str, sweep: str, write: Any, overrides: Sequence[str] = ()) -> LoadedSpec:
    return load_spec(write(f"{text}sweep: {sweep}\n"), overrides)


def errors(text: str, sweep: str, write: Any, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        load(text, sweep, write, overrides)
    return [line.removeprefix("spec.yaml:") for line in str(caught.value).splitlines()]


def block(loaded: LoadedSpec) -> SweepBlock:
    assert loaded.spec.sweep is not None
    return loaded.spec.sweep


def test_place_and_text(tiny: str, write: Any) -> None:
    """Every case of the table, in one test.

    Breaks: try only the first value of a list; report what the spec has wrong anyhow; load without the conditions.
    """
    assert len(CASES) >= 100
    wrong = []
    for case in CASES:
        assert case.get("replace", "") in tiny
        text = tiny.replace(case.get("replace", ""), case.get("by", ""), 1)
        if (found := errors(text, case["sweep"], write)) != case["says"]:
            wrong.append((case, found))
    assert not wrong


@pytest.mark.parametrize(
    "sweep",
    [
        f"{NORM}}}",
        "{space: {clipping.norm: {loguniform: [0.1, 2.0]}, noise.epsilon.other: {choice: [1, 2]}}}",
        "{space: {train.steps: {int: [1, 40]}, train.optimizer: {choice: [{type: sgd, lr: 1}, {lr: 1e-3}]}}}",
        "{space: {train.optimizer.type: {grid: [sgd, adam]}, train.optimizer.momentum: {uniform: [0, 0.9], "
        "when: {train.optimizer.type: sgd}}}}",
        # Targets go with the policy that they belong to: only whole candidates load.
        f"{{space: {{noise.type: {{choice: [product, scale, sample]}}, noise.epsilon: {{choice: [{EPSILON}]}}, "
        "noise.clip_share: {uniform: [0, 1], when: {noise.type: product}}}}",
        f"{{space: {{noise: {{choice: [{{type: uniform}}, {{type: product, epsilon: {EPSILON}}}]}}, "
        "train.steps: {int: [5, 9], when: {noise.type: product}}}}",
        "{space: {noise.epsilon: {choice: [{free: 6}, {paid: 3, other: 1}]}, segmentation.column: {choice: [plan]}}}",
        "{space: {segmentation.values.0: {choice: [free]}, model.adapter.r: {grid: [2, 4]}, sampling.expected: "
        "{uniform: [8, 100]}}}",
        "{space: {clipping.norm: {choice: [1], when: {seed: [3, 4], train.steps: 10}}}}",
        "{space: {clipping.norm: {choice: [1]}, train.steps: {choice: [5], when: {clipping.norm: [1]}}}}",
        f"{NORM}, search: {{type: predicted, by: overall, candidates: 50, tokens: 1000000}}}}",
        f"{NORM}, search: {{type: optuna, trials: 20}}, concurrent: 4}}",
        f"{NORM}, search: {{type: asha, trials: 20, grace: 2, reduction: 4}}, select: {{metric: eval/loss/paid}}}}",
        f"{NORM}, search: {{trials: {{law: negative_binomial, mean: 5, shape: 0.5}}}}}}",
        f"{NORM}, search: null, select: {{}}, proxy: null}}",
        f"{NORM}, proxy: {{source: {{type: shakespeare}}, user: who, messages: talk}}}}",
    ],
)
def test_right_ones_load_and_load_again(sweep: str, tiny: str, write: Any) -> None:
    loaded = load(tiny, sweep, write)
    again = load_spec(write(yaml.safe_dump(loaded.resolved, sort_keys=False), "again.yaml"))
    assert again.resolved == loaded.resolved
    assert again.spec == loaded.spec


def test_defaults(tiny: str, write: Any) -> None:
    sweep = block(load(tiny, f"{NORM}}}", write))
    assert (sweep.search.type, sweep.search.trials) == ("random", TrialsBlock(law="geometric", mean=10))
    assert (sweep.select.metric, sweep.select.mode, sweep.concurrent, sweep.proxy) == ("eval/loss", "min", "auto", None)
    predicted = block(load(tiny, f"{NORM}, search: {{type: predicted, candidates: null}}}}", write)).search
    assert (predicted.candidates, predicted.by, predicted.tokens, predicted.trials) == (1000, "worst", None, None)
    asha = block(load(tiny, f"{NORM}, search: {{type: asha, trials: 9}}}}", write)).search
    assert (asha.trials, asha.grace, asha.reduction, asha.candidates) == (9, 1, 3, None)
    assert load_spec(write(tiny)).spec.sweep is None


def test_a_proxy_s_source_is_a_plugin_with_all_its_parameters(tiny: str, write: Any) -> None:
    loaded = load(tiny, f"{NORM}, proxy: {{source: {{type: synthetic, scenario: chat, users: 9}}}}}}", write)
    proxy = block(loaded).proxy
    assert proxy is not None
    assert (proxy.user, proxy.text) == ("user", "text")
    assert proxy.source.parameters["users"] == 9
    assert "records" in proxy.source.parameters
    assert loaded.origins["sweep.proxy.source.scenario"].startswith("spec.yaml:24:")


def test_a_sweep_changes_nothing_else_of_the_spec(tiny: str, write: Any) -> None:
    with_sweep = load(tiny, f"{NORM}}}", write)
    without = load_spec("spec.yaml", ["sweep=null"])
    assert without.spec == load_spec(write(tiny)).spec
    assert with_sweep.spec.model_copy(update={"sweep": None}) == without.spec


def test_the_command_line(tiny: str, write: Any) -> None:
    """A key of the space is one part; a new prior replaces the old one; null takes a key out."""
    write(f"{tiny}sweep: {{space: {{clipping.norm: {{uniform: [1, 2]}}, train.steps: {{int: [1, 9]}}}}}}\n")
    overrides = ["sweep.space.clipping.norm.grid=[1, 3]", "sweep.space.train.steps=null"]
    overrides += ["sweep.space.clipping.norm.when.noise.type=scale", "sweep.space.train.optimizer.lr={choice: [1e-3]}"]
    loaded = load_spec("spec.yaml", overrides)
    space = block(loaded).space
    assert list(space) == ["clipping.norm", "train.optimizer.lr"]
    assert (space["clipping.norm"].grid, space["clipping.norm"].uniform) == ((1, 3), None)
    assert space["clipping.norm"].when == {"noise.type": "scale"}
    assert loaded.origins["sweep.space.clipping.norm.grid"] == "<command line>"
    with pytest.raises(SpecErrors) as caught:
        load_spec("spec.yaml", ["sweep.space.clipping.norm.grid=[1, -3]", "sweep.space.train.steps.int.0=0"])
    assert str(caught.value).splitlines() == [
        "<command line> sweep.space.clipping.norm.grid.1: must be a number of at least 1e-06 and at most 1000000, "
        "found -3",
        "<command line> sweep.space.train.steps.int.0: must be a whole number of at least 1 and at most 1000000, "
        "found 0",
    ]
    assert "unknown key" in errors(tiny, "{space: {clipping: {norm: {choice: [1]}}}}", write)[0]


def test_a_later_search_replaces_an_earlier_one_of_another_type(tiny: str, write: Any) -> None:
    write(f"{tiny}sweep: {NORM}, search: {{type: asha, trials: 9, grace: 3}}}}\n", "base.yaml")
    search = block(load_spec(write("extends: base.yaml\nsweep: {search: {type: random}}\n"))).search
    assert (search.trials, search.grace) == (TrialsBlock(), None)
    assert block(load_spec(write("extends: base.yaml\nsweep: {search: {trials: 7}}\n"))).search.grace == 3


def test_errors_lie_where_a_base_has_them(tiny: str, write: Any) -> None:
    write("sweep:\n  space:\n    clipping.norm: {choice: [1, 0]}\n", "base.yaml")
    with pytest.raises(SpecErrors) as caught:
        load_spec(write(f"extends: base.yaml\n{tiny}"))
    assert str(caught.value).startswith("base.yaml:3:33 sweep.space.clipping.norm.choice.1: must be a number")


def test_long_spaces_are_refused(tiny: str, write: Any) -> None:
    values = list(range(1, 302))
    assert errors(tiny, f"{{space: {{train.steps: {{choice: {values}}}}}}}", write) == [
        "24:39 sweep.space.train.steps.choice: must be a list of at most 300 items, found 301"
    ]
    many = ", ".join(f"noise.epsilon.a{i}: {{choice: [1]}}" for i in range(51))
    assert errors(tiny, f"{{space: {{{many}}}}}", write) == ["24:9 sweep.space: must be at most 50 keys, found 51"]
    full = ", ".join(f"noise.epsilon.a{i}: {{choice: {values[:300]}}}" for i in range(7))
    says = ["24:9 sweep.space: must hold at most 2000 values in all, found 2100"]
    assert errors(tiny, f"{{space: {{{full}}}}}", write) == says


def test_every_value_is_tried_without_the_sweep(tiny: str, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, and no try has a sweep of its own. Break: leave the sweep in place; try both alone and as a whole."""
    tried: list[Sequence[str]] = []
    attempt = loading._attempt

    def counted(merged: Any, overrides: Sequence[str]) -> Any:
        tried.append(overrides)
        return attempt(merged, overrides)

    monkeypatch.setattr(loading, "_attempt", counted)
    load(tiny, "{space: {clipping.norm: {choice: [1, 2, 3]}, train.steps: {int: [1, 9]}}}", write, ["seed=5"])
    assert tried == [
        ["seed=5", "sweep=null"],
        *(["seed=5", "sweep=null", f"clipping.norm={value}"] for value in (1, 2, 3)),
        *(["seed=5", "sweep=null", f"train.steps={value}"] for value in (1, 9)),
    ]


def test_no_noise_on_public_data_may_be_searched(tiny: str, write: Any) -> None:
    """Nothing is promised, and nothing needs to be. A predicted search and one on a proxy spend nothing either."""
    text = tiny.replace("noise: {type: scale, epsilon: {free: 8, paid: 4, other: 2}}", "noise: {type: none}")
    assert load(text.replace("name: posts", "name: posts\n  visibility: public"), f"{NORM}}}", write)
    assert load(text, f"{NORM}, search: {{type: predicted}}}}", write)
    assert load(text, f"{NORM}, proxy: {{source: {{type: shakespeare}}}}}}", write)


def test_a_predicted_search_needs_no_holdout(tiny: str, write: Any) -> None:
    text = tiny.replace("users: 0.1", "users: 0")
    assert load(text, f"{NORM}, search: {{type: predicted}}}}", write)


def test_every_candidate_of_the_packaged_spec_loads() -> None:
    """What is tried value by value is drawn in combination. Break: write a float with 3 digits."""
    loaded = load_spec("sweeps/shakespeare")
    space = block(loaded).space
    assert finite(space, {}) is None
    for u in (1e-9, 0.37, 1.0):
        candidate = draw(space, lambda key, u=u: u, base_values(loaded.resolved))  # type: ignore[misc]
        trial = load_spec("sweeps/shakespeare", ["sweep=null", *candidate.overrides])
        found = base_values(trial.resolved)
        assert {key: found[key] for key, _ in candidate.values} == candidate.document()


FIXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
KEYS = st.sampled_from(
    [
        "clipping.norm",
        "noise.type",
        "noise",
        "noise.clip_share",
        "train.steps",
        "sensitivity.tiers.edges.0",
        "segmentation",
    ]
) | st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["scale", "${seed}"])
)
INNER = st.recursive(SCALARS, lambda v: st.lists(v, max_size=2) | st.dictionaries(KEYS, v, max_size=2), max_leaves=4)
PRIORS = st.dictionaries(
    st.sampled_from(["choice", "grid", "uniform", "loguniform", "int"]), st.lists(INNER, max_size=3), max_size=2
)
CONDITIONS = st.fixed_dictionaries({}, optional={"when": st.dictionaries(KEYS, INNER, max_size=2)})
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("clipping.norm", {"loguniform": [0.1, 2]}),
    ("train.steps", {"int": [2, 9]}),
    ("noise.epsilon.free", {"choice": [3, 4.5]}),
    ("noise.type", {"grid": ["scale"]}),
    ("train.optimizer", {"choice": [{"lr": 0.1}, {"type": "sgd"}]}),
]
RIGHT_ONES = st.sampled_from(RIGHT)
WRONG_ONES = st.tuples(KEYS, st.builds(lambda a, b: {**a, **b}, PRIORS, CONDITIONS) | INNER)
MIXED = st.builds(lambda right, b: (right[0], {**right[1], **b}), RIGHT_ONES, CONDITIONS)
SPACES = st.lists(RIGHT_ONES | RIGHT_ONES | RIGHT_ONES | MIXED | WRONG_ONES, min_size=1, max_size=3).map(dict)
SEARCHES = st.none() | st.none() | INNER | st.dictionaries(st.sampled_from(["type", "trials", "by"]), INNER, max_size=2)


@FIXED
@given(space=SPACES, search=SEARCHES)
def test_whatever_is_written_is_a_spec_or_spec_errors(space: Any, search: Any, tiny: str, write: Any) -> None:
    text = tiny + yaml.safe_dump({"sweep": {"space": space, "search": search}}, allow_unicode=True)
    assert outcome(write(text))


def outcome(path: str) -> bool:
    """Whether a spec loads and a candidate can be drawn from it, or every problem has its line."""
    try:
        loaded = load_spec(path)
    except SpecErrors as error:
        return len(str(error).splitlines()) == len(error.problems)
    return draw(block(loaded).space, lambda key: 0.5, base_values(loaded.resolved)).overrides is not None
