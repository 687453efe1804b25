"""The charts of a search: which values of its trials, or of its candidates, go into which drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.reporting import charts, plots
from harness.reporting import formatting as f
from harness.reporting.records import number

LARGEST = 1e200
"""Beyond it, and below its inverse, a number is not drawn: it would be lost in rounding."""
_WIDE_SPREAD = 10.0
"""From this ratio on, scores are drawn on a logarithmic axis: one trial that went astray would flatten all others."""
_LONG = 60


@dataclass(frozen=True)
class Trial:
    """A trial, or a candidate that was compared, as far as it is shown. Public: this is only made of public data.

    Attributes:
        values: What it sets, by dotted key.
        score: By which it was compared; None where it has none.
        status: ``finished``, ``stopped`` or ``failed``; of a candidate that is in the ranking, empty.
        reason: Why it failed.
        best: Whether it won.
    """

    values: Mapping[str, Any]
    score: float | None
    status: str
    reason: str = ""
    best: bool = False

    @property
    def kind(self) -> plots.Kind:
        """How it is drawn."""
        return "winner" if self.best else "stopped" if self.status == "stopped" else "finished"

    def named(self, objective: str) -> str:
        """For a tooltip."""
        values = ", ".join(f"{key} {shown(value)}" for key, value in self.values.items())
        return f"{objective} {f.significant(self.score, 4)}: {values or 'as the spec is written'}"


def shown(value: object) -> str:
    """A value of a candidate: a number with four digits, anything else as the spec would write it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:
        return str(value)
    known = number(value)
    return f.significant(known, 4) if known is not None else charts.cut(f.scalar(value), _LONG)


def price_chart(prices: Sequence[tuple[str, float | None, bool]]) -> Markup | None:
    """Noise multipliers that searches leave for each trial; None where there is nothing to draw.

    Args:
        prices: Name, noise multiplier (None: no noise is enough), and whether it is this search.
    """
    rows = [
        plots.Bar(name, value, "no noise is enough" if value is None else f.significant(value, padded=True), own)
        for name, value, own in prices
        if value is None or 0 <= value < LARGEST
    ]
    if not any(row.value is not None for row in rows):
        return None
    told = "; ".join(f"{row.name}: {row.label}" for row in rows)
    title = "Noise multiplier of each trial under each way to search"
    told = f"All at the same ε in all. {told}."
    return charts.responsive(lambda width: plots.bars("prices", rows, title, told, width))


def multiples(
    trials: Sequence[Trial], space: Mapping[str, Mapping[str, Any]], objective: str, names: str
) -> list[Markup]:
    """A small scatter plot for each hyperparameter; none where there is nothing to compare.

    Args:
        trials: Those that have a score, the better ones first.
        space: Priors by dotted key.
        objective: What the score is.
        names: Begins the ids of the charts.
    """
    drawn = [t for t in trials if _drawable(t.score)]
    if len(drawn) < 2:
        return []
    up = _scores(drawn)
    found = []
    for index, (key, prior) in enumerate(space.items()):
        axis = Axis.of(key, prior, drawn)
        if axis is None:
            continue
        dots = [plots.Dot(axis.value(t), t.score or 0.0, t.named(objective), t.kind) for t in drawn]
        unset = sum(dot.x is None for dot in dots)
        told = f"{len(dots)} points; {axis.told}."
        told += f" {unset} of them don’t have this key." if unset else ""
        texts = charts.Axes(f"{objective} against {key}", told, charts.cut(key, 40), charts.cut(objective, 44))
        name = f"{names}-{index}"
        found.append(plots.scatter(name, dots, (axis.scale, up), texts, charts.NARROW))
    return found


