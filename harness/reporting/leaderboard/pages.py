"""From tables to HTML pages: every text is escaped, one script of ours runs (named by its hash), nothing is loaded."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from harness.reporting import formatting as f
from harness.reporting.leaderboard import drawing
from harness.reporting.leaderboard.files import shown
from harness.reporting.leaderboard.gathering import OTHER, Leaderboard, Page
from harness.reporting.leaderboard.ranking import Board, Entry, Mean, Row, half_text

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
INDEX = "index.html"
Cell = dict[str, Any]
COLUMNS = (
    ("rank", "#"),
    ("policy", "Policy"),
    ("budget", "Budget"),
    ("loss", "Hold-out loss"),
    ("gain", "Gain"),
    ("share", "Of non-private gain"),
    ("claimed", "ε\u00a0claimed"),
    ("recomputed", "ε\u00a0recomputed"),
    ("audited", "ε\u00a0audited"),
    ("gap", "Group gap"),
)
"""Keys and heads of the table of ranked rows."""
OPEN = ("policy", "loss", "gain", "gap")
"""Columns of rows that promise nothing."""
VERDICTS = {"violated": "VIOLATED", "inconclusive": "inconclusive", "consistent": "consistent"}


def file_of(page: Page) -> str:
    """Name of a page's file: readable, and its own whatever a suite is called."""
    if not page.suite:
        return "other-runs.html"
    slug = re.sub(r"[^a-z0-9]+", "-", page.name.lower()).strip("-")[:40]
    digest = hashlib.sha256(page.key.encode("utf-8", "replace")).hexdigest()[:8]
    return f"suite-{slug}.html" if page.key == f"suite {slug}" else f"suite-{slug or 'unnamed'}-{digest}.html"


def folder_of(entry: Entry) -> str:
    """Where the site keeps the report and the spec of a run."""
    return f"runs/{entry.run.files.id}"


def index(board: Leaderboard) -> str:
    """The first page."""
    template = _environment().get_template("index.html.j2")
    return template.render(
        title="Leaderboard",
        pages=[_card(page) for page in board.pages],
        problems=[shown(problem, 300) for problem in board.problems],
        counts=[("suites", f.whole(sum(page.suite for page in board.pages))), *_counts(board.pages)],
        **_common(script=False),
    )


def page_html(page: Page) -> str:
    """A suite, or the runs of none."""
    template = _environment().get_template("suite.html.j2")
    return template.render(
        title=page.name,
        suite=page.suite,
        boards=[_board(board, place, page) for place, board in enumerate(page.boards)],
        refused=page.refused,
        counts=_counts([page]),
        budgets=_budgets(page),
        sortable=[(key, head) for key, head in COLUMNS if key != "rank"],
        **_common(script=True),
    )


def _common(*, script: bool) -> dict[str, Any]:
    code = (TEMPLATES / "board.js").read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return {"script": Markup(code), "script_source": f"'sha256-{digest}'" if script else "'none'"}


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("harness.reporting.leaderboard"), jinja2.PackageLoader("harness.reporting")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# --- what is said of a page ---------------------------------------------------------------------------------


def _counts(pages: Sequence[Page]) -> list[tuple[str, str]]:
    boards = [board for page in pages for board in page.boards]
    runs = sum(len(row.entries) for board in boards for row in board.rows)
    return [
        ("runs verified", f.whole(runs)),
        ("rows ranked", f.whole(sum(len(board.ranked) for board in boards))),
        ("runs refused", f.whole(sum(len(page.refused) for page in pages))),
    ]


def _card(page: Page) -> dict[str, Any]:
    best = [
        {
            "board": shown(board.name) if len(page.boards) > 1 else "",
            "budget": _budget(row.budget),
            "policy": row.policy,
            "loss": _with_interval(row.loss),
        }
        for board in page.boards
        for row in board.ranked
        if row.rank == 1
    ]
    violated = sum(row.verdict == "violated" for board in page.boards for row in board.rows)
    return {
        "name": page.name,
        "file": file_of(page),
        "kind": "suite" if page.suite else "",
        "best": best[:6],
        "more": max(len(best) - 6, 0),
        "counts": _counts([page]),
        "violated": violated,
        "about": "" if page.name != OTHER else "Runs that no suite lists, by data set.",
    }


def _budgets(page: Page) -> list[str]:
    found = sorted({row.budget for board in page.boards for row in board.rows if row.budget is not None})
    return [f"{budget:g}" for budget in found]


# --- what is said of a table --------------------------------------------------------------------------------


