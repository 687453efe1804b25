"""Whether a run's files say the same: plan and spec go with the mechanism, and the run is finished."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from harness.privacy.mechanism import Mechanism
from harness.reporting.leaderboard.files import Refused
from harness.reporting.leaderboard.reading import RunFiles
from harness.reporting.records import LOSS, block, items, number

SAME = 1e-9
"""Relative: numbers that rounding alone tells apart are the same."""


def as_read(value: Any) -> Any:
    """A document as it comes back from a file."""
    return json.loads(json.dumps(value))


def check_plan(plan: Mapping[str, Any], mechanism: Mechanism) -> None:
    """That the levers that plan.json shows are the mechanism's.

    Raises:
        Refused: One is not.
    """
    if plan.get("pending"):
        raise Refused("plan.json waits for noisy answers: it is not the plan that was executed")
    if plan.get("private") is not mechanism.private:
        raise Refused("plan.json says something else about privacy than the mechanism does")
    expected: dict[str, Any] = {
        "steps": mechanism.steps,
        "noise_std": mechanism.noise_std,
        "denominator": mechanism.denominator(0),
    }
    for key, value in expected.items():
        if not _same(plan.get(key), value):
            raise Refused(f"{key} of plan.json is not the mechanism's")
    if plan.get("relation") != mechanism.relation:
        raise Refused("relation of plan.json is not the mechanism's")
    if block(plan, "sampling").get("unit") != mechanism.sampling_unit:
        raise Refused("sampling.unit of plan.json is not the mechanism's")
    if plan.get("schedule") != as_read([dataclasses.asdict(s) for s in mechanism.schedule]):
        raise Refused("schedule of plan.json is not the mechanism's")
    moving = {k: v for k, v in block(plan, "clipping").items() if k != "type"}
    if moving != ({} if mechanism.adaptive is None else dataclasses.asdict(mechanism.adaptive)):
        raise Refused("clipping of plan.json is not the mechanism's")
    if block(plan, "train").get("steps") != mechanism.steps:
        raise Refused("train.steps of plan.json is not the mechanism's")
    held, asked = block(plan, "holdout"), mechanism.holdout
    evaluations = (held.get("noise_multiplier"), held.get("evaluations"))
    if evaluations != ((None, None) if asked is None else (asked.noise_multiplier, asked.count)):
        raise Refused("holdout of plan.json is not the mechanism's")
    _check_groups(plan, mechanism)


def _check_groups(plan: Mapping[str, Any], mechanism: Mechanism) -> None:
    entries = items(plan, "groups")
    if [entry.get("name") for entry in entries] != [g.name for g in mechanism.groups]:
        raise Refused("plan.json has other groups than the mechanism")
    users = math.fsum(g.users for g in mechanism.groups)
    stated = block(plan, "population").get("users")
    if stated is not None and not _same(stated, users, 1e-6):
        raise Refused("population.users of plan.json is not the mechanism's")
    for i, (entry, group) in enumerate(zip(entries, mechanism.groups, strict=True)):
        levers: dict[str, Any] = {
            "noise_multiplier": mechanism.noise_multiplier(i),
            "clip_norm": group.clip_norm if math.isfinite(group.clip_norm) else None,
            "sampling_rate": group.sampling_rate,
            "steps": group.steps,
            "examples_per_user": group.examples_per_user,
        }
        for key, value in levers.items():
            if not (entry.get(key) is None if value is None else _same(entry.get(key), value)):
                raise Refused(f"{key} of group {group.name} in plan.json is not the mechanism's")
        weight = entry.get("weight")
        if weight is not None and not _same(weight, group.users / users, 1e-6):
            raise Refused(f"weight of group {group.name} in plan.json is not the mechanism's")


def check_finished(files: RunFiles, mechanism: Mechanism) -> None:
    """That the run is finished, and released no step beyond those that were accounted.

    Raises:
        Refused: It isn't, or did.
    """
    status, done = files.privacy.get("status"), files.privacy.get("steps_completed")
    if status != "finished":
        raise Refused(f"its status is {status!r}, not finished")
    if isinstance(done, bool) or not isinstance(done, int) or done != mechanism.steps:
        raise Refused(f"it says that {done!r} steps were made; its mechanism has {mechanism.steps}")
    for row in files.metrics:
        step, series = row.get("step"), row.get("series")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0 or not isinstance(series, str):
            raise Refused("a row of metrics.jsonl has no step or no series")
        if step > mechanism.steps:
            raise Refused(f"metrics.jsonl has step {step}; the mechanism has {mechanism.steps}")
        for key, value in row.items():
            if key.startswith(LOSS) and (number(value) is None or abs(number(value) or 0.0) > 1e6):
                raise Refused("a loss in metrics.jsonl is no number, or beyond all reason")
            if key.startswith(LOSS) and (number(value) or 0.0) < 0 and mechanism.holdout is None:
                raise Refused("a loss in metrics.jsonl is below zero, which no model reaches")


def check_spec(
    spec: Mapping[str, Any], plan: Mapping[str, Any], privacy: Mapping[str, Any], mechanism: Mechanism
) -> None:
    """That the spec is the one that was planned, and asks for this mechanism as far as that can be seen.

    Raises:
        Refused: It isn't, or doesn't.
    """
    if plan.get("spec") != spec:
        raise Refused("spec.yaml is not the spec that plan.json holds")
    if spec.get("name") != plan.get("name"):
        raise Refused("plan.json has another name than the spec")
    if block(spec, "data").get("name") != block(privacy, "data").get("name"):
        raise Refused("privacy.json names another data set than the spec")
    if block(spec, "data").get("visibility") != block(privacy, "data").get("visibility"):
        raise Refused("privacy.json says something else about the visibility of the data than the spec")
    if block(spec, "train").get("steps") != mechanism.steps:
        raise Refused("train.steps of the spec is not the mechanism's")
    if (block(spec, "noise").get("type") == "none") is mechanism.private:
        raise Refused("noise.type of the spec does not go with the mechanism")
    unit = block(spec, "sampling").get("unit")
    if unit not in ("auto", mechanism.sampling_unit):
        raise Refused("sampling.unit of the spec is not the mechanism's")
    held, stated = block(block(spec, "data"), "holdout"), block(privacy, "holdout")
    nobody = stated.get("fraction") == 0 and held.get("users") == 0
    if held.get("visibility") != stated.get("visibility") and not nobody:
        raise Refused("privacy.json says something else about hold-out users than the spec")
    if stated.get("file") is not True and not _same(held.get("users"), stated.get("fraction")):
        raise Refused("privacy.json says another fraction of hold-out users than the spec")
    _check_delta(spec, plan, privacy, mechanism)


def _check_delta(
    spec: Mapping[str, Any], plan: Mapping[str, Any], privacy: Mapping[str, Any], mechanism: Mechanism
) -> None:
    """That δ is the spec's, or, left out, follows from the public number of users."""
    if not mechanism.private:
        return
    asked, delta = block(spec, "privacy").get("delta"), number(privacy.get("delta"))
    users = math.fsum(g.users for g in mechanism.groups)
    if asked is None and block(plan, "population").get("from") != "public":
        raise Refused("the spec states no δ, which it may only where the number of users is public")
    if delta is None or not _same(delta, 1 / (10 * users) if asked is None else asked):
        raise Refused("δ is not the spec's")
    if delta * users >= 1:
        raise Refused(f"δ = {delta:g} promises nothing: it is not below one over the number of users")


def _same(found: object, expected: object, tolerance: float = SAME) -> bool:
    a, b = number(found), number(expected)
    return a is not None and b is not None and abs(a - b) <= tolerance * max(abs(a), abs(b))