def coordinates(
    trials: Sequence[Trial], space: Mapping[str, Mapping[str, Any]], objective: str, names: str
) -> Markup | None:
    """Every trial as a line through all hyperparameters and the objective; None where that would be one axis."""
    drawn = [t for t in trials if _drawable(t.score)]
    axes = [axis for key, prior in space.items() if (axis := Axis.of(key, prior, drawn)) is not None]
    if len(drawn) < 2 or len(axes) < 2:
        return None
    scales = [*((axis.key, axis.scale) for axis in axes), (objective, _scores(drawn))]
    paths = [plots.Path((*(axis.value(t) for axis in axes), t.score or 0.0), t.named(objective), t.kind) for t in drawn]
    told = f"{len(paths)} lines through {', '.join(name for name, _ in scales)}."
    title = f"All hyperparameters and {objective} together"
    return charts.responsive(lambda width: plots.parallel(names, scales, paths, title, told, width))


def pareto(
    trials: Sequence[Trial], targets: Sequence[float | None], objective: str, mode: str, epsilon: str
) -> Markup | None:
    """Score against the largest ε target; None where targets don't differ.

    Args:
        trials: The better ones first.
        targets: The largest ε target over groups of each of them; None: unknown.
        objective: What the score is.
        mode: ``min`` or ``max``.
        epsilon: Name of the x axis.
    """
    pairs = [(t, e) for t, e in zip(trials, targets, strict=True) if e is not None and _drawable(t.score)]
    pairs = [(t, e) for t, e in pairs if t.status == "finished"]
    if len({e for _, e in pairs}) < 2:
        return None
    dots = [plots.Dot(e, t.score or 0.0, t.named(objective), t.kind) for t, e in pairs]
    scales = plots.numbers([e for _, e in pairs]), _scores([t for t, _ in pairs])
    told = f"{len(dots)} points; the line joins those that no other one beats in both."
    axes = charts.Axes(f"{objective} against {epsilon}", told, epsilon, objective)
    return charts.responsive(lambda width: plots.scatter("pareto", dots, scales, axes, width, front=mode))


def _drawable(value: float | None) -> bool:
    return value is not None and (value == 0 or 1 / LARGEST < abs(value) < LARGEST)


def _scores(trials: Sequence[Trial]) -> plots.Scale:
    values = [t.score for t in trials if t.score is not None]
    low, high = min(values), max(values)
    return plots.numbers(values, logarithmic=low > 0 and high > low * _WIDE_SPREAD)


@dataclass(frozen=True)
class Axis:
    """A hyperparameter as an axis."""

    key: str
    scale: plots.Scale
    labels: tuple[str, ...]

    @staticmethod
    def of(key: str, prior: Mapping[str, Any], trials: Sequence[Trial]) -> Axis | None:
        """The axis of these trials; None where none of them has a value that can be drawn, or all have the same."""
        values = [t.values[key] for t in trials if key in t.values]
        unset = len(values) < len(trials)
        if not unset and len({shown(value) for value in values}) < 2:
            return None
        listed = prior.get("choice", prior.get("grid"))
        if isinstance(listed, list):
            # In the order of the spec, as far as some trial has it; and what a damaged file has besides.
            own = [shown(value) for value in values]
            labels = tuple(dict.fromkeys([*(label for v in listed if (label := shown(v)) in own), *own]))
            return Axis(key, plots.categories(labels, unset=unset), labels) if labels else None
        known = [v for value in values if _drawable(v := number(value)) and v is not None]
        if not known:
            return None
        unset = unset or len(known) < len(values)
        # All that could have been drawn, and not only where the few trials of a small search happened to lie.
        ends = prior.get("loguniform", prior.get("uniform", prior.get("int")))
        known += [
            v for end in (ends if isinstance(ends, list) else ()) if _drawable(v := number(end)) and v is not None
        ]
        logarithmic = "loguniform" in prior and min(known) > 0
        return Axis(key, plots.numbers(known, logarithmic=logarithmic, unset=unset), ())

    def value(self, trial: Trial) -> float | None:
        """Where a trial lies."""
        if self.key not in trial.values:
            return None
        if self.labels:
            return float(self.labels.index(shown(trial.values[self.key])))
        known = number(trial.values[self.key])
        return known if _drawable(known) else None

    @property
    def told(self) -> str:
        """In words."""
        if self.labels:
            return f"values {', '.join(self.labels[:20])}"
        return "a logarithmic axis" if self.scale.logarithmic else "a linear axis"
