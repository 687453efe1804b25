"""Reading a run's folder: what is released, and nothing that only looks like a guarantee."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.reporting.records import number, read_run


def test_reads_all_released_files(run_dir: Path) -> None:
    record = read_run(run_dir)
    assert record.plan["steps"] == 20
    assert record.spec["sampling"]["expected"] == 32.0
    assert len(record.metrics) == 10
    assert record.private
    assert record.epsilon == 7.9931


@pytest.mark.parametrize(
    ("in_privacy", "in_plan"),
    [
        ({"private": False}, {}),
        ({"private": None}, {}),
        ({"private": "true"}, {}),
        ({"private": 1}, {}),
        ({}, {"private": False}),
        ({"epsilon": None}, {}),
        ({"epsilon": "8"}, {}),
        ({"epsilon": float("inf")}, {}),
        ({"epsilon": -1.0}, {}),
    ],
)
def test_anything_less_than_a_clear_claim_is_not_private(
    make_run: Callable[..., Path],
    plan: dict[str, Any],
    privacy: dict[str, Any],
    in_privacy: dict[str, Any],
    in_plan: dict[str, Any],
) -> None:
    assert not read_run(make_run(plan | in_plan, privacy | in_privacy)).private


def test_the_plans_spec_stands_in_for_a_missing_one(make_run: Callable[..., Path]) -> None:
    assert read_run(make_run(spec=None)).spec["name"] == "shakespeare-usage"


def test_metrics_may_be_missing(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    assert read_run(run_dir).metrics == ()


def test_a_row_may_hold_unicode_line_separators(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text('{"series": "private", "eval/loss/a\u2028b": 1.0}\n\n', encoding="utf-8")
    assert read_run(run_dir).metrics == ({"series": "private", "eval/loss/a\u2028b": 1.0},)


@pytest.mark.parametrize("name", ["plan.json", "privacy.json"])
def test_an_unfinished_run_is_named(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()
    with pytest.raises(UserError, match=f"holds no finished run: {name} is missing"):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.json", "{\n  oops", r"plan\.json:2:3 is no JSON"),
        ("privacy.json", "[]", r"privacy\.json should hold a JSON object"),
        ("metrics.jsonl", '{"step": 0}\n{"step": 1', r"metrics\.jsonl:2:11 is no JSON"),
        ("metrics.jsonl", "3\n", r"metrics\.jsonl:1 should hold a JSON object"),
        ("spec.yaml", "a: [1\nb: 2\n", r"spec\.yaml:2:\d+ is no YAML"),
    ],
)
def test_a_broken_file_is_located(run_dir: Path, name: str, content: str, message: str) -> None:
    (run_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_run(run_dir)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_named(run_dir: Path) -> None:
    (run_dir / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"plan\.json can't be read"):
        read_run(run_dir)


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), [1], 10**400])
def test_only_finite_numbers_are_numbers(value: object) -> None:
    assert number(value) is None


def test_numbers_are_numbers() -> None:
    assert (number(0), number(2), number(-0.5)) == (0.0, 2.0, -0.5)
