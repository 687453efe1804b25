"""From a run's released values to what the page shows: every text and chart, ready to be laid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reporting import answers, drawings, explain
from harness.reporting import formatting as f
from harness.reporting.assessing import assessment
from harness.reporting.attacks import attacks
from harness.reporting.benefit import utility_gap
from harness.reporting.moving import moving
from harness.reporting.own_words import own_words
from harness.reporting.reasons import group_reason
from harness.reporting.records import RunRecord, block, items, number, texts
from harness.reporting.searching import is_charged, searching
from harness.reporting.summary import Losses, RunSummary, curve, summarize_record


@dataclass(frozen=True)
class Fact:
    """A label and its value."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class SpecLine:
    """One line of the resolved spec, and where its value comes from."""

    depth: int
    key: str
    value: str
    origin: str


def build(record: RunRecord) -> dict[str, Any]:
    """Everything that the template shows.

    Args:
        record: The run's released files.

    Returns:
        The template's variables: plain texts (not yet escaped), facts, and charts as safe markup.
    """
    summary = summarize_record(record)
    groups = items(record.plan, "groups")
    label = "private" if record.private else "trained"
    audit = attacks(record)
    return {
        "name": str(record.plan.get("name") or record.privacy.get("name") or "run"),
        "private": record.private,
        "label": label,
        "alarm": None if record.private else _alarm(record),
        "warnings": list(_warnings(record)),
        "badges": _badges(record),
        "hero": _hero(record, audit is not None and audit["alarm"] is not None),
        "assumptions": texts(record.privacy, "assumptions"),
        "not_covered": texts(record.privacy, "not_covered"),
        "result": _result(record, summary, label),
        "groups": [_group(entry, index, groups, summary, record) for index, entry in enumerate(groups)],
        "group_columns": _columns(record, summary),
        "group_chart": drawings.groups_chart(groups, summary),
        "gap": utility_gap(record, summary),
        "attacks": audit,
        "words": own_words(record),
        "assessment": assessment(record),
        "trade_offs": _trade_offs(groups),
        "moving": moving(record),
        "by_example": block(record.plan, "sampling").get("unit") == "example",
        "candidates": answers.candidates(record),
        "spent": _spent(record, groups),
        "search": searching(record),
        "how": list(_how(record)),
        "plugins": items(record.plan, "plugins"),
        "notes": texts(record.plan, "notes"),
        "versions": [Fact(str(k), str(v)) for k, v in block(record.plan, "versions").items()],
        "spec_lines": list(_spec_lines(record.spec, block(record.plan, "origins"))),
    }


# --- the guarantee --------------------------------------------------------------------------------------------


def _alarm(record: RunRecord) -> str:
    if record.privacy.get("private") is True:
        return "This run’s files state no finite ε, or contradict each other. Treat the model as unprotected."
    return (
        "This model was trained without protection. It may have memorised its training texts word for word, "
        "and nothing bounds what it reveals about any user."
    )


def _warnings(record: RunRecord) -> Iterator[str]:
    done, planned = number(record.privacy.get("steps_completed")), number(record.plan.get("steps"))
    status = record.privacy.get("status")
    if isinstance(status, str) and status != "finished":
        yield f"The run’s status is “{status}”."
    if done is not None and planned is not None and done < planned:
        yield (
            f"Training stopped after {f.whole(done)} of {f.whole(planned)} steps. "
            "The guarantee is stated, and charged, for all of them."
        )


def _badges(record: RunRecord) -> list[Fact]:
    found = []
    if block(record.privacy, "data").get("visibility") == "public":
        found.append(Fact("Demonstration on public text", "The data are declared public; the accounting is real."))
    holdout = block(record.privacy, "holdout")
    if holdout.get("visibility") == "public" and number(holdout.get("fraction")) != 0:
        share = number(holdout.get("fraction"))
        who = "Hold-out users" if share is None else f"Hold-out users ({f.percent(share)})"
        found.append(Fact(f"{who} gave up protection", "They are measured on openly, and never trained on."))
    return found


