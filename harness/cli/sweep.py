"""``uudp sweep``: search hyperparameters inside the budget, and train the best."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console
from harness.cli.run import SUBMITTED, check_installed, confirm, lines_console, outcome, sigterm_as_ctrl_c
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.planning import Plan
    from harness.running import RunResult
    from harness.sweeping.costing import SweepPlan

SHOWN = 10
"""Candidates of a predicted search."""


def sweep(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="a file, or a packaged spec's name", autocompletion=completion.specs)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="replace values of the spec: train.steps=50")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the newest unfinished sweep of this spec")
    ] = False,
    which: Annotated[
        str | None,
        typer.Option("--run", metavar="ID", help="with --resume: go on with this one", autocompletion=completion.runs),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask; required where there is no terminal")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="show what the search would cost, and stop there")] = False,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    new: Annotated[str | None, typer.Option("--id", hidden=True, help="of a submitted sweep, its id")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Search the spec's sweep.space within its budget, and keep the best.

    The whole search costs at most privacy.epsilon: that is reserved once, before the first trial. What is released is
    one run, in runs/NAME/ID, whose guarantee is that of the whole search. search.type: predicted trains nothing to
    choose. Ctrl-C stops with checkpoints and prints the command that goes on.
    """
    from harness.errors import ArgumentError

    if which is not None and not resume:
        raise ArgumentError("--run: names the sweep to go on with; say --resume as well")
    from harness.sweeping.costing import plan_sweep

    if plan:
        _show_plan(plan_sweep(spec, overrides or []), json)
        return
    check_installed()
    with sigterm_as_ctrl_c():
        try:
            found = _planned(spec, overrides or [], out)
            result, more = _sweep(found, resume, which or new, yes, out)
        except UserError as stopped:
            if stopped.run_id is not None and SUBMITTED not in os.environ:
                command = _resume_command(spec, overrides or [], stopped.run_id, yes, out)
                stopped.args = (f"{stopped}\ngo on with: {command}",)
            raise
    if json:
        report = str(result.report) if result.report else None
        console.emit_json({"run": str(result.folder), "report": report, "summary": result.summary, **more})
        return
    for line in outcome(result.summary):
        console.out(line)
    for key, value in more["winner"].items():
        console.out(f"best {key}: {value}")
    console.out(f"report: {result.report}" if result.report else f"run: {result.folder}")


def _planned(spec: str, overrides: Sequence[str], out: Path) -> SweepPlan:
    """The plan, after what killed runs of this name had reserved is given back.

    Raises:
        ModuleNotFoundError: What suggests candidates is not installed.
    """
    from importlib.util import find_spec

    from harness.running.spending import give_back_unbegun
    from harness.spec import load_spec
    from harness.sweeping.costing import plan_sweep

    loaded = load_spec(spec, overrides)
    if loaded.spec.sweep is not None and loaded.spec.sweep.search.type == "optuna" and find_spec("optuna") is None:
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
    give_back_unbegun(loaded, out, lines_console())
    return plan_sweep(spec, overrides)


def _show_plan(found: SweepPlan, json: bool) -> None:
    from harness.sweeping.document import document

    if json:
        console.emit_json(document(found))
    else:
        for line in lines(document(found)):
            console.out(line)
    _check_fits(found)


def _check_fits(found: SweepPlan) -> None:
    """Refuses a sweep with a candidate that this machine's memory does not hold.

    Raises:
        MachineError: There is one.
    """
    from harness.errors import MachineError

    memory = found.untuned.memory
    predicted = found.block.search.type == "predicted"  # which trains but one, and not one that does not fit
    if not predicted and memory is not None and memory.refusal is not None:
        raise MachineError(memory.refusal)


def _sweep(found: SweepPlan, resume: bool, which: str | None, yes: bool, out: Path) -> tuple[RunResult, dict[str, Any]]:
    from harness.cli.plan import describe
    from harness.errors import BudgetError
    from harness.sweeping.document import document
    from harness.sweeping.flow import sweep as execute_sweep

    observer = lines_console()
    for line in describe((found.untuned if found.proxy else found.plan).document()):
        console.err(line)
    console.err()
    for line in lines(document(found)):
        console.err(line)
    console.err()
    plan = found.untuned if found.proxy else found.plan
    if not resume and plan.ledger is not None and plan.ledger.refusal is not None:
        raise BudgetError(plan.ledger.refusal)
    if not resume:  # a resumed one may need less
        _check_fits(found)
    if found.proxy:
        return _by_proxy(found, resume, which, yes, out)
    if found.trials is None:
        return _predicted(found, resume, which, yes, out)
    confirm(yes)
    if resume and plan.ledger is not None:
        found = replace(found, plan=replace(plan, ledger=replace(plan.ledger, refusal=None)))
    result = execute_sweep(found, out=out, resume=resume, run_id=which, observer=observer)
    return result, {"winner": _winner(result.folder)}


