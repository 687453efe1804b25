"""Verified runs → tables: a row per policy and budget over its seeds, best first; apart from these what has no place.

Two rows have a place among each other only where data, budget and δ are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reporting.answers import noisy_holdout
from harness.reporting.leaderboard.audits import WORST, Verdict
from harness.reporting.leaderboard.files import Refused, shown
from harness.reporting.leaderboard.verifying import Verified
from harness.reporting.records import block, number
from harness.reporting.report import render
from harness.reporting.summary import Losses, RunSummary, summarize_record

CONFIDENCE = 0.95
SAME_BASE = 0.01
"""Relative: base models whose hold-out losses differ by more were not measured on the same users."""


@dataclass(frozen=True)
class Place:
    """Where a run belongs.

    Attributes:
        board: The data of a suite, or the name of a data set.
        policy: The row's name.
        budget: ε of the cell; None: it has none.
        seed: Of the run; None: unknown.
        split: Further apart than by name: runs of no suite that differ in more than their seed.
    """

    board: str
    policy: str
    budget: float | None
    seed: int | None
    split: str = ""


@dataclass(frozen=True)
class Entry:
    """A run that was verified, where it belongs, and what is shown of it.

    Attributes:
        place: Where it belongs.
        run: As it was verified.
        folder: What the page calls it.
        summary: Its result.
        report: Its report, as HTML.
    """

    place: Place
    run: Verified
    folder: str
    summary: RunSummary
    report: str


@dataclass(frozen=True)
class Refusal:
    """A run that is shown for what it is refused for, and nothing else.

    Attributes:
        run: Its folder as the page calls it.
        what: Its place in a suite in words; empty: it has none.
        reason: In a line.
    """

    run: str
    what: str
    reason: str


@dataclass(frozen=True)
class Mean:
    """Over seeds. ``half`` is half of a 95 % t-interval; None where one value has none."""

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class GroupResult:
    """A privacy group in a row: what is claimed of its users, and what the model learnt for them."""

    name: str
    claimed: float | None
    recomputed: float | None
    loss: Mean | None
    gain: float | None


@dataclass(frozen=True)
class Row:
    """A policy at a budget, over all its runs.

    Attributes:
        policy: Its name.
        budget: ε of the cell.
        delta: δ of its runs, the largest.
        private: Whether they claim a guarantee.
        loss: Hold-out loss after training, in nats per token.
        base: The same before.
        gain: `base` − `loss`.
        share: `gain` over what training without privacy gains.
        claimed: The largest ε that a run claims: of the group that is protected least.
        recomputed: The largest that follows from a run's mechanism.
        audited: The largest lower bound that attacks reached.
        verdict: The worst of its runs' audits.
        groups: Per group.
        gap: Utility gap: the largest gain of a group less the smallest.
        entries: Its runs.
        notes: What a reader should know.
        unranked: Why it has no place; empty: it has one.
        rank: Its place among rows of the same budget; None: none.
        tied: Whether its interval overlaps that of the best at its budget.
    """

    policy: str
    budget: float | None
    delta: float | None
    private: bool
    loss: Mean | None
    base: float | None
    gain: float | None
    share: float | None
    claimed: float | None
    recomputed: float | None
    audited: float | None
    verdict: Verdict | None
    groups: tuple[GroupResult, ...]
    gap: float | None
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    unranked: str = ""
    rank: int | None = None
    tied: bool = False


@dataclass(frozen=True)
class Board:
    """Runs that can be compared: the same data.

    Attributes:
        name: Of the data.
        ranked: By budget, then by loss.
        unranked: Runs with a guarantee that have no place, each with the reason.
        unprotected: Runs without privacy, never ranked.
        notes: What a reader should know of all of them.
    """

    name: str
    ranked: tuple[Row, ...]
    unranked: tuple[Row, ...]
    unprotected: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them."""
        return (*self.ranked, *self.unranked, *self.unprotected)


def entry(place: Place, run: Verified, folder: str) -> Entry:
    """A run at its place, with its result and its report.

    Raises:
        Refused: No report can be made of its files.
    """
    try:
        return Entry(place, run, folder, summarize_record(run.record), render(run.record))
    except Exception as error:  # a value of no shape that a report knows; the files are anybody's
        raise Refused(f"no report can be made of its files ({type(error).__name__})") from None