def _hero(record: RunRecord, refuted: bool) -> dict[str, Any]:
    epsilon, delta = record.epsilon, number(record.privacy.get("delta"))
    places = {str(entry.get("name")): index for index, entry in enumerate(items(record.plan, "groups"))}
    marks = [
        drawings.GroupMark(
            str(entry.get("name", f.MISSING)),
            number(entry.get("epsilon")),
            drawings.color(places.get(str(entry.get("name")), index)),
        )
        for index, entry in enumerate(items(record.privacy, "groups"))
    ]
    chips = [{"name": mark.name, "epsilon": f.epsilon(mark.epsilon), "color": mark.color} for mark in marks]
    guess = None
    if record.private and epsilon is not None and not refuted:
        guess = f.guess_text(f.guess(epsilon, delta or 0.0))
    return {
        "epsilon": f.epsilon(epsilon) if record.private else "∞",
        "delta": f.delta(delta) if record.private else "none",
        "unit": str(record.privacy.get("unit") or "user"),
        "adjacency": str(record.privacy.get("adjacency") or "") if record.private else "",
        "accountant": str(record.privacy.get("accountant") or f.MISSING),
        "statement": str(record.privacy.get("statement") or ""),
        "guess": guess,
        "refuted": refuted,
        "chips": chips if record.private else [],
        "scale": drawings.scale(epsilon, marks) if record.private else None,
    }


# --- the result -----------------------------------------------------------------------------------------------


def _result(record: RunRecord, summary: RunSummary, label: str) -> dict[str, Any]:
    overall = summary.overall
    series = {named: points for named in ("private", "ordinary") if (points := curve(record, named))}
    steps = sorted({step for points in series.values() for step, _ in points})
    spent = drawings.spent_by_step(record)
    heads = ["step", *(label if named == "private" else named for named in series)]
    table = [[f.whole(step), *(f.loss(dict(points).get(step)) for points in series.values())] for step in steps]
    if spent:
        heads.append("ε spent")
        table = [[*row, f.epsilon(spent.get(step))] for row, step in zip(table, steps, strict=True)]
    holdout = record.privacy.get("holdout")
    nobody = isinstance(holdout, Mapping) and number(holdout.get("fraction")) == 0
    noise = answers.loss_noise(record)
    return {
        "evaluated": overall.trained_loss is not None,
        "noisy": answers.noisy_holdout(record),
        "noise": explain.loss_noise(noise.get(""), answers.first_noise()) if answers.noisy_holdout(record) else "",
        "plus_minus": f"± {f.significant(noise[''], 2)}" if noise else "",
        "base_plus_minus": f"± {f.significant(noise[''] * answers.first_noise(), 2)}" if noise else "",
        "why_not": (
            "The spec holds out no users (data.holdout.users is 0), so there was nobody to measure on."
            if nobody
            else "metrics.jsonl holds no hold-out loss after training."
        ),
        "headline": explain.headline(overall, record.private),
        "base": f.loss(overall.base_loss),
        "trained": f.loss(overall.trained_loss),
        "ordinary": f.loss(overall.ordinary_loss),
        "has_ordinary": overall.ordinary_loss is not None,
        "trained_change": _change(overall.gain),
        "ordinary_change": _change(overall.ordinary_gain),
        "share": f.percent(overall.share_kept),
        "share_width": _width(overall),
        "tokens": f.whole(summary.tokens) if summary.tokens is not None else "",
        "step": f.whole(summary.step) if summary.step is not None else "",
        "chart": drawings.learning_curve(record, overall, label, noise.get("")),
        "table_heads": heads,
        "table": table,
    }


def _change(gain: float | None) -> str:
    if gain is None:
        return ""
    return f"{'−' if gain >= 0 else '+'}{abs(gain):.3f} against base"


def _width(losses: Losses) -> float | None:
    return None if losses.share_kept is None else round(100 * min(max(losses.share_kept, 0.0), 1.0), 1)


# --- groups ---------------------------------------------------------------------------------------------------


def _columns(record: RunRecord, summary: RunSummary) -> list[str]:
    columns = ["ε (target)", "Clip norm", "Noise multiplier", "Sampling rate"]
    columns += [name for name, _ in _differing(record)]
    columns += ["Noise to signal", "Weight"]
    if any(losses.trained_loss is not None for losses in summary.groups.values()):
        columns.append("Loss, base → " + ("private" if record.private else "trained"))
    return columns


def _differing(record: RunRecord) -> list[tuple[str, str]]:
    """Further levers that are shown: the steps where they differ, what users keep under example sampling."""
    groups = items(record.plan, "groups")
    found = [("Steps", "steps")] if len({number(g.get("steps")) for g in groups}) > 1 else []
    if block(record.plan, "sampling").get("unit") == "example":
        found.append(("Kept examples", "examples_per_user"))
    return found


