"""``uudp bench``: a leaderboard suite: policies × budgets × seeds."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console
from harness.cli.run import SUBMITTED, check_installed, confirm, lines_console, sigterm_as_ctrl_c
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.benchmarking.cells import Cell
    from harness.benchmarking.flow import BenchResult
    from harness.benchmarking.planning import SuitePlan

WIDTH = 80


def bench(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="a file, or a packaged suite's name", autocompletion=completion.suites),
    ],
    only: Annotated[
        str | None, typer.Option("--only", metavar="PATTERN", help='cells by name: "*-scale-e8-*"; the others wait')
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the suite that was begun in the same folder")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask; required where there is no terminal")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="show the cells and what they cost, and stop there")] = False,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Train every policy of a suite at every budget with every seed.

    All cells are planned before any of them trains. Each is a run of its own, in OUT/SUITE/CELL/ID, with a row of its
    own in the ledger: on one data set, they add up. OUT/SUITE/results.jsonl gets a line for each cell that finishes;
    a cell that fails stops no other. Ctrl-C stops with checkpoints and prints the command that goes on; a suite that
    is gone on with may have more cells than before, and the same otherwise.
    """
    from harness.benchmarking.planning import chosen, plan_suite

    if not plan:
        check_installed()
    with sigterm_as_ctrl_c():
        found = plan_suite(suite)
        cells = chosen(found, only)
        if plan:
            _show(found, cells, out, json)
            return
        try:
            result = _bench(found, cells, resume, yes, out)
        except UserError as stopped:
            if stopped.run_id is not None and SUBMITTED not in os.environ:
                stopped.args = (f"{stopped}\ngo on with: {_resume_command(suite, only, yes, out)}",)
            raise
    failed = [cell for cell in result.cells if cell["status"] == "failed"]
    if json:
        console.emit_json({**asdict(result), "folder": str(result.folder)})
    else:
        for line in _outcome(result):
            console.out(line)
    if failed:
        raise typer.Exit(1)


def _bench(found: SuitePlan, cells: tuple[Cell, ...], resume: bool, yes: bool, out: Path) -> BenchResult:
    from harness.benchmarking.flow import bench as execute
    from harness.benchmarking.flow import reserved, suite_folder
    from harness.benchmarking.planning import refusal
    from harness.benchmarking.results import check_begun
    from harness.errors import BudgetError

    check_begun(suite_folder(found, out).root, resume=resume)
    for line in lines(found, cells, out):
        console.err(line)
    console.err()
    begun = reserved(found, cells, out) if resume else set()
    if begun:
        console.err(f"charged before, and not again: {_counted(len(begun), 'cell')} of these")
        console.err()
    if (refused := refusal(found, tuple(cell for cell in cells if cell.name not in begun))) is not None:
        raise BudgetError(refused)
    confirm(yes)
    return execute(found, cells, out=out, resume=resume, observer=lines_console())


def _show(found: SuitePlan, cells: tuple[Cell, ...], out: Path, json: bool) -> None:
    if json:
        console.emit_json(found.document(cells) | {"seconds": _seconds(found, cells, out)})
        return
    for line in lines(found, cells, out):
        console.out(line)


def lines(found: SuitePlan, cells: tuple[Cell, ...], out: Path) -> list[str]:
    """What a suite is, and what it costs, for a console, in at most `WIDTH` columns."""
    document = found.document(cells)
    seeds: dict[tuple[str, str, Any], list[int]] = {}
    rows: dict[tuple[str, str, Any], Mapping[str, Any]] = {}
    for cell in document["cells"]:
        key = (cell["data"], cell["policy"], cell["budget"])
        seeds.setdefault(key, []).append(cell["seed"])
        rows.setdefault(key, cell)
    several = len({data for data, _, _ in rows}) > 1
    title = console.shortened(document["title"], 200)
    text = _wrapped(f"suite: {title}: {_counted(len(cells), 'cell')}, {document['steps']} steps in all")
    text.append(f"  {'policy':<30}{'budget':>7}{'ε':>8}  {'seeds':<10}ε by group")
    for (data, policy, budget), cell in rows.items():
        name = f"{policy} ({data})" if several else policy
        epsilon = f"{cell['epsilon']:.4g}" if cell["private"] else "NONE"
        groups = [f"{g['name']} {g['epsilon']:.3g}" for g in cell["groups"]] if cell["private"] else []
        groups += [f"not trained on: {', '.join(cell['dropped'])}"] if cell["dropped"] else []
        numbers = ",".join(map(str, seeds[data, policy, budget]))
        line = f"  {console.shortened(name, 29):<30}{'-' if budget is None else f'{budget:g}':>7}{epsilon:>8}"
        text += _beside(f"{line}  {console.shortened(numbers, 9):<10}", groups)
    if any(not cell["private"] for cell in document["cells"]):
        text.append("ε NONE: trained without noise, NOT PRIVATE")
    for charge in document["charges"]:
        text += _wrapped(_charged(charge))
    seconds = _seconds(found, cells, out)
    text += _wrapped(
        "time: not known before a first cell has finished"
        if seconds is None
        else f"time: about {max(1, round(seconds / 60))} min of training in all, by cells that have finished; cells "
        "side by side take less"
    )
    return text


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _beside(line: str, parts: Sequence[str]) -> list[str]:
    """Lines that go on with these parts, below each other where they don't fit; none of them is broken if it fits."""
    room = WIDTH - len(line)
    lines = [""]
    for part in (piece for whole in parts for piece in textwrap.wrap(whole, room, break_on_hyphens=False)):
        longer = f"{lines[-1]}  {part}" if lines[-1] else part
        lines = [*lines[:-1], longer] if len(longer) <= room else [*lines, part]
    return [((" " * len(line) if i else line) + one).rstrip() for i, one in enumerate(lines)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _charged(charge: Mapping[str, Any]) -> str:
    own = charge["cells"] - charge["without_privacy"]
    sums = f"ε = {charge['epsilon']:.4g} and δ = {charge['delta']:.3g} in sum for {_counted(own, 'private cell')}"
    if charge["ledger"] is None:
        return f'charged to no ledger: "{charge["data_set"]}": {sums}'
    account = charge["account"]
    left = (
        "no budget is set" if account["remaining_epsilon"] is None else f"ε = {account['remaining_epsilon']:.4g} left"
    )
    return f'charged to the ledger: "{charge["data_set"]}" ({left}): {sums}'


def _seconds(found: SuitePlan, cells: tuple[Cell, ...], out: Path) -> float | None:
    """What the cells would take, by those of this suite that have finished on public data; None: none has."""
    from harness.benchmarking.flow import suite_folder
    from harness.benchmarking.results import RESULTS, times

    known = times(suite_folder(found, out).root / RESULTS)
    if not known:
        return None
    steps = sum(found.plans[cell.name].mechanism.steps for cell in cells)
    return float(steps * sum(seconds for seconds, _ in known) / sum(count for _, count in known))


def _outcome(result: BenchResult) -> list[str]:
    by_status = [str(cell["status"]) for cell in result.cells]
    text = [f"{by_status.count('finished')} of {len(by_status)} cells finished"]
    text += [f"failed: {cell['name']}: {cell['reason']}" for cell in result.cells if cell["status"] == "failed"]
    return [*text, f"results: {result.folder / 'results.jsonl'}"]


def _resume_command(suite: str, only: str | None, yes: bool, out: Path) -> str:
    words = ["uudp", "bench", suite, "--resume"]
    words += ["--only", only] if only is not None else []
    words += ["--yes"] * yes + ["--out", str(out)] * (out != Path("runs"))
    return shlex.join(words)
