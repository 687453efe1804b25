"""The README's example of a plugin is complete, conforms, and can be named in a spec; packaged specs are valid."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from harness.conformance import ConformanceError, check_segmenter
from harness.plugins import UserRecords, segmentation
from harness.spec import load_spec
from harness.spec.merging import packaged_specs

README = Path(__file__).parents[1] / "README.md"
NAMES = sorted(path.stem for path in packaged_specs().glob("*.yaml"))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The README's code, as a module on the Python path, in a name of its own for each test."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    name = f"learned_length_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_plugin_of_the_readme_conforms(example: str) -> None:
    """Red when the interface of sessions changes and the README does not, or when its `ask` names another query."""
    check_segmenter(importlib.import_module(example).LearnedLength)


def test_the_check_sees_a_query_that_was_not_declared(example: str, tmp_path: Path) -> None:
    """The test above can fail: the same code asks for something else."""
    code = (tmp_path / f"{example}.py").read_text(encoding="utf-8")
    (tmp_path / f"{example}_wrong.py").write_text(code.replace('ask("median', 'ask("mean'), encoding="utf-8")
    with pytest.raises(ConformanceError, match="LearnedLength"):
        check_segmenter(importlib.import_module(f"{example}_wrong").LearnedLength)


def test_the_plugin_of_the_readme_is_found_and_its_rule_cuts(example: str) -> None:
    """Red when `assign` turns the segments round."""
    plugin: Any = segmentation.build(f"{example}:LearnedLength", {})
    assert [query.name for query in plugin.queries] == ["median tokens"]
    rule = importlib.import_module(example).ByLength(10.0)
    found = [rule.assign(UserRecords(("text",), (count,), 1)) for count in (9, 10, 11)]
    assert found == ["brief", "long", "long"]


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_spec_is_valid(name: str) -> None:
    """By its name; its runs are called the same. Red when a key or a parameter is renamed and a spec is not."""
    assert load_spec(name).spec.name == name


def test_the_readme_names_every_packaged_spec_of_the_method() -> None:
    """Red when a spec is added and not named."""
    text = README.read_text(encoding="utf-8")
    own = {"quickstart", "tiers", "synthetic-support"}
    assert [name for name in NAMES if name not in own and f"`{name}`" not in text and f"plan {name}`" not in text] == []
