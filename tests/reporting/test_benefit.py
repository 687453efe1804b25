"""Who benefits: the gap between groups, and what it is worth."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.reporting import answers
from harness.reporting.benefit import utility_gap
from harness.reporting.records import RunRecord
from harness.reporting.summary import summarize_record
from tests.reporting import kinds
from tests.reporting.conftest import SPEC


def gap(documents: kinds.Documents, **spec: Any) -> dict[str, Any] | None:
    plan, privacy, metrics = documents
    record = RunRecord(SPEC | spec, plan, privacy, tuple(metrics))
    return utility_gap(record, summarize_record(record))


def test_the_largest_gain_minus_the_smallest() -> None:
    """Break: the gap of losses, or of the trained model against ordinary training."""
    found = gap(kinds.plain())
    assert found is not None
    assert (found["value"], found["plus_minus"]) == ("0.110", "")
    assert found["sentence"] == "“few” gained the most (0.553), “many” the least (0.443)."
    assert found["cautions"][0] == "After ordinary training, without clipping and noise, the gap is 0.000."


def test_few_holdout_users_are_said() -> None:
    """142 hold-out users, a tenth of them "many"; then 60 of them measured. Break: leave out that only so many are."""
    found = gap(kinds.plain())
    assert found is not None
    assert found["cautions"][1].startswith("Few hold-out users (about 14 in “many”): such")
    found = gap(kinds.plain(), evaluation={"users": 60})
    assert found is not None
    assert found["cautions"][1].startswith("Few hold-out users (about 18 in “some”, about 6 in “many”): such")


def test_private_holdout_makes_the_gap_noisy() -> None:
    """Four noisy losses are in it. Break: the noise of one."""
    plan, privacy, metrics = kinds.noisy()
    found = gap((plan, privacy, metrics))
    assert found is not None
    noise = answers.loss_noise(RunRecord(SPEC, plan, privacy, ()))
    std = math.sqrt((noise["few"] ** 2 + noise["many"] ** 2) * (1 + answers.first_noise() ** 2))
    assert float(found["plus_minus"].removeprefix("± ")) == pytest.approx(std, rel=0.05)
    assert any("a gap of the size of its noise says nothing" in line for line in found["cautions"])


def test_one_group_has_no_gap() -> None:
    plan, privacy, metrics = kinds.plain()
    plan["groups"] = plan["groups"][:1]
    metrics = [{k: v for k, v in row.items() if not k.endswith(("some", "many"))} for row in metrics]
    assert gap((plan, privacy, metrics)) is None
    assert gap((plan, privacy, [])) is None
