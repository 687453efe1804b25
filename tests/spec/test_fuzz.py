"""Whatever somebody writes, types or overrides: a spec, or spec errors; never anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.spec import SpecErrors, load_spec

FIXED = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
# Fuzz of the shapes that a person's mistakes have: a key mistyped, a value of another type, an override that is off.
WORDS = ["${seed}", "${", "???", "public", "none", "noisy", "a:b", "1e-6", "${oc.env:HOME}", "${data}"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
NAMES = st.sampled_from(["type", "epsilon", "free", "x", "0", "data", "extends"]) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=5
)
TYPED = " \n\t:{}[]&*!|>'\"%@`,#-?$x1\\é\x85\0"
KEYS = ["train", "train.steps", "noise", "data.weights.x", "data.source", "a.b", "data.attributes.1", "segmentation"]
OVERRIDES = st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=6))


def lines(path: str, overrides: Sequence[str] = ()) -> list[str]:
    """What is printed: the spec's name, or its problems, each in one line and at a place that the file has."""
    try:
        return [load_spec(path, overrides).spec.name]
    except SpecErrors as errors:
        printed = str(errors).splitlines()
        last = len(Path(path).read_text(encoding="utf-8", errors="replace").split("\n"))
        for problem in errors.problems:
            place = problem.place
            assert place.file == "<command line>" or place.file != path or place.line == 0 or 1 <= place.line <= last
            assert place.line == 0 or place.column >= 1
        return printed if len(printed) == len(errors.problems) else []


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [p for k, v in items for p in paths(v, (*path, k))]


@FIXED
@given(data=st.data())
def test_written(data: st.DataObject, tiny: str, write: Any) -> None:
    spec = yaml.safe_load(tiny)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(paths(spec)))
        node = spec
        for part in above:
            node = node[part]
        action = data.draw(st.sampled_from(["set", "delete", "add"]))
        if action == "set":
            node[last] = data.draw(VALUES)
        elif action == "delete":
            del node[last]
        elif isinstance(node, dict):
            node[data.draw(NAMES)] = data.draw(VALUES)
    assert lines(write(yaml.safe_dump(spec, allow_unicode=True)))


@FIXED
@given(at=st.integers(0, 700), cut=st.integers(0, 5), put=st.text(alphabet=TYPED, max_size=4))
def test_typed(at: int, cut: int, put: str, tiny: str, write: Any) -> None:
    assert lines(write(tiny[:at] + put + tiny[at + cut :]))


@FIXED
@given(overrides=st.lists(st.text(max_size=12) | OVERRIDES, max_size=3))
def test_overridden(overrides: list[str], tiny: str, write: Any) -> None:
    assert lines(write(tiny), overrides)


@FIXED
@given(data=st.data())
def test_mistyped_keys_find_their_way_back(data: st.DataObject, tiny: str, write: Any) -> None:
    """One letter dropped, doubled, swapped or changed in a key of six letters or more: its line, and the right key.

    Break: compare with the keys of the top level alone.
    """
    names = ["version", "adapter", "sampling", "clipping", "optimizer", "compute", "expected", "epsilon", "workers"]
    name = data.draw(st.sampled_from(names))
    at = data.draw(st.integers(1, len(name) - 2))
    kind = data.draw(st.sampled_from(["drop", "double", "swap", "change"]))
    middle = {"drop": "", "double": name[at] * 2, "swap": name[at + 1] + name[at], "change": "q"}[kind]
    wrong = name[:at] + middle + name[at + 1 + (kind == "swap") :]
    if wrong == name:
        return
    text = tiny.replace(f"{name}:", f"{wrong}:", 1)
    line = next(i for i, (a, b) in enumerate(zip(tiny.split("\n"), text.split("\n"), strict=True), 1) if a != b)
    said = [one for one in lines(write(text)) if "unknown" in one]
    assert len(said) == 1
    assert said[0].startswith(f"spec.yaml:{line}:")
    assert said[0].endswith(f'did you mean "{name}"?')
