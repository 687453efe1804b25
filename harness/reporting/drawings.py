"""The report's charts: which values of a run go into which drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.reporting import charts
from harness.reporting import formatting as f
from harness.reporting.answers import first_noise
from harness.reporting.records import RunRecord, block, number
from harness.reporting.summary import Losses, RunSummary, curve

_COLORS = 8
_SMALLEST_DELTA = 1e-15
"""Below that, a δ is rounding."""


def color(index: int) -> str:
    """The CSS variable of the group at this place of the plan."""
    return f"g{index % _COLORS}"


def spent_by_step(record: RunRecord) -> dict[float, float]:
    """ε spent after a step, from the plan's curve and the released metrics."""
    spent: dict[float, float] = {}
    by_step = record.plan.get("epsilon_by_step")
    for pair in by_step if isinstance(by_step, list) else []:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            step, value = number(pair[0]), number(pair[1])
            if step is not None and value is not None:
                spent[step] = value
    for row in record.metrics:
        step, value = number(row.get("step")), number(row.get("epsilon"))
        if row.get("series") == "private" and step is not None and value is not None:
            spent.setdefault(step, value)
    return spent if record.private else {}


@dataclass(frozen=True)
class GroupMark:
    """A group on the ε scale."""

    name: str
    epsilon: float | None
    color: str


def scale(epsilon: float | None, groups: Sequence[GroupMark]) -> Markup | None:
    """The guarantee, and every group's, on the ε scale."""
    marks = [
        charts.Mark(group.name, group.epsilon, group.color)
        for group in groups
        if group.epsilon is not None and group.epsilon > 0 and len(groups) > 1
    ]
    if epsilon is not None and epsilon > 0:
        marks.append(charts.Mark("the run’s guarantee", epsilon, "hero-ink", main=True))
    if not marks:
        return None
    told = ", ".join(f"{mark.name} {f.epsilon(mark.value)}" for mark in marks)
    return charts.responsive(
        lambda width: charts.epsilon_scale(
            "scale",
            marks,
            lambda value: f.guess_text(f.guess(value, 0.0)),
            title="Where the guarantee lies on the scale of ε",
            description=f"Logarithmic, from strong on the left to weak on the right. {told}. Under each power of "
            "ten: how often somebody who guesses whether a user’s texts were used can be right at best.",
            width=width,
        )
    )


def learning_curve(record: RunRecord, overall: Losses, label: str, noise: float | None = None) -> Markup | None:
    """Hold-out loss against step; None where nothing was measured.

    Args:
        record: The run's released files.
        overall: Its losses.
        label: What the run's own line is called.
        noise: Standard deviation of the noise on a loss after the first, which has `first_noise` times that.
    """
    trained, ordinary = curve(record, "private"), curve(record, "ordinary")
    steps = sorted(step for step, _ in [*trained, *ordinary])
    if not steps:
        return None
    lines = []
    base = overall.base_loss
    if base is not None:
        flat = [(steps[0], base), (steps[-1], base)]
        lines.append(charts.Series("base model", flat, "muted", f"{base:.2f}", dashed=True, markers=False))
    if ordinary:
        # Both series begin with the base model, which is evaluated once.
        if trained and trained[0][0] == 0 < ordinary[0][0]:
            ordinary = [trained[0], *ordinary]
        lines.append(charts.Series("ordinary", ordinary, "ordinary", f"{ordinary[-1][1]:.2f}"))
    if trained:
        spread = [] if noise is None else [noise * first_noise(), *([noise] * (len(trained) - 1))]
        lines.append(charts.Series(label, trained, "accent", f"{trained[-1][1]:.2f}", filled=not spread, spread=spread))
    notes = {step: f"ε {f.epsilon(value)}" for step, value in spent_by_step(record).items() if step in set(steps)}
    told = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3f}" for line in lines)
    told += "" if noise is None else f". Noisy: bars are ± {f.significant(noise, 2)}, wider at the first step"
    axes = charts.Axes("Hold-out loss against step", f"{told}. Lower is better.", "step", "nats per token", notes)
    return charts.responsive(lambda width: charts.line_chart("curve", lines, axes, width))


