"""The charts of an audit: which of its values go into which drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.reporting import charts, drawings, whiskers
from harness.reporting import formatting as f
from harness.reporting.audited import KINDS, Audited, EpsilonTest
from harness.reporting.records import RunRecord, items, number
from harness.reporting.whiskers import Axis, Row, Shape, Spot, drawable

EVERYBODY = "all users"
"""Whom a measurement over all groups is of."""


@dataclass(frozen=True)
class Measured:
    """A value and its interval; None: it has none."""

    value: float
    interval: tuple[float, float] | None


def positive(value: object) -> float | None:
    """A number from 0 on that can be drawn, or None for anything else."""
    known = number(value)
    return known if known is not None and known >= 0 and drawable(known) else None


def measured(part: Mapping[str, Any], key: str, interval: str) -> Measured | None:
    """A value of a document with its interval, of which what lies below 0 is cut; None where it is no number from 0 on.

    A mean's interval may begin below 0 though nothing that is measured here can lie there.
    """
    value, ends = positive(part.get(key)), part.get(interval)
    if value is None:
        return None
    known = [number(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else []
    found = [max(0.0, end) for end in known if end is not None and drawable(end)]
    return Measured(value, (found[0], found[1]) if len(found) == 2 and found[0] <= found[1] else None)


# --- ε --------------------------------------------------------------------------------------------------------


def lanes(found: Audited) -> list[str]:
    """Kinds of canaries that are drawn, each in a lane of its own."""
    return [kind for kind in KINDS if any(test.kind == kind for test in found.tests)]


def epsilon_chart(found: Audited, record: RunRecord) -> Markup | None:
    """Per group and over all: the claim, what was measured, and what could have been; None where there is nothing."""
    places = {str(group.get("name")): index for index, group in enumerate(items(record.plan, "groups"))}
    by_group: dict[str | None, list[EpsilonTest]] = {}
    for test in found.tests:
        if drawable(test.bound) and drawable(test.ceiling) and test.kind in KINDS:
            by_group.setdefault(test.group, []).append(test)
    if not any(test.bound is not None for tests in by_group.values() for test in tests):
        return None
    order = sorted(by_group, key=lambda g: -1 if g is None else places.get(g, len(places)))
    kinds = lanes(found)
    rows = [_epsilon_row(g, by_group[g], kinds, _color(g, places)) for g in order]
    told = "; ".join(f"{row.name}: {row.label}" for row in rows)
    title = "What was measured of ε, and what is claimed"
    axis = Axis(0.0, 1.0)
    return charts.responsive(lambda width: whiskers.chart("audit", rows, axis, title, f"{told}.", width))


def _color(group: str | None, places: Mapping[str, int]) -> str:
    return "soft" if group is None else drawings.color(places.get(group, len(places)))


def _epsilon_row(group: str | None, tests: list[EpsilonTest], kinds: list[str], color: str) -> Row:
    name = EVERYBODY if group is None else group
    claimed = min((t.claimed for t in tests if t.claimed is not None), default=None)
    bound = max(t.bound or 0.0 for t in tests)
    above = any(t.verdict == "violated" for t in tests)
    spots: list[Spot] = []
    for lane, kind in enumerate(kinds):
        own = [t for t in tests if t.kind == kind]
        for ceiling in {t.ceiling for t in own if t.ceiling is not None}:
            words = f"{name}, {KINDS[kind]} canaries: at most {f.at_least(ceiling)} could be found"
            spots.append(Spot(ceiling, words, "muted", "tick", lane=lane))
        for test in own:
            words = f"{name}, {KINDS[kind]} canaries, {test.score}: ε ≥ {f.at_least(test.bound)}"
            paint = "no" if test.verdict == "violated" else color
            shape: Shape = "square" if kind == "text" else "disc"
            spots.append(Spot(test.bound or 0.0, words, paint, shape, lane=lane))
    label = f"≥ {f.at_least(bound)}"
    if claimed is not None:
        label += f" of {f.epsilon(claimed)}"
        if drawable(claimed):
            spots.insert(0, Spot(claimed, f"{name}: {f.epsilon(claimed)} is claimed", color, "wall"))
    return Row(name, label, "no" if above else color, spots, claimed if drawable(claimed) else None)


# --- the other attacks ----------------------------------------------------------------------------------------


def inference_chart(spots: Mapping[str | None, Measured | None], record: RunRecord) -> Markup | None:
    """AUC of user inference per group (None: all users); None where there is none."""
    places = {str(group.get("name")): index for index, group in enumerate(items(record.plan, "groups"))}
    rows = []
    for name, found in spots.items():
        if found is None or found.value > 1:
            continue
        label, color = f"{found.value:.3f}", _color(name, places)
        shown = EVERYBODY if name is None else name
        words = f"{shown}: {label} {f.interval(found.interval, '.3f')}"
        rows.append(Row(shown, label, color, [Spot(found.value, words, color, interval=found.interval)]))
    if not rows:
        return None
    told = "; ".join(row.spots[0].name for row in rows)
    axis = Axis(0.4, 0.6, [(0.5, "0.5: a coin")])
    title = "How well trained users are told from held-out ones (AUC)"
    return charts.responsive(lambda width: whiskers.chart("inference", rows, axis, title, f"{told}.", width))


def exposure_chart(
    exposures: Mapping[str, Measured | None], bases: Mapping[str, float | None], most: float | None, guess: float
) -> Markup | None:
    """Exposure of planted secrets, of those in the training and of those left out; None where there is none."""
    rows = []
    for name, found in exposures.items():
        if found is None:
            continue
        color, base = "accent", bases.get(name)
        label = f"{found.value:.2f} bits"
        spots = [Spot(found.value, f"{name}: {label} {f.interval(found.interval)}", color, interval=found.interval)]
        if base is not None:
            spots.insert(0, Spot(base, f"{name}, base model: {base:.2f} bits", "muted", "ring"))
        rows.append(Row(name, label, color, spots))
    if not rows:
        return None
    told = "; ".join(spot.name for row in rows for spot in row.spots)
    axis = Axis(0.0, most or 2.0, [(guess, f"{guess:g}: a guess")])
    title = "Exposure of planted secrets"
    return charts.responsive(lambda width: whiskers.chart("exposure", rows, axis, title, f"{told}.", width))


def words_chart(by_cohort: Mapping[float, Mapping[bool, Mapping[str, Any]]]) -> Markup | None:
    """Share of a user's words that an update gives away, by cohort size; None where there is none."""
    rows = []
    for cohort, levels in sorted(by_cohort.items()):
        name = "1 user" if cohort == 1 else f"{f.whole(cohort)} users"
        spots, label = [], []
        one = next(iter(levels.values()))
        for key, color in (("chance", "muted"), ("frequent", "ordinary")):
            value = positive(one.get(key))
            if value is not None:
                spots += [
                    Spot(value, f"{name}, {key}: {f.percent(value, 1)}", color, "tick", lane=lane)
                    for lane in range(len(levels))
                ]
        for lane, noise in enumerate(sorted(levels)):
            found = measured(levels[noise], "found", "interval")
            if found is not None:
                words = f"{name}, {'with noise' if noise else 'without noise'}: {f.percent(found.value)}"
                color = "accent" if noise else "muted"
                spots.append(Spot(found.value, words, color, "disc" if noise else "ring", found.interval, lane))
                label.append(f.percent(found.value))
        if label:
            rows.append(Row(name, " → ".join(label), "accent", spots))
    if not rows:
        return None
    told = "; ".join(spot.name for row in rows for spot in row.spots if spot.shape != "tick")
    axis = Axis(0.0, 1.0, tick=f.percent)
    title = "Words of a user found in an update, by the number of users in it"
    return charts.responsive(lambda width: whiskers.chart("words", rows, axis, title, f"{told}.", width))
