"""What a run achieved, in a few numbers: the same for the report, the console and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.reporting.records import LOSS, RunRecord, items, number, read_run


@dataclass(frozen=True)
class Losses:
    """Hold-out losses in nats per token, lower is better. None: not measured.

    Attributes:
        base_loss: Of the model before training.
        trained_loss: After the last evaluated step of the run itself (private unless the run is marked).
        ordinary_loss: After the last evaluated step of the same training without clipping and noise.
        gain: `base_loss` − `trained_loss`; negative where training made the model worse.
        ordinary_gain: `base_loss` − `ordinary_loss`.
        share_kept: `gain` / `ordinary_gain`; None unless ordinary training gains something.
    """

    base_loss: float | None
    trained_loss: float | None
    ordinary_loss: float | None
    gain: float | None
    ordinary_gain: float | None
    share_kept: float | None


@dataclass(frozen=True)
class RunSummary:
    """The result of a run, over all hold-out users and per group."""

    overall: Losses
    groups: Mapping[str, Losses]
    step: int | None
    tokens: int | None


def summarize(run_dir: Path) -> dict[str, Any]:
    """The result of a finished run as plain values, ready for JSON.

    Args:
        run_dir: The run's folder; only its released files are read.

    Returns:
        ``name``, ``private``, ``epsilon``, ``delta``, ``evaluated``, ``step`` (the last evaluated one), ``tokens``
        (of the hold-out), the fields of `Losses`, and ``groups`` with the fields of `Losses` by group name.

    Raises:
        UserError: The folder holds no finished run.
    """
    record = read_run(run_dir)
    summary = summarize_record(record)
    return {
        "name": record.plan.get("name"),
        "private": record.private,
        "epsilon": record.epsilon if record.private else None,
        "delta": number(record.privacy.get("delta")) if record.private else None,
        "evaluated": summary.overall.trained_loss is not None,
        "step": summary.step,
        "tokens": summary.tokens,
        **asdict(summary.overall),
        "groups": {name: asdict(losses) for name, losses in summary.groups.items()},
    }


def summarize_record(record: RunRecord) -> RunSummary:
    """The result of a run that was read already."""
    names = [str(group["name"]) for group in items(record.plan, "groups") if group.get("name") is not None]
    prefix = f"{LOSS}/"
    for row in record.metrics:
        names += [key.removeprefix(prefix) for key in row if key.startswith(prefix)]
    trained = curve(record, "private")
    tokens = [count for row in record.metrics if (count := number(row.get("eval/tokens"))) is not None]
    return RunSummary(
        overall=_losses(record, LOSS),
        groups={name: _losses(record, prefix + name) for name in dict.fromkeys(names)},
        step=int(trained[-1][0]) if trained else None,
        tokens=int(tokens[-1]) if tokens else None,
    )


def curve(record: RunRecord, series: str, metric: str = LOSS) -> list[tuple[float, float]]:
    """(step, value) pairs of one released metric, by step; a step that was written twice counts once, the last time."""
    points: dict[float, float] = {}
    for row in record.metrics:
        step, value = number(row.get("step")), number(row.get(metric))
        if row.get("series") == series and step is not None and value is not None:
            points[step] = value
    return sorted(points.items())


def _losses(record: RunRecord, metric: str) -> Losses:
    trained, ordinary = curve(record, "private", metric), curve(record, "ordinary", metric)
    # Both kinds of training start from the same base model.
    base = next((value for step, value in [*trained, *ordinary] if step == 0), None)
    after = next((value for step, value in reversed(trained) if step > 0), None)
    plain = next((value for step, value in reversed(ordinary) if step > 0), None)
    gain = base - after if base is not None and after is not None else None
    ordinary_gain = base - plain if base is not None and plain is not None else None
    share = gain / ordinary_gain if gain is not None and ordinary_gain is not None and ordinary_gain > 0 else None
    return Losses(base, after, plain, gain, ordinary_gain, share)
