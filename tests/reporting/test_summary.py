"""The result in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.reporting.summary import summarize


def test_losses_gains_and_share(run_dir: Path) -> None:
    summary = summarize(run_dir)
    assert summary["name"] == "shakespeare-usage"
    assert summary["private"] is True
    assert (summary["epsilon"], summary["delta"]) == (7.9931, 1e-5)
    assert (summary["step"], summary["tokens"], summary["evaluated"]) == (20, 12416, True)
    assert (summary["base_loss"], summary["trained_loss"], summary["ordinary_loss"]) == (4.871, 4.318, 4.207)
    assert summary["gain"] == pytest.approx(0.553)
    assert summary["ordinary_gain"] == pytest.approx(0.664)
    assert summary["share_kept"] == pytest.approx(0.553 / 0.664)


def test_per_group(run_dir: Path) -> None:
    groups = summarize(run_dir)["groups"]
    assert list(groups) == ["few", "some", "many"]
    assert groups["many"]["gain"] == pytest.approx(0.553 - 0.11)
    assert groups["many"]["share_kept"] == pytest.approx(0.443 / 0.664)


def test_it_is_one_json_document(run_dir: Path) -> None:
    assert json.loads(json.dumps(summarize(run_dir)))["groups"]["few"]["base_loss"] == pytest.approx(4.991)


def test_a_group_name_may_hold_a_slash(make_run: Callable[..., Path], plan: dict[str, Any]) -> None:
    plan["groups"][0]["name"] = "free/low"
    rows = [
        {"series": "private", "step": step, "eval/loss": loss, "eval/loss/free/low": loss + 1}
        for step, loss in ((0, 4.0), (10, 3.5))
    ]
    assert summarize(make_run(plan, metrics=rows))["groups"]["free/low"]["trained_loss"] == 4.5


def test_rows_may_come_in_any_order_and_the_last_word_counts(make_run: Callable[..., Path]) -> None:
    rows = [
        {"series": "private", "step": 10, "eval/loss": 9.0},
        {"series": "private", "step": 0, "eval/loss": 4.0},
        {"series": "private", "step": 10, "eval/loss": 3.0},
        {"series": "private", "step": 15, "eval/loss": None},
    ]
    summary = summarize(make_run(metrics=rows))
    assert (summary["base_loss"], summary["trained_loss"], summary["step"]) == (4.0, 3.0, 10)


def test_without_an_evaluation(make_run: Callable[..., Path]) -> None:
    summary = summarize(make_run(metrics=[]))
    assert summary["evaluated"] is False
    assert summary["groups"]["few"]["gain"] is None
    assert [summary[key] for key in ("base_loss", "trained_loss", "share_kept", "step", "tokens")] == [None] * 5


def test_the_base_alone_is_no_evaluation(make_run: Callable[..., Path]) -> None:
    summary = summarize(make_run(metrics=[{"series": "private", "step": 0, "eval/loss": 4.0}]))
    assert (summary["base_loss"], summary["trained_loss"], summary["evaluated"]) == (4.0, None, False)


def test_no_share_where_ordinary_training_gains_nothing(make_run: Callable[..., Path]) -> None:
    rows = [
        {"series": series, "step": step, "eval/loss": loss}
        for series, step, loss in (("private", 0, 4.0), ("private", 5, 3.9), ("ordinary", 5, 4.1))
    ]
    summary = summarize(make_run(metrics=rows))
    assert summary["ordinary_gain"] == pytest.approx(-0.1)
    assert summary["share_kept"] is None


def test_a_run_without_noise_claims_nothing(not_private: Path) -> None:
    summary = summarize(not_private)
    assert (summary["private"], summary["epsilon"], summary["delta"]) == (False, None, None)
    assert summary["trained_loss"] == 4.318
