"""Every message that a spec can provoke, with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import ArgumentError
from harness.spec import SpecErrors, load_spec

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text(encoding="utf-8"))


def errors(path: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        load_spec(path, overrides)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)
    return str(caught.value).splitlines()


def test_the_table_is_large() -> None:
    assert len(CASES) >= 600
    assert all(case["says"] and "OK" not in case["says"][0] for case in CASES)


def test_place_and_text(tiny: str, write: Any) -> None:
    """Every case of the table, in one test: hundreds of test items would cost more than what they test."""
    wrong = []
    for case in CASES:
        assert case.get("replace", "") in tiny
        text = case.get("text") or tiny.replace(case.get("replace", ""), case.get("by", ""), 1)
        with pytest.raises(SpecErrors) as caught:
            load_spec(write(text), case.get("overrides", ()))
        found = [line.removeprefix("spec.yaml:") for line in str(caught.value).splitlines()]
        if found != case["says"]:
            wrong.append((case, found))
        for problem in caught.value.problems:
            if problem.place.line:
                assert problem.place.line <= len(text.splitlines()) + 1
    assert not wrong


def test_all_errors_at_once(tiny: str, write: Any) -> None:
    text = tiny.replace("version: 1", "version: 3").replace("steps: 10", "steps: ten").replace("norm: 0.5", "nrom: 1")
    text = text.replace("type: scale", "type: scael").replace("paid: 0.3", "paid: 0.4").replace("[plan, region]", "[]")
    found = errors(write(text.replace("expected: 16", "expected: 2000")))
    starts = [
        "spec.yaml:1:10 version: ",
        "spec.yaml:11:3 data.weights: must sum to 1",
        "spec.yaml:15:41 segmentation.column: ",
        "spec.yaml:16:15 noise.type: ",
        "spec.yaml:18:22 sampling.expected: 2000 users per step are more",
        "spec.yaml:19:12 clipping.nrom: ",
        "spec.yaml:21:10 train.steps: ",
    ]
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "spec.yaml:1:1 is empty"),
        (b"# only a comment\n", "spec.yaml:1:1 is empty"),
        (b"~\n", "spec.yaml:1:1 is empty"),
        (b"\x00\x01\x02", "spec.yaml:1:1 is binary, not text"),
        (b"\xff\xfe\x00", "spec.yaml:1:1 is not UTF-8 text"),
        (b"a: 1\nb: \x07\n", "spec.yaml:2:4 holds a control character; is it text?"),
        (b"- 1\n", "spec.yaml:1:1 must be a block of keys, found a list"),
        (b"hello\n", 'spec.yaml:1:1 must be a block of keys, found "hello"'),
        (b"[" * 3000, "spec.yaml:1:1 is nested too deeply"),
        (b"a: " + b"x" * 1_000_001, "spec.yaml:1:1 is larger than a megabyte; is it a spec?"),
        (b"a: &a [&b [*b]]\nc: %x", "spec.yaml:2:4 can't be read as YAML: a value can't begin with %"),
        (b"key\nother: 1\n", 'spec.yaml:2:6 can\'t be read as YAML: a ":" where none can stand'),
        (b"a: 1\nb\n", 'spec.yaml:3:1 can\'t be read as YAML: a key without ":"'),
        (b"a: [1\n", "spec.yaml:2:1 can't be read as YAML: a bracket that is not closed"),
        (b'a: "\\ud800"\n', "spec.yaml:1:4 a: holds half of a character"),
        (b'"\\ud800": 1\n', "spec.yaml:1:1 a key that holds half of a character"),
        (b"seed: 0x" + b"f" * 5000, "spec.yaml:1:7 seed: a number that is too long"),
        (b"seed: " + b"9" * 5000, "spec.yaml:1:7 seed: a number that is too long"),
        (b"? {a: b}\n: 1\n", "spec.yaml:1:3 a key must be text"),
    ],
)
def test_text_that_is_no_spec(content: bytes, line: str, write: Any) -> None:
    assert any(found.startswith(line) for found in errors(write(content)))


def test_expanding_anchors_are_stopped(write: Any) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    found = errors(write("\n".join(lines)))
    assert any("expands to too much" in line for line in found)


def test_files_that_cannot_be_read(tiny: str, write: Any, tmp_path: Path) -> None:
    write(tiny, "quickstart.yaml")
    assert errors("quickstat.yaml") == ['quickstat.yaml: there is no such file; did you mean "quickstart.yaml"?']
    (tmp_path / "quickstart.yaml").rename(tmp_path / "c.yaml")
    for wrong in ("quickstrt", "quickstrt.yaml"):  # alike are only the endings: a packaged one is meant
        assert errors(wrong) == [f'{wrong}: there is no such file; did you mean "quickstart"?']
    (tmp_path / "folder").mkdir()
    assert errors("folder") == ["folder: is a folder, not a spec"]
    assert errors("/dev/null") == ["/dev/null: is not a file"]
    assert errors("no\0name") == ["no\\x00name: there is no such file"]
    assert errors("n" * 300) == ["n" * 300 + ": can't be read (File name too long)"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps=many", "<command line> train.steps: must be a whole number of at least 1"),
        ("train.stpes=3", '<command line> train.stpes: unknown key; did you mean "steps"?'),
        ("steps", "<command line> steps: must look like key=value"),
        ("train..steps=3", "<command line> train..steps: must be a dotted key, as in train.steps=100"),
        ("=3", "<command line> must be a dotted key, as in train.steps=100"),
        ("extends=base.yaml", "<command line> extends: can only stand in a file"),
        ("train.steps=[1", "<command line> train.steps: can't be read as YAML: a bracket that is not closed"),
        ("noise.epsilon.free=9", "<command line> noise.epsilon.free: 9 is above privacy.epsilon (8)"),
        ("train.steps=!!int 3", '<command line> train.steps: the YAML tag "!!int" is not allowed'),
        ("train.steps=", "<command line> train.steps: must be a whole number of at least 1"),
        ("train={steps: 0}", "<command line> train.steps: must be a whole number of at least 1"),
        ("train=3", "<command line> train: must be a block of keys, found 3"),
        ("name=a\nb", '<command line> name: must be at most 100 letters, digits, ".", "_" and "-"'),
        ("a\x1b[2Jb=1", "<command line> a\\x1b[2Jb: unknown key"),
        ("data.holdout={}", "<command line>"),
        ("name=a\udc80", "<command line> name: is not UTF-8 text"),
        ('train.steps=${oc.decode:"' + "9" * 500 + '"}', "<command line> train.steps: ${oc.decode:"),
        ("audit.x=1", "<command line> audit.x: unknown key"),
    ],
)
def test_overrides(override: str, line: str, tiny: str, write: Any) -> None:
    path = write(tiny)
    if line == "<command line>":
        assert load_spec(path, [override]).spec.data.holdout.users == 0.1  # merged: an empty block changes nothing
    else:
        assert errors(path, override)[0].startswith(line)


def test_reserved_blocks_may_be_empty(tiny: str, write: Any) -> None:
    empty = "sensitivity: null\nsweep: null\naudit:\nreport: {trackers: []}\nevaluation:\n"
    text = tiny.replace("norm: 0.5", "norm: 0.5, type: null").replace("stage: 2", "stage: 2, offload: none")
    text = text.replace("delta: 1e-6", "delta: 1e-6, accountant: null").replace(
        "steps: 10", "steps: 10\n  schedule: {}"
    )
    spec = load_spec(write(text + empty)).spec
    assert spec.privacy.accountant == "pld"
    assert spec.report.html is True


def test_no_ledger_is_something_else_than_the_default_one(tiny: str, write: Any) -> None:
    """Red when null is dropped, as it is where leaving a key out means the same."""
    assert load_spec(write(tiny)).spec.privacy.ledger == "default"
    none = write(tiny.replace("delta: 1e-6", "delta: 1e-6, ledger: null"))
    assert load_spec(none).spec.privacy.ledger is None
    assert load_spec(none).resolved["privacy"]["ledger"] is None
    assert load_spec(write(tiny), ["privacy.ledger=null"]).spec.privacy.ledger is None
    given = write(tiny.replace("delta: 1e-6", "delta: 1e-6, ledger: 'postgresql+psycopg://ann@db:5433/books'"))
    assert load_spec(given).spec.privacy.ledger == "postgresql+psycopg://ann@db:5433/books"


def test_public_weights_need_public_segments(tiny: str, write: Any) -> None:
    text = tiny.replace("{type: attribute, column: plan, values: [free, paid]}", "{type: usage, edges: [4]}")
    text = text.replace("epsilon: {free: 8, paid: 4, other: 2}", "epsilon: {under-4: 8, from-4: 4}")
    says = (
        "data.weights: can't be counted where segments are made from users' own records, which is private; "
        "give them, for example `data.weights: {under-4: 0.5, from-4: 0.5}`"
    )
    weights = "{free: 0.6, paid: 0.3, other: 0.1}"
    assert errors(write(text.replace(weights, "public"))) == [f"spec.yaml:11:12 {says}"]
    assert errors(write(text.replace(f"  weights: {weights}\n", ""))) == [f"spec.yaml:4:1 {says}"]
    given = load_spec(write(text.replace(weights, "{under-4: 0.5, from-4: 0.5}"))).spec
    assert given.data.weights == {"under-4": 0.5, "from-4": 0.5}


def test_an_argument_error_for_callers() -> None:
    assert issubclass(SpecErrors, ArgumentError)
