"""``uudp ledger``: budgets of data sets, and what runs on them spent."""

from __future__ import annotations

import json as reading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console

if TYPE_CHECKING:
    from harness.privacy.ledger import Account, Ledger, Receipt

ACTIONS = {"budget": "NAME", "show": "[NAME]", "verify": "[RUN…]", "void": "RUN"}


def ledger(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="budget NAME|show [NAME]|verify [RUN…]|void RUN",
            help="NAME: a spec's data.name; RUN: a run's folder or id",
            autocompletion=completion.ledger_words,
        ),
    ] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="budget: ε of all runs together")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="budget: δ of all runs together")] = None,
    order: Annotated[
        float | None, typer.Option("--order", help="budget: the RDP of runs at this one Rényi order adds, not their ε")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="the ledger; left out: UUDP_LEDGER, else ~/.uudp/ledger.db")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Give data sets budgets, and see what runs spent.

    Every run reserves its ε and δ before it reads anything; across runs they add up. Without a budget a data set's runs
    are recorded without a limit. verify finds any edit of the ledger, and of the entries that runs have receipts of.
    void gives back what a run reserved that crashed before a model read private data; all others stay charged.
    """
    from harness.errors import ArgumentError
    from harness.plugins import suggest
    from harness.privacy.ledger import Ledger

    action, *names = what or ["show"]
    if action not in ACTIONS:
        near = suggest(action, ACTIONS)
        raise ArgumentError(
            f'ledger knows {", ".join(ACTIONS)}, not "{action}"' + (f'; did you mean "{near}"?' if near else "")
        )
    least, most = {"budget": (1, 1), "show": (0, 1), "verify": (0, 10_000), "void": (1, 1)}[action]
    if not least <= len(names) <= most:
        raise ArgumentError(f"usage: uudp ledger {action} {ACTIONS[action]}")
    if action != "budget" and (epsilon, delta, order) != (None, None, None):
        raise ArgumentError("--epsilon, --delta and --order belong to: uudp ledger budget NAME")
    books = Ledger(url)
    if action == "budget":
        document, lines = _budget(books, names[0], epsilon, delta, order)
    elif action == "show":
        document, lines = _show(books, names)
    elif action == "verify":
        document, lines = _verify(books, names, out)
    else:
        document, lines = _void(books, names[0])
    if json:
        console.emit_json(document)
        return
    for line in lines:
        console.out(line)


Told = tuple[dict[str, Any], list[str]]
"""A document for programs, and lines for people."""


def _budget(books: Ledger, name: str, epsilon: float | None, delta: float | None, order: float | None) -> Told:
    from harness.errors import ArgumentError

    if epsilon is None or delta is None:
        raise ArgumentError("ledger budget needs --epsilon and --delta")
    books.set_budget(name, epsilon, delta, order)
    account = books.account(name)
    return {"url": books.shown, **account.document()}, _lines(account)


def _show(books: Ledger, names: Sequence[str]) -> Told:
    from harness.errors import ArgumentError
    from harness.plugins import suggest

    found = books.accounts()
    if not names:
        lines = [f"ledger {books.shown}"] + ([""] if found else ["nothing in it yet"])
        for account in found:
            lines += _lines(account)
        return {"url": books.shown, "data_sets": [account.document() for account in found]}, lines
    chosen = next((account for account in found if account.data_set == names[0]), None)
    if chosen is None:
        near = suggest(names[0], [account.data_set for account in found])
        raise ArgumentError(
            f'the ledger {books.shown} knows no data set "{names[0]}"' + (f'; did you mean "{near}"?' if near else "")
        )
    runs = [_run(run) for run in chosen.runs]
    document = {"url": books.shown, **chosen.document(), "entries": runs}
    return document, [*_lines(chosen), *(["", *_table(runs)] if runs else [])]


def _run(run: Any) -> dict[str, Any]:
    held, details = run.reservation, run.reservation.content
    private = held.epsilon != "inf"
    return {
        "run": held.run,
        "status": run.status,
        "charged": run.counts,
        "epsilon": float(held.epsilon) if private else None,
        "delta": float(held.delta),
        "rdp": None if held.rdp in (None, "inf") else float(held.rdp),
        "order": None if held.renyi_order is None else float(held.renyi_order),
        "spec": details["spec"],
        "steps": details["steps"],
        "mechanism_digest": details["mechanism"],
        "who": details["who"],
        "at": held.at,
    }


def _table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    from harness.reporting import formatting as f

    lines = [f"  {'run':<23}{'spec':<18}{'ε':>8}{'δ':>10}  status"]
    for run in runs:
        epsilon = "NONE" if run["epsilon"] is None else f.epsilon(run["epsilon"])
        spec = console.shortened(run["spec"], 17)
        lines.append(f"  {run['run']:<23}{spec:<18}{epsilon:>8}{run['delta']:>10.2g}  {run['status']}")
    return lines


def _lines(account: Account) -> list[str]:
    known = account.document()
    spent = "infinite (a run without noise)" if known["spent_without_privacy"] else f"{known['spent_epsilon']:g}"
    lines = [account.data_set, f"  spent   ε = {spent}, δ = {known['spent_delta']:g}, runs: {known['runs']}"]
    if account.budget is None:
        lines.append("  budget  none: runs are recorded without a limit")
    else:
        budget = account.budget
        lines.append(f"  budget  ε = {budget.epsilon:g}, δ = {budget.delta:g}")
        left = f"  left    ε = {known['remaining_epsilon']:g}, δ = {known['remaining_delta']:g}"
        if budget.order is not None:
            lines[-1] += f", by RDP at order {budget.order:g}: {budget.capacity:.6g} in all"
            left = f"  left    RDP {known['remaining_rdp']:g}, which reads as ε = {known['remaining_epsilon']:g}"
        lines.append(left)
    if account.holdout_fraction > 0:
        lines.append(f"  public  {100 * account.holdout_fraction:g} % of users were held out publicly")
    if account.holdout_file:
        lines.append("  public  users of evaluation files")
    return lines


def _verify(books: Ledger, names: Sequence[str], out: Path) -> Told:
    from harness.cli.report import find_run
    from harness.errors import MachineError

    receipts = dict(_receipt(find_run(name, out)) for name in names)
    count, problems = books.verify(receipts)
    if problems:
        raise MachineError(f"the ledger {books.shown} is not what it was:\n" + "\n".join(problems))
    more = f" and {len(receipts)} receipt(s)" if receipts else ""
    document = {"url": books.shown, "entries": count, "receipts": len(receipts), "intact": True}
    return document, [f"the ledger {books.shown} is intact: {count} entries{more}"]


def _receipt(folder: Path) -> tuple[str, Receipt]:
    from harness.errors import ArgumentError
    from harness.privacy.ledger import Receipt

    try:
        held = reading.loads((folder / "privacy.json").read_text())["ledger"]
        return str(held["run"]), Receipt(int(held["sequence"]), str(held["hash"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise ArgumentError(f"{folder} has no receipt of a ledger") from None


def _void(books: Ledger, name: str) -> Told:
    run = Path(name).name
    books.void(run)
    return {"url": books.shown, "run": run, "status": "voided"}, [f"the reservation of run {run} is given back"]
