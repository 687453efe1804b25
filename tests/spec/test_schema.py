"""The JSON schema says what the models say."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from harness.spec.merging import packaged_specs
from harness.spec.schema import json_schema


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
        ("sweep", {}),
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
        "none",
        "sample",
        "scale",
        "uniform",
    }
