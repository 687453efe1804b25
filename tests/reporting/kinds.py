"""Documents of made runs, one for each thing that a run can do beyond the plainest one."""

from __future__ import annotations

from typing import Any

from tests.reporting.conftest import made_metrics, made_plan, made_privacy

Documents = tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]
LEDGER = {"url": "postgresql://amy:secret@db/uudp", "data_set": "shakespeare", "remaining_epsilon": 12.0}
ENTERED = {
    "url": "postgresql://db/uudp",
    "run": "20260101-000000-abcd",
    "sequence": 41,
    "hash": "9f" * 32,
    "spent_epsilon": 4.5,
    "spent_delta": 1e-6,
}


def plain() -> Documents:
    """A finished private run with three groups."""
    return made_plan(), made_privacy(), made_metrics()


def by_examples() -> Documents:
    """Example sampling, where groups differ in what their users keep."""
    plan, privacy, metrics = plain()
    plan["sampling"] = {"unit": "example", "expected": 128.0}
    for group, kept in zip(plan["groups"], (8, 5, 1), strict=True):
        group |= {"examples_per_user": kept, "noise_multiplier": 0.8469, "clip_norm": 0.5, "sampling_rate": 0.01486}
    return plan, privacy, metrics


def by_steps() -> Documents:
    """Groups that take part in different numbers of steps."""
    plan, privacy, metrics = plain()
    for group, steps in zip(plan["groups"], (20, 9, 2), strict=True):
        group |= {"steps": steps, "noise_multiplier": 0.5361, "clip_norm": 0.5}
    return plan, privacy, metrics


def scheduled() -> Documents:
    """Noise that falls by a public plan."""
    plan, privacy, metrics = plain()
    plan["schedule"] = [{"steps": 5, "noise": noise, "clip": 1.0} for noise in (1.0, 0.9267766953, 0.75, 0.5732233047)]
    return plan, privacy, metrics


def adaptive() -> Documents:
    """Clip norms that follow a noisy count."""
    plan, privacy, metrics = plain()
    plan["clipping"] = {"type": "adaptive", "quantile": 0.5, "learning_rate": 0.2, "bit_noise_std": 1.6}
    for row, factor in zip(metrics, (1.0, 1.21, 1.37, 1.42, 1.39), strict=False):
        row["clip/factor"] = factor
    return plan, privacy, metrics


def noisy() -> Documents:
    """Noisy counts, private hold-out users, and a ledger."""
    plan, privacy, metrics = plain()
    plan |= {"population": {"users": 1276.4, "holdout_users": None, "from": "noisy"}, "weights_from": "noisy"}
    plan["charges"] = [{"what": "users per group", "epsilon": 0.1027, "noise_multiplier": 30.0, "count": 1}]
    plan["holdout"] = {"epsilon": 7.9931, "noise_multiplier": 1.0396, "evaluations": 5}
    plan["ledger"], privacy["ledger"] = dict(LEDGER), dict(ENTERED)
    privacy["holdout"] = {"fraction": 0.1, "visibility": "private", "epsilon": 7.9931}
    privacy["data"] = {"name": "mails", "visibility": "private"}
    privacy["not_covered"] = privacy["not_covered"][:1]
    metrics = [{k: v for k, v in row.items() if k != "eval/tokens"} for row in metrics if row["series"] == "private"]
    return plan, privacy, metrics


def chosen() -> Documents:
    """What is drawn was chosen by a noisy median."""
    plan, privacy, metrics = plain()
    plan["charges"] = [{"what": "examples per user (median)", "epsilon": 0.1227, "noise_multiplier": 30.0, "count": 1}]
    plan["candidates"] = [
        {"unit": unit, "examples_per_user": kept, "noise_to_signal": noise, "predicted": predicted}
        for unit, kept, noise, predicted in (
            ("user", 1, 0.0089, 0.0089), ("user", 4, 0.0268, 0.0062), ("example", 1, 0.0089, 0.0089),
            ("example", 4, 0.0101, 0.0101),
        )
    ]  # fmt: skip
    plan["median_examples_per_user"] = 5.37
    return plan, privacy, metrics


KINDS = {
    "plain": plain, "examples": by_examples, "steps": by_steps, "schedule": scheduled, "adaptive": adaptive,
    "noisy": noisy, "chosen": chosen,
}  # fmt: skip