def _group(
    entry: Mapping[str, Any], index: int, groups: Sequence[Mapping[str, Any]], summary: RunSummary, record: RunRecord
) -> dict[str, Any]:
    name = str(entry.get("name", f.MISSING))
    epsilon, target = number(entry.get("epsilon")), number(entry.get("target_epsilon"))
    losses = summary.groups.get(name)
    weight = number(entry.get("weight"))
    shown = f.epsilon(epsilon) if record.private else "∞"
    cells = [
        shown + (f" ({f.significant(target)})" if target is not None and record.private else ""),
        f.significant(number(entry.get("clip_norm")), padded=True),
        f.significant(number(entry.get("noise_multiplier")), padded=True),
        f.rate(number(entry.get("sampling_rate"))),
        *(f.whole(number(entry.get(key))) for _, key in _differing(record)),
        f.significant(number(entry.get("noise_to_signal")), padded=True),
        f.percent(weight),
    ]
    if losses is not None and losses.trained_loss is not None:
        noise = answers.loss_noise(record).get(name)
        plus_minus = "" if noise is None else f" ± {f.significant(noise, 2)}"
        cells.append(f"{f.loss(losses.base_loss)} → {f.loss(losses.trained_loss)}{plus_minus}")
    else:
        cells.append(f.MISSING)
    columns = _columns(record, summary)
    delta = number(record.privacy.get("delta")) or 0.0
    return {
        "name": name,
        "color": drawings.color(index),
        "epsilon": shown,
        "target": f.significant(target) if target is not None and record.private else "",
        "weight": f.percent(weight) if weight is not None else "",
        "guess": f.guess_text(f.guess(epsilon, delta)) if epsilon is not None and _claimed(record) else "",
        "reason": group_reason(entry, record.plan),
        "bells": drawings.group_bells(groups, index),
        "cells": list(zip(columns, cells, strict=False)),
    }


def _claimed(record: RunRecord) -> bool:
    """Whether a group's own ε holds for a user in it; of groups that are learnt, the run's alone does."""
    return record.private and record.plan.get("claimed_by_group") is not False


