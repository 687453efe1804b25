"""Who benefits: how differently groups gain from training."""

from __future__ import annotations

import math
from typing import Any

from harness.reporting import answers
from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, block, items, number
from harness.reporting.summary import RunSummary

FEW = 30
"""Fewer hold-out users of a group say little of its gain."""


def utility_gap(record: RunRecord, summary: RunSummary) -> dict[str, Any] | None:
    """The largest gain of a group minus the smallest, in nats per token; None unless two groups were measured."""
    gains = {name: losses.gain for name, losses in summary.groups.items() if losses.gain is not None}
    if len(gains) < 2:
        return None
    most, least = max(gains, key=lambda g: gains[g]), min(gains, key=lambda g: gains[g])
    gap = gains[most] - gains[least]
    sentence = f"“{most}” gained the most ({_signed(gains[most])}), “{least}” the least ({_signed(gains[least])})."
    return {
        "value": f.loss(gap),
        "plus_minus": _plus_minus(record, most, least),
        "sentence": sentence if gap > 0 else "All groups gained the same.",
        "cautions": [line for line in (_ordinary(summary), _noisy(record), _few(record, list(gains))) if line],
    }


def _signed(gain: float) -> str:
    return f.loss(gain)


def _ordinary(summary: RunSummary) -> str:
    """What the same training without protection leaves between groups."""
    gains = [losses.ordinary_gain for losses in summary.groups.values() if losses.gain is not None]
    known = [gain for gain in gains if gain is not None]
    if not known or len(known) < len(gains):
        return ""
    return f"After ordinary training, without clipping and noise, the gap is {f.loss(max(known) - min(known))}."


def _plus_minus(record: RunRecord, most: str, least: str) -> str:
    """Standard deviation of the noise on the gap: on two losses of each of two groups."""
    noise = answers.loss_noise(record)
    if most not in noise or least not in noise:
        return ""
    std = math.hypot(noise[most], noise[least]) * math.hypot(1.0, answers.first_noise())
    return f"± {f.significant(std, 2)}"


def _noisy(record: RunRecord) -> str:
    if not answers.noisy_holdout(record):
        return ""
    return (
        "Each loss is noisy, and the largest of noisy gains minus the smallest is too large on average: a gap of the "
        "size of its noise says nothing."
    )


def _few(record: RunRecord, names: list[str]) -> str:
    """Groups with few hold-out users, by public numbers: expected ones, not a count."""
    held = number(block(record.plan, "population").get("holdout_users"))
    most = number(block(record.spec, "evaluation").get("users"))
    if held is None:
        return ""
    if most is not None and not answers.noisy_holdout(record):
        held = min(held, most)
    weights = {str(g.get("name")): number(g.get("weight")) for g in items(record.plan, "groups")}
    few = {name: held * w for name in names if (w := weights.get(name)) is not None and held * w < FEW}
    if not few:
        return ""
    told = ", ".join(f"about {f.whole(n)} in “{name}”" for name, n in few.items())
    return f"Few hold-out users ({told}): such a group’s gain depends on who they happen to be."
