"""Every message that a suite can provoke, with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from harness.benchmarking.planning import plan_suite
from harness.benchmarking.reading import load_suite
from harness.benchmarking.suite import BASELINES, suite_schema
from harness.cli import main
from harness.spec import SpecErrors
from harness.spec.merging import packaged_specs
from tests.benchmarking.conftest import SUITE

Write = Callable[..., str]
LETTERS = 'letters, digits, ".", "_" and "-", the first a letter or a digit'

# What is replaced by what, and every line that is then printed, without the file's name.
CASES: list[tuple[str, str, list[str]]] = [
    ("version: 1", "version: 2", ["1:10 version: must be 1, found 2"]),
    ("version: 1\n", "", ["1:1 version: is missing; it must be 1"]),
    ("suite: small", "suite: a b", [f'2:8 suite: must be at most 40 {LETTERS}, found "a b"']),
    ("suite: small", "siute: small", [
        "1:1 suite: is missing; it must be at most 40 " + LETTERS,
        '2:1 siute: unknown key; did you mean "suite"?',
    ]),
    ("title: A small suite", "title: ''", ['3:8 title: must be text that is not empty, found ""']),
    ("spec: spec.yaml\n", "", ["1:1 spec: is missing: a spec for all cells, or `specs`, one for each data set"]),
    ("spec: spec.yaml", "spec: [a]", ["4:7 spec: must be text that is not empty, found a list"]),
    ("spec: spec.yaml", "spec: spce.yaml", [
        '4:7 spec: there is no spec "spce.yaml" beside the suite, nor among the packaged specs; '
        'did you mean "spec.yaml"?',
    ]),
    ("spec: spec.yaml", "spec: quikstart", [
        '4:7 spec: there is no spec "quikstart" beside the suite, nor among the packaged specs; '
        'did you mean "quickstart"?',
    ]),
    ("spec: spec.yaml", "spec: suite.yaml", [
        '4:7 spec: there is no spec "suite.yaml" beside the suite, nor among the packaged specs; '
        'did you mean "spec.yaml"?',
    ]),
    ("spec: spec.yaml", "spec: spec.yaml\nspecs: {a: spec.yaml}", [
        "5:1 specs: stands in place of spec; both can't be",
    ]),
    ("spec: spec.yaml", "specs: {a b: spec.yaml}", [f"4:9 specs.a b: must be a name of at most 40 {LETTERS}"]),
    ("spec: spec.yaml", "specs: {}", [
        "4:8 specs: must be a block of at least one name, each with text that is not empty, found an empty block",
    ]),
    ("  train.steps: 5", "  train.steps: many", [
        '6:16 set.train.steps: must be a whole number of at least 1 and at most 1000000, found "many"',
    ]),
    ("  train.steps: 5", "  train.stpes: 5", ['6:3 set.train.stpes: unknown key; did you mean "steps"?']),
    ("  train.steps: 5", "  train: {stpes: 5}", ['6:11 set.train.stpes: unknown key; did you mean "steps"?']),
    ("  train.steps: 5", "  train..steps: 5", [
        "6:3 set.train..steps: must be a dotted key of the spec, as train.steps",
    ]),
    ("  train.steps: 5", "  'train.steps=4': 5", [
        "6:3 set.train.steps=4: must be a dotted key of the spec, as train.steps",
    ]),
    ("  train.steps: 5", "  privacy: {epsilon: 3}", ["6:13 set.privacy.epsilon: is what `budgets` says"]),
    ("  train.steps: 5", "  privacy.epsilon: 3", ["6:3 set.privacy.epsilon: is what `budgets` says"]),
    ("  train.steps: 5", "  seed: 3", ["6:3 set.seed: is what `seeds` says"]),
    ("  train.steps: 5", "  name: x", ["6:3 set.name: is made of the suite's name and the cell's"]),
    ("  train.steps: 5", "  extends: x.yaml", ["6:3 set.extends: can only stand in a spec"]),
    ("  train.steps: 5", "  sweep: {space: {}}", ["6:3 set.sweep: is not for a suite: its cells are not searched"]),
    ("  train.steps: 5", "  noise.type: scale", [
        "6:3 set.noise.type: belongs into a policy: it is what makes one",
    ]),
    ("  train.steps: 5", "  train.steps: 50%", ["6:16 set.train.steps: a share of the budget stands only below noise"]),
    ("set:\n  train.steps: 5", "set: [a]", ["5:6 set: must be a block of keys, found a list"]),
    (SUITE[SUITE.index("policies") : SUITE.index("budgets")], "", [
        "1:1 policies: is missing",
    ]),
    (SUITE[SUITE.index("policies") : SUITE.index("budgets")], "policies: {}\n", [
        "7:11 policies: must be a block of keys, found an empty block",
    ]),
    ("  uniform: {noise", "  uni form: {noise", [f"8:3 policies.uni form: must be a name of at most 40 {LETTERS}"]),
    ("  uniform: {noise", "  uniform-loosest: {noise", [
        "8:3 policies.uniform-loosest: is the name of a baseline; choose another one",
    ]),
    ("uniform: {noise: {type: uniform}}", "uniform: uniform", [
        '8:12 policies.uniform: must be a block of keys, found "uniform"',
    ]),
    ("type: uniform", "type: unifrom", [
        '8:27 policies.uniform.noise.type: there is no noise "unifrom"; did you mean "uniform"?',
    ]),
    ("free: 100%", "free: 0%", [
        '10:42 policies.scale.noise.epsilon.free: must be a share of the budget above 0 and at most 100 %, as 50 %, '
        'found "0%"',
    ]),
    ("free: 100%", "free: 101%", [
        '10:42 policies.scale.noise.epsilon.free: must be a share of the budget above 0 and at most 100 %, as 50 %, '
        'found "101%"',
    ]),
    ("free: 100%", "free: all%", [
        '10:42 policies.scale.noise.epsilon.free: must be a share of the budget above 0 and at most 100 %, as 50 %, '
        'found "all%"',
    ]),
    ("free: 100%", "free: 0.1%", [
        "10:42 policies.scale.noise.epsilon.free: must be a number of at least 0.01 and at most 1000, found 0.002",
    ]),
    ("free: 100%", "free: 4", [
        "10:42 policies.scale.noise.epsilon.free: 4 is above privacy.epsilon (2)",
    ]),
    ("paid: 50%", "payd: 50%", [
        '10:54 policies.scale.noise.epsilon.payd: "payd" is no group of this spec (there are: free, paid); '
        'did you mean "paid"?',
    ]),
    (
        "epsilon: {free",
        "epsilom: {free",
        [
            "10:12 policies.scale.noise.epsilon: is missing",
            '10:26 policies.scale.noise.epsilom: unknown parameter of scale; did you mean "epsilon"?',
        ],
    ),
    (
        "type: uniform}",
        "type: uniform, epsilon: 3}",
        ["8:36 policies.uniform.noise.epsilon: unknown parameter of uniform"],
    ),
    ("uniform: {noise: {type: uniform}}", "uniform: {noise: {type: none}}", [
        "8:27 policies.uniform.noise.type: trains without privacy; the baseline non-private does (in uniform at ε = 2)",
    ]),
    ("uniform: {noise: {type: uniform}}", "uniform: {compute.workers: 2}", [
        "9:3 compute.workers and compute.accelerator must be the same in all cells (see scale at ε = 2); "
        "give them in set",
    ]),
    ("budgets: [2, 8]", "budgets: []", [
        "11:10 budgets: must be a list of at least one item, each a number of at least 0.01 and at most 1000, "
        "found an empty list",
    ]),
    ("budgets: [2, 8]", "budgets: [2, 0]", [
        "11:14 budgets.1: must be a number of at least 0.01 and at most 1000, found 0",
    ]),
    ("budgets: [2, 8]", "budgets: [2, 2.0]", ["11:14 budgets.1: 2 a second time"]),
    ("budgets: [2, 8]", "budgets: [2, 2.0000001]", ["11:14 budgets.1: 2 a second time"]),
    ("seeds: [1, 2]", "seeds: [1, 1]", ["12:12 seeds.1: 1 a second time"]),
    ("seeds: [1, 2]", "seeds: [1, -1]", [
        "12:12 seeds.1: must be a whole number of at least 0 and below 9223372036854775808, found -1",
    ]),
    ("[uniform-strictest]", "[uniform-stricter]", [
        '13:13 baselines.0: must be "non-private", "uniform-loosest", "uniform-strictest" or "drop-strict", '
            'found "uniform-stricter"; '
        'did you mean "uniform-strictest"?',
    ]),
    ("[uniform-strictest]", "[uniform-strictest, uniform-strictest]", [
        "13:32 baselines.1: uniform-strictest a second time",
    ]),
    ("[uniform-strictest]", "[non-private]", [
        '13:13 baselines.0: non-private trains without privacy, and the data set "posts" is private; leave it out',
    ]),
    ("paid: 50%", "paid: 100%", [
        "13:13 baselines.0: no policy promises any group less than ε = 2: it would be uniform at the budget",
    ]),
    ("baselines:", "concurrent: none\nbaselines:", [
        '13:13 concurrent: must be a whole number of at least 1 and at most 1000 or "auto", found "none"',
    ]),
    ("seeds: [1, 2]", "seeds: [1, 2", [
        "13:10 can't be read as YAML: a bracket that is not closed, or a comma too few",
    ]),
]  # fmt: skip


def _said(path: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        plan_suite(path)
    assert caught.value.exit_code == 2
    return [line.removeprefix("suite.yaml:") for line in str(caught.value).splitlines()]


def test_place_and_text(suite: Write) -> None:
    """Every case of the table. Red when overrides' problems are not brought back to the suite."""
    wrong = []
    for replace, by, says in CASES:
        found = _said(suite(replace, by))
        if found != says:
            wrong.append((by, found))
    assert not wrong, "\n".join(f"{by!r}\n  {found}" for by, found in wrong)