def _trade_offs(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """δ of each group at a few ε, where the plan has them: one (ε, δ) hides what these show."""
    curves = {}
    for group in groups:
        points = group.get("curve")
        pairs = [p for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
        curves[str(group.get("name", f.MISSING))] = [(number(e), number(d)) for e, d in pairs]
    if len(curves) < 2 or len({tuple(e for e, _ in curve) for curve in curves.values()}) != 1:
        return None
    marks = [e for e, _ in next(iter(curves.values()))]
    if not marks or any(e is None or d is None for curve in curves.values() for e, d in curve):
        return None
    known = {name: [(e or 0.0, d or 0.0) for e, d in curve] for name, curve in curves.items()}
    rows = [[f.significant(e or 0.0), *(f.delta(curve[i][1]) for curve in known.values())] for i, e in enumerate(marks)]
    return {
        "heads": ["at ε", *(f"δ, {name}" for name in known)],
        "rows": rows,
        "chart": drawings.trade_off_chart(known),
        "legend": [{"name": name, "color": drawings.color(index)} for index, name in enumerate(known)],
    }


# --- where it went --------------------------------------------------------------------------------------------


def _spent(record: RunRecord, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    charges = items(record.plan, "charges")
    trained = max((e for group in groups if (e := number(group.get("epsilon"))) is not None), default=None)
    # What a group claims is its total; without other charges that is the price of training.
    training = f.epsilon(trained if trained is not None else record.epsilon)
    searched = is_charged(record)
    steps = "Training, every step" + " of every trial" * searched
    rows = [Fact(steps, training if not charges else "the rest of each group’s ε")]
    asked = answers.charge_rows(record)
    rows += [Fact(row["what"], row["epsilon"], row["noise"]) for row in asked]
    return {
        "sentence": explain.spending(charges, searched),
        "rows": rows,
        "alone": bool(charges),
        "total": f.epsilon(record.epsilon),
        "holdout": answers.holdout_line(record),
        "ledger": answers.ledger_lines(record),
        "chart": drawings.epsilon_curve(record) if record.private else None,
    }


# --- how it was done ------------------------------------------------------------------------------------------


def _how(record: RunRecord) -> Iterator[Fact]:
    plan = record.plan
    model, train, sampling = block(plan, "model"), block(plan, "train"), block(plan, "sampling")
    population = block(plan, "population")
    yield Fact("Base model", str(model.get("base") or f.MISSING), str(model.get("origin") or ""))
    adapter, dtype = block(model, "adapter"), model.get("dtype")
    if adapter.get("type") == "full":
        yield Fact("Trained", "all parameters", f"in {dtype}" if dtype else "")
    else:
        yield Fact("Adapter", _listed(adapter), f"base in {dtype}" if dtype else "")
    yield Fact("Optimizer", _listed(block(train, "optimizer")))
    steps = number(train.get("steps")) or number(plan.get("steps"))
    every = number(train.get("checkpoint_every"))
    yield Fact("Steps", f.whole(steps), f"checkpoint every {f.whole(every)}" if every is not None else "")
    expected = number(sampling.get("expected"))
    unit = str(sampling.get("unit") or "user")
    yield Fact("Sampling", f"Poisson, by {unit}", answers.per_step(expected, unit, items(plan, "groups")))
    yield from _moves(plan)
    if (tiers := answers.tiers(record)) is not None:
        yield Fact("Risk tiers", *tiers)
    users, held = number(population.get("users")), number(population.get("holdout_users"))
    sources = {"public": "counted, and declared public", "noisy": "counted with noise, and charged"}
    note = sources.get(str(population.get("from")), "declared in the spec")
    yield Fact("Population", f"{f.whole(users)} users" if users is not None else f.MISSING, note)
    if held is not None:
        yield Fact("Hold-out", f"{f.whole(held)} users", "never trained on")
    weights = {
        "public": "counted by public attributes",
        "declared": "declared in the spec",
        "noisy": "counted with noise, and charged",
    }
    if plan.get("weights_from") is not None:
        yield Fact("Group weights", weights.get(str(plan["weights_from"]), str(plan["weights_from"])))
    std, denominator = number(plan.get("noise_std")), number(plan.get("denominator"))
    yield Fact("Noise, standard deviation", f.significant(std), "on the sum of clipped gradients")
    yield Fact("Denominator", f.significant(denominator), "a public constant, not the cohort’s size")
    adjacency = record.privacy.get("adjacency")
    yield Fact("Accountant", str(plan.get("accountant") or f.MISSING).upper(), str(adjacency or ""))
    if record.privacy.get("computational") is True:
        yield Fact("Randomness", "cryptographic generator", "the guarantee is computational")
    digest = plan.get("mechanism_digest") or record.privacy.get("mechanism_digest")
    yield Fact("Mechanism digest", str(digest or f.MISSING))


def _moves(plan: Mapping[str, Any]) -> Iterator[Fact]:
    """Clipping that follows the norms, and a schedule."""
    clipping, schedule = block(plan, "clipping"), items(plan, "schedule")
    if clipping.get("type") == "adaptive":
        share = f.percent(number(clipping.get("quantile")))
        yield Fact("Clipping", "adaptive", f"so that {share} lie below, by a noisy count")
    if schedule:
        yield Fact("Schedule", f"{len(schedule)} constant parts", "public; each step accounted at its own noise")


def _listed(values: Mapping[str, Any]) -> str:
    """A block in a line: its type first, then the parameters that are set to anything."""
    parts = [str(values["type"])] if values.get("type") is not None else []
    for key, value in values.items():
        if key == "type" or value is None or value in ({}, [], ""):
            continue
        # A drawn one has all digits that it was drawn with; they stand in the spec below.
        told = f.significant(value, 4) if isinstance(value, float) and math.isfinite(value) else f.scalar(value)
        parts.append(f"{key} {told}")
    return ", ".join(parts) or f.MISSING


def _spec_lines(
    values: Mapping[str, Any], origins: Mapping[str, Any], path: str = "", depth: int = 0
) -> Iterator[SpecLine]:
    for key, value in values.items():
        here = f"{path}.{key}" if path else str(key)
        origin = f.without_credentials(str(origins.get(here) or ""))
        if isinstance(value, Mapping) and value:
            yield SpecLine(depth, str(key), "", origin)
            yield from _spec_lines(value, origins, here, depth + 1)
        else:
            yield SpecLine(depth, str(key), f.scalar(value), origin)