def _winner(folder: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())["winner"]["candidate"]
    return found


def _predicted(
    found: SweepPlan, resume: bool, which: str | None, yes: bool, out: Path
) -> tuple[RunResult, dict[str, Any]]:
    from harness.planning import make_plan
    from harness.sweeping.document import predicted_document
    from harness.sweeping.predicting import rank

    ranked = rank(found)
    by = found.block.search.by or "worst"
    console.err(f"{len(ranked)} candidates by predicted noise to signal ({by} first)")
    for one in ranked[:SHOWN]:
        values = " ".join(one.candidate.overrides) or "(as it is written)"
        figure = f"{one.by(by):.4g}" if not one.reason else "-"
        console.err(f"  {figure:>10}  {values}  {one.reason}".rstrip())
    confirm(yes)
    best = ranked[0].candidate
    plan = make_plan(found.load(best))
    result = _trained(plan, resume, which, out, predicted_document(found, ranked))
    return result, {"winner": best.document(), "candidates": [one.document() for one in ranked[:SHOWN]]}


def _by_proxy(
    found: SweepPlan, resume: bool, which: str | None, yes: bool, out: Path
) -> tuple[RunResult, dict[str, Any]]:
    from harness.planning import make_plan
    from harness.running.folders import is_begun
    from harness.sweeping.document import released_document
    from harness.sweeping.flow import search_by_proxy

    confirm(yes)
    best, outcomes = search_by_proxy(found, out=out, resume=resume, observer=lines_console())
    plan = make_plan(found.load(best))
    winner = next(one for one in outcomes if one.candidate == best.document() and one.status == "finished")
    # Interrupted before the winner's own run, there is none to go on with.
    begun = which is not None or is_begun(plan, out)
    result = _trained(plan, resume, which, out, released_document(found, winner, outcomes), begun=begun)
    return result, {"winner": best.document()}


def _trained(
    plan: Plan, resume: bool, which: str | None, out: Path, searched: dict[str, Any], *, begun: bool = True
) -> RunResult:
    """Trains the best candidate, and leaves beside it how it was found: also where a kill came in between.

    Args:
        plan: Of the best candidate.
        resume: Whether the command is to go on.
        which: With which run.
        out: Where runs are kept.
        searched: What is released of the search.
        begun: Whether there is a run to go on with.
    """
    from harness.files import as_json, write_released
    from harness.reporting.report import write_report
    from harness.reporting.summary import summarize
    from harness.running import RunResult
    from harness.running import run as execute
    from harness.running.folders import finished_last

    done = finished_last(plan, out, which) if resume else None
    if done is not None:
        page = done / "report.html"
        result = RunResult(done, summarize(done), page if page.exists() else None)
    else:
        result = execute(plan, out=out, resume=resume and begun, run_id=which, observer=lines_console())
    write_released(result.folder / "sweep.json", as_json(searched))
    if result.report is not None:
        write_report(result.folder)
    return result


def lines(document: dict[str, Any]) -> list[str]:
    """What the search costs, for a console."""
    if document["proxy"]:
        return ["search: trials are trained on a public data set, and cost nothing; only the best on the users' data"]
    if not document["charged"]:
        return ["search: trains nothing on the users' data to choose, and costs nothing"]
    text = f"search: {document['in_words']}; ε = {document['epsilon']:.4g} in all, whichever wins"
    found = textwrap.wrap(text, 80, subsequent_indent="  ")
    found.append("noise multiplier that is left for each trial, at the same ε in all:")
    for price in document["prices"]:
        value = "no noise is enough" if price["noise_multiplier"] is None else f"{price['noise_multiplier']:.4g}"
        found.append(f"  {'→' if price['own'] else ' '} {price['name']:<58} {value}")
    if document["search"]["type"] == "asha":
        found.append("  stopping trials early saves time, and no privacy: all steps of all trials are charged")
    return found


def _resume_command(spec: str, overrides: Sequence[str], run_id: str, yes: bool, out: Path) -> str:
    words = ["uudp", "sweep", spec, *overrides, "--resume", "--run", run_id]
    words += ["--yes"] * yes + ["--out", str(out)] * (out != Path("runs"))
    return shlex.join(words)