def test_whoever_all_policies_together_would_drop_must_not_be_everybody(suite: Write) -> None:
    suite("[uniform-strictest]", "[drop-strict]")
    scale = "{free: 100%, paid: 50%}"
    text = Path("suite.yaml").read_text().replace(scale, "{free: 50%, paid: 100%}")
    other = f"  other:\n    noise: {{type: sample, epsilon: {scale}}}\n"
    Path("suite.yaml").write_text(text.replace("budgets:", other + "budgets:"))
    assert _said("suite.yaml") == ["15:13 baselines.0: nobody would be left to train on"]


def test_a_mistake_of_the_spec_is_shown_there(suite: Write) -> None:
    """Its own file and line, once for all cells that have it."""
    found = _said(suite(spec={"model": {"base": "x", "dtype": "float16"}}))
    assert len(found) == 1
    assert found[0].startswith("spec.yaml:")
    assert "model.dtype: must be" in found[0]


def test_what_a_policy_leaves_of_the_spec_is_shown_in_the_spec(suite: Write) -> None:
    """A target of the spec that a small budget does not hold."""
    found = _said(suite("{type: scale, epsilon: {free: 100%, paid: 50%}}", "{type: scale}",
                        spec={"noise": {"type": "scale", "epsilon": {"free": 8, "paid": 4}}}))  # fmt: skip
    assert all(line.startswith("spec.yaml:") for line in found)
    assert any("noise.epsilon.free: 8" in line and "(in scale at ε = 2)" in line for line in found)


