"""``uudp leaderboard``: builds the static leaderboard from folders of runs, or verifies what is to be submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import console


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="run folders, or what they lie below")],
    out: Annotated[Path, typer.Option("--out", help="the site; an earlier one is replaced")] = Path("site"),
    check: Annotated[bool, typer.Option("--check", help="only verify: a line per run, and no site")] = False,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="SUITE", help="print a suite's table, and make no site")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Build the leaderboard, recomputing every ε.

    Reads the released files of every run below DIR and results.jsonl of suites, never private/. What does not follow
    from a run's own mechanism, or contradicts itself, is shown as refused. --check verifies run folders as they would
    be submitted.
    """
    from harness.errors import ArgumentError
    from harness.reporting.leaderboard.document import markdown as table
    from harness.reporting.leaderboard.gathering import gather, is_refuted
    from harness.reporting.leaderboard.site import check_place, render_site, write_site

    if check:
        if markdown is not None:
            raise ArgumentError("--check makes no table: leave out --markdown")
        raise typer.Exit(_check(folders, json=json))
    if markdown is not None:
        if json:
            raise ArgumentError("--markdown and --json: one of them")
        console.out(table(gather(folders), markdown))
        return
    check_place(out)
    found = gather(folders)
    if not found.pages and out.exists() and any(out.iterdir()):
        raise ArgumentError(f"there is no run in {', '.join(map(str, folders))}; {out} is left as it is")
    texts, document = render_site(found)
    path = write_site(out, texts)
    for refusal in found.refused:
        console.error(f"refused: {refusal.run}: {refusal.reason}")
    for refuted in (e for page in found.pages for e in page.entries if is_refuted(e.run)):
        console.error(f"AUDIT FAILED: {refuted.folder}: not ranked")
    for problem in document["problems"]:
        console.error(f"no result: {problem}")
    if json:
        console.emit_json(document)
        return
    runs = sum(len(page.entries) for page in found.pages)
    console.out(f"leaderboard: {path} ({runs} runs verified, {len(found.refused)} refused)")


def _check(folders: list[Path], *, json: bool) -> int:
    """One line per run; 0 where all of them may be submitted, else 2."""
    from harness.errors import ArgumentError
    from harness.reporting.leaderboard.gathering import check

    checks = check(folders)
    if not checks:
        raise ArgumentError(f"there is no run in {', '.join(map(str, folders))}")
    if json:
        runs = [{"run": c.run, "ok": not c.reason, "private": c.private, "reason": c.reason or None} for c in checks]
        console.emit_json({"runs": runs})
    else:
        for one in checks:
            told = (
                f"refused: {one.reason}" if one.reason else "ok" if one.private else "ok, but NOT PRIVATE: not ranked"
            )
            console.out(f"{one.run}: {told}")
    return 2 if any(one.reason for one in checks) else 0