def _board(board: Board, place: int, page: Page) -> dict[str, Any]:
    paint = drawing.colors(board)

    def shown_row(row: Row, color: str) -> dict[str, Any]:
        found = _row(row, color)
        # Outside suites several rows may have one name: the folder tells them apart.
        return found if page.suite else {**found, "notes": [row.entries[0].folder, *found["notes"]]}

    groups = list(dict.fromkeys(g.name for row in board.ranked for g in row.groups))
    return {
        "name": shown(board.name),
        "id": f"board-{place}",
        "notes": board.notes,
        "columns": COLUMNS,
        "later": COLUMNS[1:],
        "open": [column for column in COLUMNS if column[0] in OPEN],
        "ranked": [shown_row(row, paint.get(row.policy, "muted")) for row in board.ranked],
        "unranked": [shown_row(row, paint.get(row.policy, "muted")) for row in board.unranked],
        "unprotected": [shown_row(row, "ordinary") for row in board.unprotected],
        "chart": drawing.utility_chart(f"utility-{place}", board),
        "legend": [
            {"name": name, "color": paint[name]} for name in paint if any(r.policy == name for r in board.ranked)
        ],
        "panels": drawing.group_panels(f"group-{place}", board),
        "groups": groups if len(groups) > 1 else [],
        "by_group": [_by_group(row, groups, paint.get(row.policy, "muted")) for row in board.ranked],
        "has_lines": any(row.loss is not None for row in board.unprotected),
    }


def _row(row: Row, color: str) -> dict[str, Any]:
    audit = VERDICTS.get(row.verdict or "", "")
    cells: dict[str, Cell] = {
        "rank": _cell("" if row.rank is None else str(row.rank), row.rank, "≈ best" if row.tied else ""),
        "budget": _cell(_budget(row.budget), row.budget),
        "loss": _cell(
            f.loss(row.loss.mean if row.loss else None), row.loss.mean if row.loss else None, _half(row.loss)
        ),
        "gain": _cell(_signed(row.gain), row.gain),
        "share": _cell(f.percent(row.share), row.share),
        "claimed": _cell(f.epsilon(row.claimed) if row.private else "∞", row.claimed),
        "recomputed": _cell(f.epsilon(row.recomputed) if row.private else "∞", row.recomputed),
        "audited": _cell(f.MISSING if row.audited is None else f"≥ {_down(row.audited)}", row.audited, audit),
        "gap": _cell(f.significant(row.gap, 2), row.gap),
    }
    return {
        "policy": row.policy,
        "color": color,
        "budget": "" if row.budget is None else f"{row.budget:g}",
        "cells": cells,
        "notes": [note for note in row.notes if note != "one seed: no interval"],
        "alarm": row.unranked if row.verdict == "violated" else "",
        "reason": row.unranked if row.verdict != "violated" else "",
        "runs": [_run(entry) for entry in row.entries],
        "delta": f.delta(row.delta) if row.private else "",
        "differs": "claims more than its mechanism gives" in row.notes,
    }


def _by_group(row: Row, groups: Sequence[str], color: str) -> dict[str, Any]:
    by_name = {g.name: g for g in row.groups}
    cells = []
    for name in groups:
        group = by_name.get(name)
        loss = group.loss if group is not None else None
        claimed = group.claimed if group is not None else None
        text = f"ε {f.epsilon(claimed)}" if claimed is not None else "ε not claimed" if group is not None else ""
        cells.append(_cell(_with_interval(loss), loss.mean if loss else None, text) | {"head": name})
    return {"policy": row.policy, "budget": _budget(row.budget), "value": row.budget, "color": color, "cells": cells}


def _run(entry: Entry) -> dict[str, Any]:
    losses, run = entry.summary.overall, entry.run
    seed = "" if entry.place.seed is None else f"seed {entry.place.seed}"
    return {
        "name": seed or entry.folder,
        "folder": entry.folder,
        "loss": f.loss(losses.trained_loss),
        "claimed": f.epsilon(run.claimed) if run.private else "",
        "recomputed": f.epsilon(run.recomputed.total) if run.recomputed is not None else "",
        "report": f"{folder_of(entry)}/report.html",
        "spec": f"{folder_of(entry)}/spec.yaml",
    }


def _cell(text: str, value: float | None, note: str = "") -> Cell:
    return {"text": text, "value": "" if value is None else repr(float(value)), "note": note}


def _budget(value: float | None) -> str:
    return f.MISSING if value is None else f"ε {f.significant(value)}"


def _half(value: Mean | None) -> str:
    if value is None:
        return ""
    return "one seed" if value.half is None else f"± {half_text(value.half)}"


def _with_interval(value: Mean | None) -> str:
    if value is None:
        return f.MISSING
    return f.loss(value.mean) + ("" if value.half is None else f" ± {half_text(value.half)}")


def _signed(value: float | None) -> str:
    return f.MISSING if value is None else f"{'+' if value >= 0 else '−'}{abs(value):.3f}"


def _down(value: float) -> str:
    """A lower bound, never rounded up."""
    return f"{int(value * 100) / 100:.2f}"
