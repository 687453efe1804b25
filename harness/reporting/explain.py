"""Plain sentences, computed from a run's public numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.reporting import formatting as f
from harness.reporting.records import number
from harness.reporting.summary import Losses

Group = Mapping[str, Any]


def headline(losses: Losses, private: bool) -> str:
    """What training achieved, in a sentence or two."""
    who = "Private training" if private else "Training"
    if losses.trained_loss is None:
        return "This run was not evaluated."
    if losses.gain is None:
        return f"{who} ended at {f.loss(losses.trained_loss)} nats per token; the base model was not measured."
    size = f.loss(abs(losses.gain))
    if losses.gain <= 0:
        outcome = f"{who} did not help: the loss is {size} nats per token higher than the base model’s."
        return outcome if losses.gain < 0 else f"{who} changed nothing: the loss is the base model’s."
    outcome = f"{who} took {size} nats per token off the base model’s loss"
    if losses.ordinary_gain is None:
        return f"{outcome}."
    if losses.share_kept is None:
        return f"{outcome}; ordinary training took off nothing."
    share = f.percent(losses.share_kept)
    return f"{outcome}: {share} of what ordinary training took off ({f.loss(losses.ordinary_gain)})."


def group_reason(group: Group, groups: Sequence[Group], unit: str = "user") -> str:
    """Why a group has the noise it has.

    Args:
        group: A group of the plan.
        groups: All groups of the plan, `group` among them.
        unit: What is drawn and clipped as one: ``user`` or ``example``.
    """
    multiplier, clip = number(group.get("noise_multiplier")), number(group.get("clip_norm"))
    if multiplier is None:
        return "The plan states no noise for this group."
    if multiplier <= 0:
        return "No noise is added, so nothing bounds what the model reveals about these users."
    known = [entry for entry in groups if (number(entry.get("noise_multiplier")) or 0) > 0]
    loosest = min(known, key=lambda entry: number(entry.get("noise_multiplier")) or math.inf)
    lowest = number(loosest.get("noise_multiplier")) or multiplier
    one = "one example of these users" if unit == "example" else "one of these users"
    size = f"{f.significant(multiplier, 2)} times the most that {one} can move a step’s sum"
    turns = _turns(group, groups, unit)
    if len(groups) == 1:
        return f"Every user has the same protection: the noise is {size}{_clipped(clip)}.{turns}"
    if multiplier <= lowest * 1.001:
        noise = f"The noise is {size}{_clipped(clip)}, as in every group."
        if unit == "example" and _differ(groups, "examples_per_user"):
            return _kept(group, groups, noise)
        if _differ(groups, "steps"):
            return _present(group, groups, noise)
        same = sum((number(entry.get("noise_multiplier")) or math.inf) <= lowest * 1.001 for entry in known)
        if same == len(groups) and len({number(entry.get("sampling_rate")) for entry in groups}) > 1:
            return _drawn(group, groups, f"Each time, the noise is {size}{_clipped(clip)}.")
        if same == len(groups):
            return f"Protected like every other group: the noise is {size}{_clipped(clip)}.{turns}"
        return f"{_target(group, 'the loosest target')}: the noise is {size}{_clipped(clip)}.{turns}"
    return f"{_target(group, 'a stricter target')}. {_how(group, loosest, clip)}he noise is {size}.{turns}"


def spending(charges: Sequence[Mapping[str, Any]]) -> str:
    """Where the budget went, in a sentence."""
    if not charges:
        return "All of it went into training. No other answer about private data was released."
    names = "one more answer" if len(charges) == 1 else f"{len(charges)} more answers"
    return (
        f"Training and {names} drew on private data. What they cost together is composed, group by group, "
        "so the parts need not add up to the whole."
    )


def loss_noise(std: float | None, first: float) -> str:
    """How noisy the losses of private hold-out users are.

    Args:
        std: Standard deviation of the noise of a later evaluation, in nats per token; None: not known.
        first: How much more the first evaluation has.
    """
    words = "Hold-out users are protected too, so every loss here is a noisy answer about them, and charged to them."
    if std is None:
        return words
    return (
        f"{words} The noise has a standard deviation of {f.significant(std, 2)} nats per token, and of "
        f"{f.significant(std * first, 2)} in the first one; a smaller difference between two of them says nothing."
    )


def _differ(groups: Sequence[Group], key: str) -> bool:
    return len({number(entry.get(key)) for entry in groups}) > 1


def _kept(group: Group, groups: Sequence[Group], noise: str) -> str:
    """What sets groups apart by the number of examples that their users keep."""
    key = "examples_per_user"
    kept, most = number(group.get(key)) or 0, max(number(entry.get(key)) or 0 for entry in groups)
    how = f"Each user keeps at most {f.whole(kept)} example{'' if kept == 1 else 's'}, chosen once for the whole run"
    if kept >= most:
        return f"{_target(group, 'the loosest target')}. {how}. {noise}"
    loosest = next(entry for entry in groups if number(entry.get(key)) == most)
    return f"{_target(group, 'a stricter target')}. {how}, where “{loosest.get('name')}” keeps {f.whole(most)}. {noise}"


def _present(group: Group, groups: Sequence[Group], noise: str) -> str:
    """What sets groups apart by the number of steps that they take part in."""
    steps, most = number(group.get("steps")) or 0, max(number(entry.get("steps")) or 0 for entry in groups)
    if steps >= most:
        return f"{_target(group, 'the loosest target')}. The group takes part in all {f.whole(most)} steps. {noise}"
    return (
        f"{_target(group, 'a stricter target')}. The group takes part in {f.whole(steps)} of {f.whole(most)} steps, "
        f"spread evenly and publicly known; in the others none of its users is drawn. {noise}"
    )


def _drawn(group: Group, groups: Sequence[Group], noise: str) -> str:
    """What sets groups apart that have one noise and one clip norm: how often their users take part."""
    most = max(groups, key=lambda entry: number(entry.get("sampling_rate")) or 0.0)
    rate, highest = number(group.get("sampling_rate")) or 0.0, number(most.get("sampling_rate")) or 0.0
    if rate >= highest * 0.999:
        return f"{_target(group, 'the loosest target')}.{_turns(group, groups, 'user')} {noise}"
    less = f.percent(1 - rate / highest)
    return (
        f"{_target(group, 'a stricter target')}. Users are drawn {less} less often than in “{most.get('name')}”: "
        f"with probability {f.rate(rate)} in each of {f.whole(number(group.get('steps')) or 0)} steps. {noise}"
    )


def _clipped(clip: float | None) -> str:
    return "" if clip is None else f" (gradients are clipped to norm {f.significant(clip)})"


def _target(group: Group, words: str) -> str:
    target = number(group.get("target_epsilon"))
    return words.capitalize() if target is None else f"{words.capitalize()}, ε {f.significant(target)}"


def _how(group: Group, loosest: Group, clip: float | None) -> str:
    """What sets the group apart from the loosest one, up to the first letter of "the noise is"."""
    reference = number(loosest.get("clip_norm"))
    if clip is None or reference is None or reference <= 0 or clip >= reference * 0.999:
        return "T"
    return (
        f"Gradients are clipped {f.percent(1 - clip / reference)} harder than in “{loosest.get('name')}” "
        f"(to norm {f.significant(clip)}), so each user stands out less: t"
    )


def _turns(group: Group, groups: Sequence[Group], unit: str) -> str:
    """How often a unit takes part, where that differs between groups."""
    rate, steps = number(group.get("sampling_rate")), number(group.get("steps"))
    rates = {number(entry.get("sampling_rate")) for entry in groups}
    lengths = {number(entry.get("steps")) for entry in groups}
    if rate is None or steps is None or (len(rates) == 1 and len(lengths) == 1):
        return ""
    one = "A kept example" if unit == "example" else "A user"
    return f" {one} is drawn with probability {f.rate(rate)} in each of {f.whole(steps)} steps."
