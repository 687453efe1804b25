"""``uudp run``: plan, show what will be spent and ask, train, evaluate, report."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.running import Observer, RunResult

SUBMITTED = "UUDP_SUBMITTED"
"""Set in a submitted job, which is gone on with by whoever submitted it, and not with a command of its own."""


def run(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="a file, or a packaged spec's name", autocompletion=completion.specs)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="replace values of the spec: train.steps=50")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the newest unfinished run of this spec")] = False,
    which: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="with --resume: go on with this one", autocompletion=completion.runs),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask; required where there is no terminal")] = False,
    not_private: Annotated[
        bool, typer.Option("--not-private", help="consent to a spec without noise (noise.type: none)")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    new: Annotated[str | None, typer.Option("--id", hidden=True, help="of a submitted run, its id")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Train under the plan, evaluate and report.

    Shows the plan and asks; then trains on Ray workers, evaluates on the hold-out users and writes the report. All of
    it lies in runs/NAME/ID: the adapter, privacy.json, metrics.jsonl, report.html, and private/, which is never to be
    published. Ctrl-C stops with a checkpoint and prints the command that goes on; a second one stops at once.
    """
    from harness.errors import ArgumentError

    if which is not None and not resume:
        raise ArgumentError("--run: names the run to go on with; say --resume as well")
    check_installed()
    with sigterm_as_ctrl_c():
        try:
            result = _run(spec, overrides or [], resume, which or new, yes, not_private, out)
        except UserError as stopped:
            if stopped.run_id is not None and SUBMITTED not in os.environ:
                command = resume_command(spec, overrides or [], stopped.run_id, yes, not_private, out)
                stopped.args = (f"{stopped}\ngo on with: {command}",)
            raise
    if json:
        report = str(result.report) if result.report else None
        console.emit_json({"run": str(result.folder), "report": report, "summary": result.summary})
        return
    for line in outcome(result.summary):
        console.out(line)
    made = "model" if (result.folder / "model").exists() else "adapter"
    console.out(f"{made}: {result.folder / made}")
    console.out(f"report: {result.report}" if result.report else f"run: {result.folder}")


def check_installed() -> None:
    """Says what is missing before anything is planned or asked.

    Raises:
        ModuleNotFoundError: This is the base install, which trains nothing.
    """
    from importlib.util import find_spec

    for name in ("torch", "transformers", "peft", "deepspeed", "safetensors"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _run(
    spec: str, overrides: Sequence[str], resume: bool, which: str | None, yes: bool, not_private: bool, out: Path
) -> RunResult:
    from harness.cli.plan import describe
    from harness.errors import BudgetError, MachineError
    from harness.planning import make_plan
    from harness.running import run as execute
    from harness.running.spending import give_back_unbegun
    from harness.spec import load_spec

    loaded, observer = load_spec(spec, overrides), lines_console()
    give_back_unbegun(loaded, out, observer)  # before the plan looks at what is left
    plan = make_plan(loaded)
    if resume and plan.ledger is not None:  # it has reserved, and is itself part of what is spent
        plan = replace(plan, ledger=replace(plan.ledger, refusal=None))
    for line in describe(plan.document()):
        console.err(line)
    console.err()
    if plan.ledger is not None and plan.ledger.refusal is not None:
        raise BudgetError(plan.ledger.refusal)
    if plan.memory is not None and plan.memory.refusal is not None and not resume:  # a resumed run may need less
        raise MachineError(plan.memory.refusal)
    confirm(yes)
    return execute(plan, out=out, resume=resume, run_id=which, not_private=not_private, observer=observer)


def resume_command(spec: str, overrides: Sequence[str], run_id: str, yes: bool, not_private: bool, out: Path) -> str:
    """What to type, in the same folder, to go on with an interrupted run."""
    words = ["uudp", "run", spec, *overrides, "--resume", "--run", run_id]
    words += ["--yes"] * yes + ["--not-private"] * not_private + ["--out", str(out)] * (out != Path("runs"))
    return shlex.join(words)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM, with which schedulers and containers end a process, does what Ctrl-C does, from the first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def confirm(yes: bool) -> None:
    """Asks whether to spend what was shown.

    Raises:
        ArgumentError: No, or nobody is there to say so.
    """
    from harness.errors import ArgumentError

    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ArgumentError("this would spend what the plan says; without a terminal, --yes is required")
    if not typer.confirm("Spend this and train?", err=True):
        raise ArgumentError("nothing was spent")


def outcome(summary: Mapping[str, Any]) -> list[str]:
    """What came of a run, for a console."""
    if not summary["evaluated"]:
        return ["no hold-out users: nothing was evaluated"]
    lines = [f"hold-out loss (nats per token): base {summary['base_loss']:.4f}, trained {summary['trained_loss']:.4f}"]
    if summary["ordinary_loss"] is not None:
        lines[0] += f", ordinary {summary['ordinary_loss']:.4f}"
    if summary["share_kept"] is not None:
        lines.append(f"share of the ordinary gain that privacy kept: {summary['share_kept']:.2f}")
    return lines


def lines_console() -> Observer:
    """Lines for a log; on a terminal, a progress bar as well."""
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
            console.err(text, released=row)

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or console.structured():
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
            line = f"[{'#' * width}{'.' * (20 - width)}] {text}"
            # A line that wraps could not be taken back.
            sys.stderr.write(line[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()

        @staticmethod
        def _clear() -> None:
            sys.stderr.write("\r\x1b[2K")

    return Bar()