def epsilon_curve(record: RunRecord) -> Markup | None:
    """ε spent against step, below the budget; None where it is not known."""
    points = sorted(spent_by_step(record).items())
    if len(points) < 2:
        return None
    budget = number(block(record.spec, "privacy").get("epsilon"))
    lines = [charts.Series("ε spent", points, "accent", f.epsilon(points[-1][1]), filled=True)]
    if budget is not None:
        flat = [(points[0][0], budget), (points[-1][0], budget)]
        # Its own label would lie under the curve's where the whole budget is used.
        lines.insert(0, charts.Series("budget", flat, "muted", dashed=True, markers=False))
    told = f"After {points[-1][0]:g} steps ε is {f.epsilon(points[-1][1])}"
    told += f", of a budget of {f.significant(budget)}." if budget is not None else "."
    axes = charts.Axes("ε spent against step", told, "step", "ε spent", from_zero=True)
    return charts.responsive(lambda width: charts.line_chart("spent", lines, axes, width))


def groups_chart(groups: Sequence[Mapping[str, Any]], summary: RunSummary) -> Markup | None:
    """Each group's loss before and after; None where no group was measured."""
    rows = []
    for index, group in enumerate(groups):
        name = str(group.get("name", f.MISSING))
        losses = summary.groups.get(name)
        if losses is None or (losses.trained_loss is None and losses.base_loss is None):
            continue
        change = "" if losses.gain is None else f"{'−' if losses.gain >= 0 else '+'}{abs(losses.gain):.3f}"
        row = charts.Row(name, losses.base_loss, losses.trained_loss, losses.ordinary_loss, color(index), change)
        rows.append(row)
    if not rows:
        return None
    told = "; ".join(f"{row.name}: {f.loss(row.start)} to {f.loss(row.end)}" for row in rows)
    title = "Hold-out loss of each group before and after training"
    return charts.responsive(lambda width: charts.dumbbells("groups", rows, title, f"Nats per token. {told}.", width))


def trade_off_chart(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Markup | None:
    """δ against ε of each group, δ on a logarithmic scale; None where there is nothing to draw.

    Args:
        curves: Per group, in the order of the plan, points (ε, δ).
    """
    lines, told = [], []
    for index, (name, curve_) in enumerate(curves.items()):
        points = [(epsilon, math.log10(delta)) for epsilon, delta in curve_ if delta > _SMALLEST_DELTA]
        if len(points) > 1:
            lines.append(charts.Series(name, points, color(index), markers=False))
            told.append(f"{name}: δ {f.delta(curve_[0][1])} at ε {f.significant(curve_[0][0])}")
    if not lines:
        return None
    axes = charts.Axes(
        "δ against ε of each group",
        "; ".join(told) + ". Logarithmic; lower is better.",
        "ε",
        "δ",
        tick=f.power_of_ten,
    )
    return charts.responsive(lambda width: charts.line_chart("trade-offs", lines, axes, width))


def group_bells(groups: Sequence[Mapping[str, Any]], index: int) -> Markup | None:
    """One step with and without a user of the group at `index`; None where the plan states no noise."""
    distances = [_apart(group) for group in groups]
    apart = distances[index]
    if apart is None:
        return None
    name = str(groups[index].get("name", f.MISSING))
    return charts.bells(
        f"bells-{index}",
        apart,
        max(distance for distance in distances if distance is not None),
        color(index),
        title=f"One step’s sum without and with a user of {name}",
        description=f"Two bell curves, {f.significant(apart) if apart < math.inf else 'infinitely many'} standard "
        "deviations apart. The more they overlap, the less the step says about the user.",
    )


def _apart(group: Mapping[str, Any]) -> float | None:
    """How far a user can move a step's sum, in standard deviations of the noise."""
    multiplier = number(group.get("noise_multiplier"))
    if multiplier is None or multiplier < 0:
        return None
    return 1 / multiplier if multiplier > 0 else math.inf
