"""Whether segments and tiers find made users whose risks are known, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, items, number


def assessment(record: RunRecord) -> dict[str, Any] | None:
    """What the template shows of `assessment.json`; None where there is none."""
    parts = [(str(part.get("what")), _part(items(part, "rows"))) for part in items(record.assessment, "by")]
    parts = [(what, part) for what, part in parts if part["rows"]]
    users = number(record.assessment.get("users"))
    if not parts or users is None:
        return None
    return {
        "sentence": (
            f"Nobody is behind these {f.whole(users)} training users: they are made, and what puts whom at risk is "
            "known. So it can be said what the groups find; of anybody else no report says who is in which."
        ),
        "what": " and ".join(what for what, _ in parts),
        "parts": [part for _, part in parts],
    }


def _part(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(str(row.get("group")) for row in rows))
    sizes = {str(row.get("group")): number(row.get("users")) for row in rows}
    by_risk: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_risk.setdefault(str(row.get("risk")), []).append(row)
    return {
        "heads": [f"{name} ({f.whole(sizes[name])} users)" for name in names],
        "rows": [
            {"risk": risk, "users": f.whole(number(own[0].get("at_risk"))), "cells": [_cell(row) for row in own]}
            for risk, own in by_risk.items()
        ],
    }


def _cell(row: Mapping[str, Any]) -> str:
    return f"{f.percent(number(row.get('recall')))} / {f.percent(number(row.get('precision')))}"
