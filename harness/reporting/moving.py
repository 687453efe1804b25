"""What changes during a run: noise and clip norms by a public plan, or clip norms that follow noisy counts."""

from __future__ import annotations

from typing import Any

from harness.reporting import charts
from harness.reporting import formatting as f
from harness.reporting.records import RunRecord, block, items, number
from harness.reporting.summary import curve

FACTOR = "clip/factor"
"""The released metric: clip norms now over those of the first step."""


def moving(record: RunRecord) -> dict[str, Any] | None:
    """Title, legend, chart and caption; None where everything stays as it is."""
    return _schedule(record) or _adaptive(record)


def _schedule(record: RunRecord) -> dict[str, Any] | None:
    stretches = [
        (steps, noise, clip)
        for entry in items(record.plan, "schedule")
        if (steps := number(entry.get("steps"))) is not None
        and (noise := number(entry.get("noise"))) is not None
        and (clip := number(entry.get("clip"))) is not None
    ]
    if len(stretches) < 2:
        return None
    lines, legend = [], []
    for name, index, color in (("noise", 1, "ordinary"), ("clip norm", 2, "accent")):
        points: list[tuple[float, float]] = []
        begin = 0.0
        for stretch in stretches:
            # Steps are counted from 1; a stretch is drawn from its first step's beginning to its last one's end.
            points += [(begin, stretch[index]), (begin + stretch[0], stretch[index])]
            begin += stretch[0]
        label = f"{points[-1][1]:.2f}"
        lines.append(charts.Series(name, points, color, label, markers=False))
        legend.append({"name": name, "color": color})
    told = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g} times that of the first step" for line in lines)
    axes = charts.Axes("Noise and clip norm against step", f"{told}.", "step", "× first step", from_zero=True)
    return {
        "title": "Noise and clip norms over the run",
        "legend": legend,
        "chart": charts.responsive(lambda width: charts.line_chart("schedule", lines, axes, width)),
        "caption": "A public plan, fixed before the run; every step is accounted at its own noise. Noise multipliers "
        "in the table above are those of the first step.",
    }


def _adaptive(record: RunRecord) -> dict[str, Any] | None:
    clipping = block(record.plan, "clipping")
    points = curve(record, "private", FACTOR)
    if clipping.get("type") != "adaptive" or len(points) < 2:
        return None
    last = points[-1][1]
    line = charts.Series("clip norms and noise", points, "accent", f"{last:.2f}", filled=True)
    told = f"After {points[-1][0]:g} steps they are {f.significant(last)} times those of the first step."
    axes = charts.Axes("Clip norms and noise against step", told, "step", "× first step", from_zero=True)
    share, std = number(clipping.get("quantile")), number(clipping.get("bit_noise_std"))
    one = "examples" if block(record.plan, "sampling").get("unit") == "example" else "users"
    return {
        "title": "Clip norms over the run",
        "legend": [{"name": "clip norms and noise, all groups alike", "color": "accent"}],
        "chart": charts.responsive(lambda width: charts.line_chart("factor", [line], axes, width)),
        "caption": f"They follow a noisy count of the {one} whose gradient lies below its group’s norm, towards "
        f"{f.percent(share)} (noise on the count: {f.significant(std)}). The count is part of every group’s ε. Clip "
        "norms in the table above are those of the first step.",
    }