def test_files_that_are_no_suite(suite: Write, capsys: pytest.CaptureFixture[str]) -> None:
    suite()
    for name in ("nothing.yaml", "shakespear", ".", "no\0name", "spec.yaml"):
        assert main.run_app(["bench", name, "--plan"]) == 2
        said = capsys.readouterr().err.splitlines()
        assert said
        assert all("Traceback" not in line for line in said)
    assert main.run_app(["bench", "shakespear", "--plan"]) == 2
    assert capsys.readouterr().err == 'shakespear: there is no such file; did you mean "shakespeare"?\n'


def test_too_long_names(suite: Write) -> None:
    long = "p" * 40
    found = _said(_long(suite, long))
    assert len(found) == 1
    assert found[0].startswith("2:8 suite: makes the name of a run longer than 100 characters")


def _long(suite: Write, name: str) -> str:
    suite("suite: small", f"suite: {name}")
    text = Path("suite.yaml").read_text().replace("  uniform: {", f"  {name}: {{")
    Path("suite.yaml").write_text(text.replace("spec: spec.yaml", f"specs: {{{name}: spec.yaml}}"))
    return "suite.yaml"


def test_names_that_say_the_same(suite: Write) -> None:
    """Two cells in one folder would be one run."""
    suite("spec: spec.yaml", "specs: {a: spec.yaml, a-b: spec.yaml}")
    text = Path("suite.yaml").read_text()
    Path("suite.yaml").write_text(text.replace("  uniform: {", "  b-uniform: {noise: {type: uniform}}\n  uniform: {"))
    assert _said("suite.yaml") == ["7:1 policies: two cells would be called small-a-b-uniform-e2-s1"]


@pytest.mark.parametrize("name", sorted(p.stem for p in (packaged_specs() / "leaderboard").glob("*.yaml")))
def test_packaged_suites_are_valid_and_large_enough(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_suite(name)
    assert loaded.path == packaged_specs() / "leaderboard" / f"{name}.yaml"
    assert loaded.suite.suite == name
    assert len(loaded.suite.policies) >= 5
    assert len(loaded.suite.budgets) >= 2
    assert len(loaded.suite.seeds) >= 3
    assert set(loaded.suite.baselines) == set(BASELINES)


def test_the_schema_is_fresh_and_takes_every_suite(suite: Write) -> None:
    schema = suite_schema()
    written = (packaged_specs() / "suite-schema.json").read_text(encoding="utf-8")
    fresh = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    assert written == fresh, "run: uudp schema --suite > specs/suite-schema.json"
    jsonschema.Draft202012Validator.check_schema(schema)
    documents: list[Any] = [yaml.safe_load(SUITE)]
    documents += [yaml.safe_load(p.read_text()) for p in (packaged_specs() / "leaderboard").glob("*.yaml")]
    for document in documents:
        jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**documents[0], "polices": {}}, schema)
