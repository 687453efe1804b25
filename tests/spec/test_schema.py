"""The JSON schema says what the models say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from harness.cli import main
from harness.spec.merging import packaged_specs
from harness.spec.reading import Layer, read_text
from harness.spec.schema import json_schema

CASES = Path(__file__).with_name("cases.yaml")


def test_the_file_is_fresh() -> None:
    written = (packaged_specs() / "schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == json_schema(), "run: uudp schema > specs/schema.json"
    assert written == json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def test_it_is_a_schema_and_takes_the_tiny_spec(tiny: str) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(tiny.replace("1e-6", "0.000001").replace("2e-3", "0.002")), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.stpes", 3),
        ("train.steps", "many"),
        ("noise", {"type": "scael"}),
        ("noise", {"type": "scale", "epsilom": {}}),
        ("segmentation", {"type": "usage", "edges": ["a"]}),
        ("data.source", {"type": "jsonl", "pth": "x"}),
        ("audit", {"one_run": {"canaries": 3}}),
        ("sweep.space", {}),
        ("sweep.space", {"clipping.norm": {"loguniform": [0, 1]}}),
    ],
)
def test_it_refuses(path: str, value: Any) -> None:
    document: Any = value
    for part in reversed(path.split(".")):
        document = {part: document}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_it_takes_a_part_and_somebodys_plugin() -> None:
    schema = json_schema()
    jsonschema.validate({"extends": "base/a.yaml", "noise": {"epsilon": {"a": 1}}}, schema)
    jsonschema.validate({"extends": ["a.yaml"], "noise": {"type": "mine:Policy", "x": 1}}, schema)
    assert {c["title"] for c in schema["properties"]["noise"]["anyOf"] if "title" in c} == {
        "contribution",
        "none",
        "participation",
        "product",
        "risk_proportional",
        "sample",
        "scale",
        "schedule",
        "uniform",
    }


def _written(folder: Path) -> list[Path]:
    """The packaged specs and a starter of `uudp init`."""
    (folder / "posts.csv").write_text("author,body,plan\n" + "".join(f"u{i},hello {i} there,free\n" for i in range(20)))
    assert main.run_app(["init", "starter", "--data", "posts.csv"]) == 0
    specs = [path for path in packaged_specs().rglob("*.yaml") if path.parent.name != "leaderboard"]  # suites are not
    return [*specs, folder / "starter.yaml"]


def test_it_takes_every_spec_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as an editor reads them: 1e-6 is a number."""
    monkeypatch.chdir(tmp_path)
    validator = jsonschema.Draft202012Validator(json_schema())
    for path in _written(tmp_path):
        assert [e.message for e in validator.iter_errors(_plain(path.read_text(encoding="utf-8")))] == [], path


def test_it_agrees_with_the_loader(tiny: str) -> None:
    """What the schema refuses, the loader refuses; and of the cases of one wrong value or key, the schema finds most.

    What joins several keys (weights that must sum to 1), it can't say. Break: drop a bound from the schema.
    """
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(_plain(tiny))
    cases = [c for c in yaml.safe_load(CASES.read_text(encoding="utf-8")) if "replace" in c]
    said = {"must be": 0, "unknown": 0}
    found = dict(said)
    for case in cases:
        document = _plain(tiny.replace(case["replace"], case["by"], 1))
        kind = next((k for k in said if f": {k}" in case["says"][0]), None)
        if len(case["says"]) > 1 or kind is None or not isinstance(document, dict):
            continue
        said[kind] += 1
        found[kind] += not validator.is_valid(document)
    assert said["must be"] > 150
    assert found["must be"] > 0.8 * said["must be"], (found, said)
    assert found["unknown"] > 0.95 * said["unknown"], (found, said)


def _plain(text: str) -> Any:
    """A spec's text as data; None where it is no YAML. Nothing of it is checked."""
    layer = Layer("spec.yaml")
    data = read_text(text, layer).data
    return None if layer.problems else data