def own_place(run: Verified) -> Place:
    """Of a run that no suite knows: its data set, its name and noise policy, and what else makes it another row."""
    spec = run.files.spec
    name, noise = shown(spec.get("name"), 80), shown(block(spec, "noise").get("type"), 40)
    seed, budget = spec.get("seed"), number(block(spec, "privacy").get("epsilon"))
    return Place(
        str(block(spec, "data").get("name")),
        f"{name} ({noise})",
        budget if run.private else None,
        seed if isinstance(seed, int) else None,
        _but_seed(spec),
    )


def boards(entries: Iterable[Entry]) -> tuple[Board, ...]:
    """A table for each of the data, in alphabetical order."""
    by_board: dict[str, list[Entry]] = {}
    for one in entries:
        by_board.setdefault(one.place.board, []).append(one)
    return tuple(_board(name, by_board[name]) for name in sorted(by_board))


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean of one value per seed, with its 95 % t-interval; None of no values."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Mean(mean, None, 1)
    from scipy import stats

    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Mean(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)), len(values))


def half_text(value: float) -> str:
    """Half of an interval, rounded up, with the decimals of a loss."""
    return f"{math.ceil(value * 1000 - 1e-9) / 1000:.3f}"


# --- a table ------------------------------------------------------------------------------------------------


