"""What a finished run released, read from its folder. Nothing here ever looks into the run's ``private/``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError

LOSS = "eval/loss"
"""The metric that reports show: hold-out negative log-likelihood, in nats per token."""

AUDIT, SAMPLES = "audit.json", "samples.json"
"""What attacks measured, and what the models wrote, in the folder of a run."""

SWEEP = "sweep.json"
"""What a search released, in the folder of its run."""


@dataclass(frozen=True)
class RunRecord:
    """The released files of one run. Everything in it is public.

    Attributes:
        spec: The resolved spec (`spec.yaml`, or the copy inside the plan).
        plan: `plan.json`.
        privacy: `privacy.json`.
        metrics: The rows of `metrics.jsonl`, in their order; empty where nothing was evaluated.
        assessment: `assessment.json`: of made users, how groups and known risks go together; empty of any others.
        sweep: `sweep.json`: how hyperparameters were searched; empty of a run that was no search.
        audit: `audit.json`: what attacks measured; empty of a run that was not audited.
        samples: `samples.json`: what the models wrote after the spec's prompts; empty where there are none.
    """

    spec: Mapping[str, Any]
    plan: Mapping[str, Any]
    privacy: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    assessment: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)

    @property
    def epsilon(self) -> float | None:
        """The ε that the run claims, or None where it claims none."""
        return number(self.privacy.get("epsilon"))

    @property
    def private(self) -> bool:
        """Whether the run claims a guarantee.

        Anything missing or contradictory counts as no claim: a report must never look private by accident.
        """
        claimed = self.privacy.get("private") is True and self.plan.get("private") is not False
        return claimed and self.epsilon is not None and self.epsilon >= 0


def read_run(run_dir: Path) -> RunRecord:
    """Reads the released files of a finished run.

    Args:
        run_dir: The run's folder.

    Raises:
        UserError: The folder holds no finished run, or one of its files can't be read.
    """
    plan = _json(run_dir / "plan.json")
    privacy = _json(run_dir / "privacy.json")

    def there(name: str) -> Mapping[str, Any]:
        return _json(run_dir / name) if (run_dir / name).exists() else {}

    return RunRecord(
        _spec(run_dir / "spec.yaml", plan),
        plan,
        privacy,
        _metrics(run_dir / "metrics.jsonl"),
        there("assessment.json"),
        there(SWEEP),
        there(AUDIT),
        there(SAMPLES),
    )


def number(value: object) -> float | None:
    """A finite number, or None for anything else (null, text, a truth value, infinity, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def block(value: object, key: str) -> Mapping[str, Any]:
    """The mapping under `key`, or an empty one."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in the list under `key`; anything else in it is left out."""
    found = value.get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def texts(value: Mapping[str, Any], key: str) -> list[str]:
    """The non-empty texts in the list under `key`."""
    found = value.get(key)
    return [entry for entry in found if isinstance(entry, str) and entry] if isinstance(found, list) else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no finished run: {path.name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__})") from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno} is no JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} should hold a JSON object")
    return found


def _spec(path: Path, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    import yaml

    if not path.exists():
        return block(plan, "spec")
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise UserError(f"{path}{where} is no YAML") from None
    return found if isinstance(found, dict) else block(plan, "spec")


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.exists():
        return ()
    rows: list[Mapping[str, Any]] = []
    # Not splitlines(): that would also break a row at the Unicode separators that JSON allows inside a name.
    for line, content in enumerate(_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{line}:{error.colno} is no JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{line} should hold a JSON object")
        rows.append(row)
    return tuple(rows)
