"""``uudp runs``: the runs of a folder, and two of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import completion, console


def runs(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="list|compare A B",
            help="A, B: a run's folder, or its id, or the beginning of one",
            autocompletion=completion.runs_words,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """List runs, or compare two of them.

    The list shows the guarantee and the hold-out loss (nats per token) of each. A comparison shows two runs' losses
    by group, and where their specs differ.
    """
    from harness.cli.report import find_run
    from harness.errors import ArgumentError
    from harness.plugins import suggest
    from harness.reporting.comparing import compare, list_runs

    action, *names = what or ["list"]
    if action == "list" and not names:
        found = [asdict(run) for run in list_runs(out)]
        document, lines = {"runs": found}, _table(found) if found else [f"no runs in {out}"]
    elif action == "compare" and len(names) == 2:
        document = compare(find_run(names[0], out), find_run(names[1], out))
        lines = _side_by_side(document)
    elif action in ("list", "compare"):
        raise ArgumentError("runs compare needs two runs" if action == "compare" else "runs list takes no arguments")
    else:
        near = suggest(action, ("list", "compare"))
        raise ArgumentError(
            f'runs knows list and compare, not "{action}"' + (f'; did you mean "{near}"?' if near else "")
        )
    if json:
        console.emit_json(document)
        return
    for line in lines:
        console.out(line)


def _table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"{'run (begun, UTC)':<23}{'name':<20}{'ε':>7}{'δ':>9}{'loss':>8}  status"]
    for run in runs:
        name = console.shortened(run["name"], 19)
        epsilon = f"{run['epsilon']:.3g}" if run["private"] else "public" if run["public_trials"] else "NONE"
        lines.append(
            f"{run['id']:<23}{name:<20}{epsilon:>7}{_number(run['delta'], '.1e'):>9}{_number(run['loss'], '.4f'):>8}"
            f"  {run['status']}"
        )
    if any(run["public_trials"] for run in runs):
        lines.append("ε public: trials of a search on public data, of which nothing is claimed")
    if any(not run["private"] and not run["public_trials"] and run["status"] != "damaged" for run in runs):
        lines.append("ε NONE: trained without noise, NOT PRIVATE")
    return lines


def _side_by_side(document: Mapping[str, Any]) -> list[str]:
    first, second = document["runs"]

    def row(head: str, a: str, b: str) -> str:
        return f"{console.shortened(head, 31):<32}{console.shortened(a, 23):<24}{console.shortened(b, 23)}".rstrip()

    def claim(run: Mapping[str, Any]) -> str:
        if run["public_trials"]:
            return "public trials"
        return f"{run['epsilon']:.4g}" if run["private"] else "NONE: NOT PRIVATE"

    lines = [row("", first["id"], second["id"])]
    lines += [row(key, str(first[key]), str(second[key])) for key in ("name", "status")]
    lines += [
        row("ε", claim(first), claim(second)),
        row("δ", _number(first["delta"], ".2e"), _number(second["delta"], ".2e")),
    ]
    if first["verdict"] or second["verdict"]:
        lines.append(row("ε measured, at least", _audited(first), _audited(second)))
    lines += [
        "",
        "hold-out loss, base → trained (nats per token)",
    ]
    lines += [row(f"  {g['group']}", _change(g["first"]), _change(g["second"])) for g in document["losses"]]
    lines += ["", "differences of the specs" if document["differences"] else "the specs do not differ"]
    return lines + [row(f"  {d['key']}", _value(d["first"]), _value(d["second"])) for d in document["differences"]]


def _audited(run: Mapping[str, Any]) -> str:
    told = "VIOLATED" if run["verdict"] == "violated" else run["verdict"]
    return f"{_number(run['audited'], '.3g')} ({told})" if run["verdict"] else "-"


def _change(losses: Mapping[str, float | None]) -> str:
    return f"{_number(losses['base'], '.4f')} → {_number(losses['trained'], '.4f')}"


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
