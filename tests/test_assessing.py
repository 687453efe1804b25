"""Precision and recall of groups against known risks: counted right, and only of made users in public data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.data.sources.synthetic import Synthetic
from harness.data.synthetic.parameters import SyntheticParameters
from harness.plugins import Group
from harness.reporting.assessing import assessment
from harness.reporting.records import RunRecord
from harness.running.assessing import write_assessment
from harness.training.job import Folder

PARAMETERS = {
    "scenario": "support", "users": 60, "seed": 3, "identifiers": {"email": 0.2}, "secrets": {"users": 6},
    "outliers": {"fraction": 0.1},
}  # fmt: skip
GROUPS = tuple(Group(f"{s}/{t}", s, t) for s in ("free", "paid") for t in ("low", "high"))


def plan_of(visibility: str, source: Any, groups: tuple[Group, ...] = GROUPS) -> Any:
    sensitivity = SimpleNamespace(names=("low", "high")) if groups[0].tier else None
    spec = SimpleNamespace(data=SimpleNamespace(visibility=visibility))
    basis = SimpleNamespace(holds=tuple((g,) for g in groups))
    return SimpleNamespace(spec=spec, source=source, groups=groups, sensitivity=sensitivity, basis=basis)


class Users:
    """A corpus of the made users, of whom every fifth is held out."""

    def user_id(self, number: int) -> str:
        return f"u{number:06d}"

    def users(self, holdout: bool) -> Any:
        return np.array([i for i in range(60) if (i % 5 == 0) == holdout])


@pytest.fixture
def source() -> Synthetic:
    return Synthetic(SyntheticParameters.model_validate(PARAMETERS))


def written(plan: Any, groups: Any, folder: Path) -> Any:
    write_assessment(plan, Users(), np.array(groups, dtype=np.int16), Folder(folder))  # type: ignore[arg-type]
    path = folder / "assessment.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_precision_and_recall_by_hand(source: Synthetic, tmp_path: Path) -> None:
    """Tiers by whether a secret was planted, but for one of them: recall 5/6 of those trained on, precision 1.

    Red when hold-out users are counted, when users without training (-1) are, or when the two are mixed up.
    """
    risks = source.known_risks()
    secret = [i for i in range(60) if "planted secret" in risks.get(f"u{i:06d}", ())]
    trained = [i for i in secret if i % 5]
    assert len(secret) == 6
    assert len(trained) >= 3
    missed, nobody = trained[0], trained[1]
    groups = [2 * (i % 2) + (i in secret and i != missed) for i in range(60)]
    groups[nobody] = -1
    found = written(plan_of("public", source), groups, tmp_path)
    assert found["users"] == 47
    tiers, segments = found["by"]
    (row,) = [r for r in tiers["rows"] if r["risk"] == "planted secret"]
    assert (row["group"], row["at_risk"], row["both"]) == ("high", len(trained) - 1, len(trained) - 2)
    assert row["precision"] == 1.0
    assert row["recall"] == pytest.approx((len(trained) - 2) / (len(trained) - 1))
    assert [r["group"] for r in segments["rows"] if r["risk"] == "planted secret"] == ["free", "paid"]
    kinds = {r["risk"] for r in tiers["rows"]}
    assert kinds >= {"identifiers", "planted secret", "any of these"}
    shown = assessment(RunRecord({}, {}, {}, (), found))
    assert shown is not None
    assert shown["parts"][0]["heads"] == [f"high ({row['users']} users)"]
    assert any(r["cells"] == [f"{100 * row['recall']:.0f} % / 100 %"] for r in shown["parts"][0]["rows"])


@pytest.mark.parametrize("why", ["private data", "nothing known", "one group"])
def test_nothing_is_said_of_anybody_else(
    source: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Red when the declaration is not looked at."""
    if why == "nothing known":
        monkeypatch.setattr(Synthetic, "known_risks", lambda self: None)
    groups = (Group("everyone", "everyone"),) if why == "one group" else GROUPS
    visibility = "private" if why == "private data" else "public"
    assert written(plan_of(visibility, source, groups), [0] * 60, tmp_path) is None
    assert assessment(RunRecord({}, {}, {}, ())) is None
