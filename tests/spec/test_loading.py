"""What a valid spec turns into, and where its values come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.plugins import Group, NoisePolicy, OwnRecordsSegmenter, PluginError, Proposal, UserRecords
from harness.spec import Spec, SpecErrors, load_spec
from harness.spec.loading import STAND_IN, validate_json
from harness.spec.merging import packaged_specs


class OneGroup(OwnRecordsSegmenter):
    @property
    def segments(self) -> tuple[str, ...]:
        return ("all",)

    def assign(self, user: UserRecords) -> str:
        return "all"


class Broken(OneGroup):
    @property
    def segments(self) -> tuple[str, ...]:
        raise RuntimeError("two\nlines")


class Greedy(NoisePolicy):
    def propose(self, groups: list[Group], epsilon: float) -> Proposal:  # type: ignore[override]
        return Proposal({g.name: 2 * epsilon for g in groups})


class Refusing(NoisePolicy):
    def propose(self, groups: list[Group], epsilon: float) -> Proposal:  # type: ignore[override]
        raise PluginError("no")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    import sys

    monkeypatch.setitem(sys.modules, "own_policies", sys.modules[__name__])
    return "own_policies"


def test_values_defaults_and_origins(tiny: str, write: Any) -> None:
    loaded = load_spec(write(tiny), ["train.steps=20", "privacy.delta=1e-7"])
    assert loaded.spec.train.steps == 20
    assert loaded.spec.privacy.delta == 1e-7
    assert loaded.spec.train.optimizer.lr == 2e-3
    assert loaded.origins["train.steps"] == "<command line>"
    assert loaded.origins["train.optimizer.lr"] == "spec.yaml:22:32"
    assert loaded.origins["noise.epsilon.paid"] == "spec.yaml:16:47"
    assert loaded.origins["data.attributes"] == "spec.yaml:8:15"
    assert loaded.origins["train.checkpoint_every"] == "default"
    assert loaded.origins["segmentation.fallback"] == "default"
    assert loaded.resolved["segmentation"]["fallback"] == "other"
    assert loaded.spec.segmentation.parameters["fallback"] == "other"
    assert (loaded.path, loaded.base_dir) == (Path("spec.yaml"), Path("."))


def test_every_leaf_has_an_origin(tiny: str, write: Any) -> None:
    loaded = load_spec(write(tiny))

    def leaves(data: dict[str, Any], above: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in data.items():
            found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else {above + name}
        return found

    assert set(loaded.origins) == leaves(loaded.resolved)


def test_it_is_frozen(tiny: str, write: Any) -> None:
    loaded = load_spec(write(tiny))
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.spec = None  # type: ignore[misc,assignment]
    with pytest.raises(TypeError):
        loaded.origins["x"] = "y"  # type: ignore[index]


def test_the_resolved_spec_loads_again(tiny: str, write: Any) -> None:
    first = load_spec(write(tiny))
    again = load_spec(write(yaml.safe_dump(first.resolved, sort_keys=False), "again.yaml"))
    assert again.resolved == first.resolved
    assert again.spec == first.spec


def test_extends(tiny: str, write: Any) -> None:
    write("train: {steps: 5, checkpoint_every: 2}\nclipping: {norm: 3}\n", "base/a.yaml")
    write("extends: ../base/a.yaml\ntrain: {steps: 6}\nseed: 9\n", "base/b.yaml")
    bare = tiny.replace("  steps: 10\n", "").replace("clipping: {norm: 0.5}\n", "").replace("seed: 3\n", "")
    loaded = load_spec(write(f"extends: [base/a.yaml, base/b.yaml]\n{bare}"))
    assert (loaded.spec.train.steps, loaded.spec.train.checkpoint_every, loaded.spec.seed) == (6, 2, 9)
    assert loaded.origins["train.steps"] == "base/b.yaml:2:16"
    assert loaded.origins["clipping.norm"] == "base/../base/a.yaml:2:18"
    assert loaded.origins["train.optimizer.lr"].startswith("spec.yaml:")


def test_errors_in_a_base_name_the_base(tiny: str, write: Any) -> None:
    write("compute: {retries: often}\nmodle: 3\n", "base.yaml")
    with pytest.raises(SpecErrors) as caught:
        load_spec(write(f"extends: base.yaml\n{tiny}"))
    assert str(caught.value).splitlines() == [
        'base.yaml:1:20 compute.retries: must be a whole number of at least 0 and at most 1000, found "often"',
        'base.yaml:2:1 modle: unknown key; did you mean "model"?',
    ]


def test_a_broken_base_hides_what_it_would_have_said(write: Any) -> None:
    write("train: [", "base.yaml")
    with pytest.raises(SpecErrors) as caught:
        load_spec(write("extends: base.yaml\nversion: 1\nname: x\nseed: -1\n"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("spec.yaml:4:7 seed: ")
    assert lines[1].startswith("base.yaml:1:9 can't be read as YAML")


def test_a_longer_circle(write: Any) -> None:
    write("extends: b.yaml\n", "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(SpecErrors) as caught:
        load_spec("a.yaml")
    assert "b.yaml:1:10 extends: goes in a circle: a.yaml → b.yaml → a.yaml" in str(caught.value).splitlines()


def test_packaged_specs_are_found(tiny: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packaged_specs().is_dir()
    packaged = tmp_path / "packaged"
    write("clipping: {norm: 4}\n", "packaged/base/norm.yaml")
    monkeypatch.setattr("harness.spec.merging.packaged_specs", lambda: packaged)
    text = tiny.replace("clipping: {norm: 0.5}", "")
    assert load_spec(write(f"extends: base/norm.yaml\n{text}")).spec.clipping.norm == 4
    with pytest.raises(SpecErrors, match=r'did you mean "base/norm.yaml"\?'):
        load_spec(write(f"extends: base/nrm.yaml\n{text}"))


def test_interpolation(tiny: str, write: Any) -> None:
    text = tiny.replace("steps: 10", "steps: ${sampling.expected}").replace("name: tiny", "name: s-${seed}")
    text = text.replace("free: 8, paid: 4", "free: '${privacy.epsilon}', paid: 4")
    loaded = load_spec(write(text), ["seed=5"])
    assert (loaded.spec.name, loaded.spec.train.steps) == ("s-5", 16)
    assert loaded.spec.noise.parameters["epsilon"]["free"] == 8
    assert loaded.origins["train.steps"] == "spec.yaml:21:10"


def test_a_later_value_replaces_an_interpolation(tiny: str, write: Any) -> None:
    text = tiny.replace("{type: adamw, lr: 2e-3}", "${nowhere}")
    assert load_spec(write(text), ["train.optimizer={lr: 1e-2}"]).spec.train.optimizer.lr == 1e-2
    assert load_spec(write(tiny.replace("steps: 10", "steps: ???")), ["train.steps=3"]).spec.train.steps == 3


def test_anchors_and_merge_keys(tiny: str, write: Any) -> None:
    text = tiny.replace("{norm: 0.5}", "&c {norm: 0.5}").replace("{workers: 1, ", "{workers: &n 1, retries: *n, ")
    assert load_spec(write(text)).spec.compute.retries == 1
    merged = text.replace("{type: adamw, lr: 2e-3}", "{<<: {lr: 1, eps: 1e-8}, lr: 3}")
    loaded = load_spec(write(merged))
    assert (loaded.spec.train.optimizer.lr, loaded.spec.train.optimizer.eps) == (3, 1e-8)
    assert loaded.origins["train.optimizer.lr"] == "spec.yaml:22:43"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("1.0e-6", 1e-6),
        (".05", 0.05),
        ("5e-2", 0.05),
        ("1_0e-2", 0.1),
        ("0.000_001", 1e-6),
    ],
)
def test_numbers(text: str, value: float, tiny: str, write: Any) -> None:
    path = write(tiny.replace("1e-6", text))
    assert load_spec(path).spec.privacy.delta == value
    assert load_spec(path, [f"privacy.delta={text}"]).spec.privacy.delta == value


def test_a_new_plugin_type_drops_the_old_parameters(tiny: str, write: Any) -> None:
    path = write(tiny)
    assert load_spec(path, ["noise.type=uniform"]).resolved["noise"] == {"type": "uniform"}
    kept = load_spec(path, ["noise.type=scale", "noise.epsilon.paid=3"]).resolved["noise"]["epsilon"]
    assert kept == {"free": 8, "paid": 3, "other": 2}


def test_null_takes_a_value_back(tiny: str, write: Any) -> None:
    loaded = load_spec(write(tiny), ["sampling.expected=null", "sampling.rate=0.02", "clipping=null"])
    assert (loaded.spec.sampling.expected, loaded.spec.sampling.rate) == (None, 0.02)
    assert loaded.origins["clipping.norm"] == "default"


def test_one_own_records_segment_needs_no_weights(tiny: str, write: Any, own: str) -> None:
    weights = "  weights: {free: 0.6, paid: 0.3, other: 0.1}\n"
    rule = "{type: attribute, column: plan, values: [free, paid]}"
    text = tiny.replace(weights, "").replace(rule, f"{{type: '{own}:OneGroup'}}")
    loaded = load_spec(write(text), ["noise.type=uniform"])
    assert loaded.spec.segmentation.type == f"{own}:OneGroup"
    given = load_spec(write(text), ["noise.type=uniform", "data.weights={all: 1}"])
    assert given.spec.data.weights == {"all": 1}


def test_faults_of_own_plugins_are_spec_errors(tiny: str, write: Any, own: str) -> None:
    path = write(tiny)
    for overrides, line in [
        ([f"segmentation.type={own}:Broken"], f"segmentation: {__name__}.Broken fails (RuntimeError: two\\nlines)"),
        ([f"noise.type={own}:Greedy"], f'<command line> noise: {__name__}.Greedy proposes ε = 16 for "free"'),
        ([f"noise.type={own}:Refusing"], "<command line> noise: no"),
    ]:
        with pytest.raises(SpecErrors) as caught:
            load_spec(path, overrides)
        assert line in str(caught.value)


def test_everything_required_has_a_stand_in() -> None:
    assert validate_json(Spec, STAND_IN).name == "unnamed"
