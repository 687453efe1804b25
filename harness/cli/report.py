"""``uudp report``: writes a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import completion, console


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="a run's folder, or its id, or the beginning of one", autocompletion=completion.runs
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Write the report of a run again.

    From the run's own files; nothing is computed anew, and nothing is read of the data.
    """
    from harness.errors import ArgumentError
    from harness.reporting.comparing import are_public_trials
    from harness.reporting.records import read_run
    from harness.reporting.report import write_report
    from harness.reporting.summary import summarize

    folder = find_run(run, out)
    if are_public_trials(read_run(folder)):
        raise ArgumentError(f"{folder} holds trials on public data, and no run: the run that they led to has a report")
    path = write_report(folder)
    if json:
        console.emit_json({"run": str(folder), "report": str(path), "summary": summarize(folder)})
    else:
        console.out(f"report: {path}")


def find_run(name: str, out: Path) -> Path:
    """The folder that a user means by a path or an id (or its unambiguous beginning).

    Raises:
        ArgumentError: There is none, or several.
    """
    from harness.errors import ArgumentError
    from harness.plugins import suggest
    from harness.reporting.comparing import run_files
    from harness.spec.problems import one_line

    path = Path(name)
    try:
        if (path / "plan.json").exists():
            return path.absolute()
    except (OSError, ValueError):  # no name that a file can have
        raise ArgumentError(f'there is no run "{one_line(name)[:60]}…" in {out}') from None
    found = {p.parent.name: p.parent for p in run_files(out, "plan.json")}
    hits = [p for run_id, p in found.items() if run_id.startswith(name)]
    if len(hits) == 1:
        return hits[0].absolute()
    if hits:
        raise ArgumentError(f'several runs begin with "{name}": {", ".join(sorted(p.name for p in hits))}')
    near = suggest(name, found)
    raise ArgumentError(f'there is no run "{name}" in {out}' + (f'; did you mean "{near}"?' if near else ""))
