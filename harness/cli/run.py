"""``uudp run``: plan, show what will be spent and ask, train, evaluate, report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.running import Observer


def run(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="spec file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the newest unfinished run")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
    not_private: Annotated[bool, typer.Option("--not-private", help="consent to noise.type: none")] = False,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Train under the plan, evaluate and report."""
    from harness.cli.plan import describe
    from harness.planning import make_plan
    from harness.running import run as execute
    from harness.spec import load_spec

    loaded = load_spec(spec, overrides or [])
    plan = make_plan(loaded)
    for line in describe(plan.document()):
        console.err(line)
    console.err()
    _ask(yes)
    result = execute(plan, out=out, resume=resume, not_private=not_private, observer=_console())
    if json:
        report = str(result.report) if result.report else None
        console.emit_json({"run": str(result.folder), "report": report, "summary": result.summary})
        return
    for line in _outcome(result.summary):
        console.out(line)
    console.out(f"adapter: {result.folder / 'adapter'}")
    console.out(f"report: {result.report}" if result.report else f"run: {result.folder}")


def _ask(yes: bool) -> None:
    from harness.errors import ArgumentError

    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ArgumentError("this would spend what the plan says; without a terminal, --yes is required")
    if not typer.confirm("Spend this and train?", err=True):
        raise ArgumentError("nothing was spent")


def _outcome(summary: Mapping[str, Any]) -> list[str]:
    if not summary["evaluated"]:
        return ["no hold-out users: nothing was evaluated"]
    lines = [f"hold-out loss (nats per token): base {summary['base_loss']:.4f}, trained {summary['trained_loss']:.4f}"]
    if summary["ordinary_loss"] is not None:
        lines[0] += f", ordinary {summary['ordinary_loss']:.4f}"
    if summary["share_kept"] is not None:
        lines.append(f"share of the ordinary gain that privacy kept: {summary['share_kept']:.2f}")
    return lines


def _console() -> Observer:
    """Plain lines for a log; on a terminal, a progress bar as well."""
    from harness.running import Observer, Progress

    class Lines(Observer):
        def note(self, text: str) -> None:
            console.err(text)

        def released(self, row: dict[str, Any]) -> None:
            text = f"{row['series']} step {row['step']}"
            if row.get("epsilon") is not None:
                text += f": ε spent {row['epsilon']:.3f}"
            if row.get("eval/loss") is not None:
                text += f", hold-out loss {row['eval/loss']:.4f}"
            console.err(text)

    if not sys.stderr.isatty():
        return Lines()

    class Bar(Lines):
        """Time left is rounded to minutes, and goes to a terminal only: how long a step takes is private."""

        def __init__(self) -> None:
            self.start: tuple[str, int, float] | None = None

        def note(self, text: str) -> None:
            self._clear()
            super().note(text)

        def released(self, row: dict[str, Any]) -> None:
            self._clear()
            super().released(row)

        def progress(self, progress: Progress) -> None:
            now = time.monotonic()
            if self.start is None or self.start[0] != progress.series:
                self.start = (progress.series, progress.step, now)
            done, left = progress.step - self.start[1], progress.steps - progress.step
            text = f"{progress.series} step {progress.step}/{progress.steps}"
            if progress.epsilon is not None:
                text += f", ε spent {progress.epsilon:.2f}"
            if done > 0 and left > 0:
                minutes = round((now - self.start[2]) / done * left / 60)
                text += f", about {minutes} min left" if minutes else ", less than a minute left"
            self._clear()
            width = 20 * progress.step // progress.steps
            sys.stderr.write(f"[{'#' * width}{'.' * (20 - width)}] {text}")
            sys.stderr.flush()

        @staticmethod
        def _clear() -> None:
            sys.stderr.write("\r\x1b[2K")

    return Bar()