def _board(name: str, entries: Sequence[Entry]) -> Board:
    cells: dict[tuple[Any, ...], list[Entry]] = {}
    for one in sorted(entries, key=lambda e: (e.place.seed is None, e.place.seed or 0, e.run.files.id)):
        place = one.place
        cells.setdefault((one.run.private, place.policy, place.budget, place.split), []).append(one)
    reference = _mean(e.summary.overall.gain for e in entries if not e.run.private)
    rows = [_row(held, reference) for held in cells.values()]
    rows.sort(key=lambda r: (r.budget is None, r.budget or 0.0, r.policy, r.entries[0].run.files.id))
    protected = [row for row in rows if row.private]
    return Board(
        name,
        tuple(_ranked([row for row in protected if not row.unranked])),
        tuple(row for row in protected if row.unranked),
        tuple(row for row in rows if not row.private),
        tuple(_notes(rows)),
    )


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Places, within each budget and δ."""
    found: list[Row] = []
    keys = dict.fromkeys((row.budget, row.delta) for row in rows)
    for key in sorted(keys, key=lambda k: (k[0] is None, k[0] or 0.0, k[1] or 0.0)):
        same = sorted((r for r in rows if (r.budget, r.delta) == key), key=lambda r: (_loss(r), r.policy))
        for place, row in enumerate(same, start=1):
            found.append(dataclasses.replace(row, rank=place, tied=place > 1 and _overlaps(same[0], row)))
    return found


def _loss(row: Row) -> float:
    return math.inf if row.loss is None else row.loss.mean


def _overlaps(best: Row, row: Row) -> bool:
    """Whether the intervals of two rows overlap; of a single run there is none, which says nothing."""
    a, b = best.loss, row.loss
    if a is None or b is None or a.half is None or b.half is None:
        return False
    return b.mean - b.half <= a.mean + a.half


def _notes(rows: Sequence[Row]) -> list[str]:
    bases = [row.base for row in rows if row.base is not None]
    found = []
    if bases and max(bases) - min(bases) > SAME_BASE * max(map(abs, bases)):
        found.append(
            "The base model’s hold-out loss differs between these runs: they were not measured on the same users or "
            "not from the same model, and compare only roughly."
        )
    specs = [entry.run.files.spec for row in rows for entry in row.entries]
    learnt = {f"{shown(block(s, 'data').get('name'), 60)} on {shown(block(s, 'model').get('base'), 60)}" for s in specs}
    if len(learnt) > 1:
        told = "; ".join(sorted(learnt)[:5])
        found.append(
            f"Not all of these runs are of the same data set and base model, and compare only roughly: {told}."
        )
    if len({row.delta for row in rows if row.private}) > 1:
        found.append("δ differs between these runs; each has a place only among those with the same budget and δ.")
    return found


# --- a row --------------------------------------------------------------------------------------------------


def _row(entries: Sequence[Entry], reference: float | None) -> Row:
    place, runs = entries[0].place, [e.run for e in entries]
    losses = [e.summary.overall for e in entries]
    private = runs[0].private
    # A loss of an earlier step is not the result: who keeps the best of them would look better.
    trained = [
        e.summary.overall.trained_loss
        for e in entries
        if e.summary.overall.trained_loss is not None and e.summary.step == e.run.mechanism.steps
    ]
    gain = _mean(x.gain for x in losses)
    own = _mean(x.ordinary_gain for x in losses)
    ordinary = reference if reference is not None else own
    bounds = [r.audit.bound for r in runs if r.audit is not None and r.audit.bound is not None]
    verdict = min(
        (r.audit.verdict for r in runs if r.audit is not None and r.audit.verdict is not None),
        key=WORST.index,
        default=None,
    )
    groups = _groups(entries)
    gains = [g.gain for g in groups if g.gain is not None]
    return Row(
        shown(place.policy),
        place.budget,
        max((number(r.record.privacy.get("delta")) or 0.0 for r in runs), default=0.0) if private else None,
        private,
        mean_of(trained),
        _mean(x.base_loss for x in losses),
        gain,
        gain / ordinary if private and gain is not None and ordinary is not None and ordinary > 0 else None,
        max((r.claimed for r in runs if r.claimed is not None), default=None),
        max((r.recomputed.total for r in runs if r.recomputed is not None), default=None),
        max(bounds, default=None),
        verdict,
        groups,
        max(gains) - min(gains) if len(gains) > 1 else None,
        tuple(entries),
        tuple(_row_notes(entries)),
        _unranked(private, verdict, len(trained), len(entries)),
    )


def _unranked(private: bool, verdict: Verdict | None, measured: int, runs: int) -> str:
    if private and verdict == "violated":
        return "an audit found a lower bound above the claimed ε: the mechanism was not what it is said to be"
    if private and measured < runs:
        whose = "no run" if measured == 0 else "not every run"
        return f"{whose} has a hold-out loss after the last step"
    return ""


def _row_notes(entries: Sequence[Entry]) -> Iterable[str]:
    runs = [e.run for e in entries]
    if len(entries) == 1:
        yield "one seed: no interval"
    if any(r.overclaims for r in runs):
        yield "claims more than its mechanism gives"
    if any(noisy_holdout(r.record) for r in runs):
        yield "noisy hold-out loss"
    if any(r.record.privacy.get("any_group") is True for r in runs):
        yield "groups are learnt: only the total is claimed"
    if any(r.record.privacy.get("search") is not None for r in runs):
        yield "ε is of a whole search"
    if len({_but_seed(r.files.spec) for r in runs}) > 1:
        yield "its runs differ in more than the seed"


def _groups(entries: Sequence[Entry]) -> tuple[GroupResult, ...]:
    names = dict.fromkeys(g.name for e in entries for g in e.run.mechanism.groups)
    return tuple(_group(name, entries) for name in names)


def _group(name: str, entries: Sequence[Entry]) -> GroupResult:
    claimed: list[float] = []
    recomputed: list[float] = []
    losses: list[Losses] = []
    for one in entries:
        run = one.run
        places = [i for i, g in enumerate(run.mechanism.groups) if g.name == name]
        told = one.summary.groups.get(shown(name, 20_000))
        if told is not None:
            losses.append(told)
        if not places or run.recomputed is None or run.record.privacy.get("any_group") is True:
            continue
        claimed.append(run.groups[places[0]])
        recomputed.append(run.recomputed.groups[places[0]])
    trained = [x.trained_loss for x in losses if x.trained_loss is not None]
    return GroupResult(
        shown(name),
        max(claimed, default=None),
        max(recomputed, default=None),
        mean_of(trained),
        _mean(x.gain for x in losses),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _but_seed(spec: Mapping[str, Any]) -> str:
    """What a spec asks for besides its seed and what changes nothing of the result."""
    left = {k: v for k, v in spec.items() if k not in ("seed", "name", "compute", "report", "audit", "sweep")}
    privacy = {k: v for k, v in block(spec, "privacy").items() if k != "ledger"}
    return hashlib.sha256(json.dumps(left | {"privacy": privacy}, sort_keys=True).encode()).hexdigest()
