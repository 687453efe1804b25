"""Everything that the site shows, as plain data: ``leaderboard.json``, and a suite's table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.errors import ArgumentError
from harness.plugins import suggest
from harness.reporting import formatting as f
from harness.reporting.leaderboard.files import shown
from harness.reporting.leaderboard.gathering import Leaderboard, Page
from harness.reporting.leaderboard.pages import file_of, folder_of
from harness.reporting.leaderboard.ranking import Board, Entry, GroupResult, Mean, Row, half_text

VERSION = 1
HEADS = ("#", "policy", "budget", "hold-out loss", "gain", "of non-private gain", "ε claimed", "recomputed", "audited")


def document(leaderboard: Leaderboard) -> dict[str, Any]:
    """Plain data; the same runs give the same document."""
    return {
        "version": VERSION,
        "pages": [
            {
                "name": page.name,
                "suite": page.suite,
                "page": file_of(page),
                "boards": [_board(board) for board in page.boards],
                "refused": [{"run": r.run, "cell": r.what, "reason": r.reason} for r in page.refused],
            }
            for page in leaderboard.pages
        ],
        "problems": [shown(problem, 300) for problem in leaderboard.problems],
    }


def _board(board: Board) -> dict[str, Any]:
    return {
        "data": shown(board.name),
        "notes": list(board.notes),
        "ranked": [_row(row) for row in board.ranked],
        "unranked": [_row(row) for row in board.unranked],
        "not_private": [_row(row) for row in board.unprotected],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "overlaps_best": row.tied,
        "policy": row.policy,
        "budget": row.budget,
        "private": row.private,
        "reason": row.unranked or None,
        "loss": _mean(row.loss),
        "base_loss": row.base,
        "gain": row.gain,
        "share_of_ordinary_gain": row.share,
        "epsilon": {"claimed": row.claimed, "recomputed": row.recomputed, "audited": row.audited},
        "audit": row.verdict,
        "delta": row.delta,
        "utility_gap": row.gap,
        "groups": [_group(group) for group in row.groups],
        "notes": list(row.notes),
        "runs": [_entry(entry) for entry in row.entries],
    }


def _group(group: GroupResult) -> dict[str, Any]:
    epsilon = {"claimed": group.claimed, "recomputed": group.recomputed}
    return {"name": group.name, "epsilon": epsilon, "loss": _mean(group.loss), "gain": group.gain}


def _entry(entry: Entry) -> dict[str, Any]:
    run, losses = entry.run, entry.summary.overall
    found = None if run.recomputed is None else run.recomputed.total
    return {
        "id": run.files.id,
        "folder": entry.folder,
        "seed": entry.place.seed,
        "mechanism_digest": run.mechanism.digest,
        "epsilon": {"claimed": run.claimed, "recomputed": found},
        "loss": losses.trained_loss,
        "base_loss": losses.base_loss,
        "report": f"{folder_of(entry)}/report.html",
        "spec": f"{folder_of(entry)}/spec.yaml",
    }


def _mean(value: Mean | None) -> dict[str, Any] | None:
    return None if value is None else {"mean": value.mean, "half_interval": value.half, "seeds": value.count}


# --- markdown -----------------------------------------------------------------------------------------------


def markdown(leaderboard: Leaderboard, name: str) -> str:
    """A page's ranked rows, and below them those without privacy, as Markdown tables.

    Args:
        leaderboard: Everything.
        name: Of a suite.

    Raises:
        ArgumentError: There is no such suite.
    """
    names = [page.name for page in leaderboard.pages]
    page = next((page for page in leaderboard.pages if page.name == name), None)
    if page is None:
        near = suggest(name, names)
        told = f'; did you mean "{near}"?' if near else f"; there is {', '.join(names)}" if names else ""
        raise ArgumentError(f'there is no suite "{shown(name, 60)}"{told}')
    return "\n".join(_tables(page))


def _tables(page: Page) -> list[str]:
    lines: list[str] = []
    for board in page.boards:
        if len(page.boards) > 1:
            lines += [f"**{_plain(shown(board.name))}**", ""]
        lines += [_line(HEADS), _line(["---:", "---", *(["---:"] * (len(HEADS) - 2))])]
        lines += [_line(_cells(row)) for row in (*board.ranked, *board.unprotected)]
        violated = [row for row in board.unranked if row.verdict == "violated"]
        lines += ["", *(f"**Audit violated**, not ranked: {_plain(row.policy)}." for row in violated)]
    if page.refused:
        lines += [f"{len(page.refused)} run(s) refused."]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    loss = f.MISSING
    if row.loss is not None:
        half = "(one seed)" if row.loss.half is None else f"± {half_text(row.loss.half)}"
        loss = f"{f.loss(row.loss.mean)} {half}"
    audited = f.MISSING
    if row.audited is not None:
        # A lower bound is never rounded up.
        audited = f"≥ {int(row.audited * 100) / 100:.2f} ({row.verdict or 'no verdict'})"
    return [
        f.MISSING if row.rank is None else f"{row.rank}{' ≈' if row.tied else ''}",
        _plain(row.policy),
        f.MISSING if row.budget is None else f"{row.budget:g}",
        loss,
        f.significant(row.gain, 3),
        f.percent(row.share),
        f.epsilon(row.claimed) if row.private else "∞",
        f.epsilon(row.recomputed) if row.private else "∞",
        audited,
    ]


def _plain(text: str) -> str:
    """A text that Markdown takes for nothing but text."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~$" else c for c in text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
