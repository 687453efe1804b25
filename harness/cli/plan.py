"""``uudp plan``: everything that can be known before training, before a text is read."""

from __future__ import annotations

import math
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import completion, console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.planning import Plan
    from harness.planning.devices import Target


def plan(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="a file, or a packaged spec's name", autocompletion=completion.specs)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="replace values of the spec: train.steps=50")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="say why each group has the noise it has")] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY",
            help="beside other noise policies, or all of them",
            autocompletion=completion.noise_policies,
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="of the comparison: a page with it")] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="64xH100", help="predict time, memory and cost there", autocompletion=completion.on),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="PRICE", help="of a device-hour, with --on")] = None,
    utilisation: Annotated[
        float | None, typer.Option(metavar="SHARE", help="of a GPU's peak that training reaches, with --on")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Show groups, levers and ε before training.

    Reads the spec, and of the data no more than user names and declared public columns. Shows each group's ε, clip
    norm, noise multiplier σ and sampling rate, notes on what the guarantee covers, and where every value of the
    resolved spec comes from. Predicts what memory a worker needs, and exits with 4 where this machine has not got it.
    With --on, it is about those devices instead: how long the run takes there, and what it costs.
    """
    from harness.errors import ArgumentError, MachineError

    if plot is not None and not compare:
        raise ArgumentError("--plot shows a comparison: add --compare all")
    target = _target(on, price, utilisation)
    with console.uncollected():
        from harness.planning import make_plan
        from harness.reporting.reasons import explained
        from harness.spec import load_spec

        planned = make_plan(load_spec(spec, overrides or []))
        there = None
        if target is not None:
            from harness.planning.elsewhere import predict_elsewhere

            there = predict_elsewhere(planned, target, price=price, used=utilisation)
            planned = replace(planned, memory=None)  # this machine is not asked
        document = explained(planned.document())
        if there is not None:
            document["elsewhere"] = there.document()
        if compare:
            document["comparison"] = _compared(planned, compare, plot)
    if json:
        console.emit_json(document)
    else:
        _show(document, explain=explain)
        if plot is not None:
            console.out(f"plot: {plot}")
    refusing = planned.memory if there is None else there
    if refusing is not None and refusing.refusal is not None:
        raise MachineError(refusing.refusal)


def _target(on: str | None, price: float | None, utilisation: float | None) -> Target | None:
    """What ``--on`` and what goes with it ask for."""
    from harness.errors import ArgumentError
    from harness.planning.devices import parse_target

    for name, value, most in (("--price", price, math.inf), ("--utilisation", utilisation, 1.0)):
        if value is not None and on is None:
            raise ArgumentError(f"{name} goes with --on, as in --on 64xH100")
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            raise ArgumentError(f"{name} {value:g}: must be above 0" + (" and at most 1" if most == 1 else ""))
    return None if on is None else parse_target(on)


def _compared(planned: Plan, names: list[str], plot: Path | None) -> list[dict[str, Any]]:
    """The plan's policy and others, as plain data; and a page of it."""
    from harness.errors import ArgumentError
    from harness.files import unwritable
    from harness.planning import comparing

    found = comparing.document(planned, comparing.compare(planned, names))
    if plot is not None:
        from harness.reporting.comparison import write_page

        if not plot.name or (plot.exists() and not plot.is_file()):
            raise ArgumentError(f"--plot: {str(plot)!r} is no name for a file")
        try:
            write_page(plot, planned.spec.name, found)
        except OSError as error:
            raise unwritable(error, plot) from None
    return found


def _show(document: Mapping[str, Any], *, explain: bool) -> None:
    for line in describe(document):
        console.out(line)
    console.out()
    if "elsewhere" in document:
        from harness.reporting import elsewhere

        for line in elsewhere.lines(document["elsewhere"]):
            console.out(line)
        console.out()
    for group in document["groups"] if explain else ():
        for line in textwrap.wrap(f"{group['name']}: {group['reason']}", 80, subsequent_indent="  "):
            console.out(line)
    if explain:
        console.out()
    if "comparison" in document:
        from harness.reporting.comparison import lines

        console.out("other noise policies at the same targets, budget and groups:")
        for line in lines(document["comparison"]):
            console.out(line)
        console.out()
    console.out("resolved spec, and where each value comes from:")
    for key, origin in document["origins"].items():
        console.out(origin_line(key, _lookup(document["spec"], key), origin))


def describe(document: Mapping[str, Any]) -> list[str]:
    """A plan in at most 80 columns: the guarantee, the mechanism and its groups."""
    from harness.reporting import formatting as f

    population, private = document["population"], document["private"]
    lines = [f"plan of {document['name']}"]
    if private:
        lines.append(f"  guarantee   user-level ε = {f.epsilon(document['epsilon'])}, δ = {f.delta(document['delta'])}")
        lines.append(f"  accountant  {document['accountant']}, neighbours: {document['relation'].replace('_', ' ')}")
    else:
        lines.append("  guarantee   NONE: trained without noise, NOT PRIVATE")
    lines += [
        f"  users       {_known(population['users'])} to train on ({population['from']})",
        f"  mechanism   {document['steps']} steps of {_known(document['denominator'], 4)} expected "
        f"{document['sampling']['unit']}s, noise std {document['noise_std']:.4g}",
        f"  digest      {document['mechanism_digest'][:16]}",
        "",
        f"  {'group':<20}{'weight':>7}{'ε':>8}{'clip':>9}{'σ':>8}{'rate':>9}{'noise/signal':>14}",
    ]
    for g in document["groups"]:
        name, epsilon = console.shortened(g["name"], 19), f.epsilon(g["epsilon"])
        lines.append(
            f"  {name:<20}{_cell(g['weight'], 3, 7)}{epsilon:>8}{_cell(g['clip_norm'], 4, 9)}"
            f"{_cell(g['noise_multiplier'], 3, 8)}{_cell(g['sampling_rate'], 5, 9)}{_cell(g['noise_to_signal'], 4, 14)}"
        )
    lines.append("")
    lines += _tiers(document["tiers"]) + _levers(document) + _candidates(document)
    if document["holdout"]:
        h = document["holdout"]
        lines.append(f"  hold-out    ε = {f.epsilon(h['epsilon'])} by {h['evaluations']} noisy evaluations")
    lines += _ledger(document["ledger"])
    if document["memory"]:
        text = document["memory"]["words"]
        lines += textwrap.wrap(text, 80, initial_indent="  memory      ", subsequent_indent=" " * 14)
    lines.append("  charges     none besides training" if not document["charges"] else "  charges")
    lines += [f"    {c['what']}: ε = {f.epsilon(c['epsilon'])}" for c in document["charges"]]
    for note in document["notes"]:
        lines += textwrap.wrap(note, 80, initial_indent="  note        ", subsequent_indent=" " * 14)
    return lines


def _known(value: float | None, digits: int = 6) -> str:
    return "? (a noisy answer)" if value is None else f"{value:.{digits}g}"


def _levers(document: Mapping[str, Any]) -> list[str]:
    """What only some mechanisms have: a schedule, a clip norm that follows the data, fewer steps or examples."""
    lines, groups = [], document["groups"]
    if document["schedule"]:
        lines.append(
            f"  schedule    {len(document['schedule'])} plateaus, noise and clip norm as multiples of the first"
        )
        for s in document["schedule"]:
            lines.append(f"    {s['steps']:>7} steps: noise {s['noise']:.3f}, clip {s['clip']:.3f}")
    if document["clipping"]["type"] == "adaptive":
        c = document["clipping"]
        lines.append(
            f"  clipping    follows the {c['quantile']:g} quantile, noise on the count {c['bit_noise_std']:.4g}"
        )
    if len({(g["steps"], g["examples_per_user"]) for g in groups}) > 1 or document["sampling"]["unit"] == "example":
        lines += [
            f"  {console.shortened(g['name'], 19):<20}{g['steps']} steps, {g['examples_per_user']} example(s) per user"
            for g in groups
        ]
    return [*lines, ""] if lines else []


def _tiers(known: Mapping[str, Any] | None) -> list[str]:
    """Where the score is cut into risk tiers, where noisy answers say."""
    if known is None or known["from"] == "declared":
        return []
    if known["edges"] is None:
        where = ", ".join(f"{q:g}" for q in known["quantiles"])
        return [f"  tiers       cut at the quantiles {where} of the score (noisy answers)", ""]
    return ["  tiers       cut at " + ", ".join(f"{edge:.3f}" for edge in known["edges"]) + " (noisy answers)", ""]


def _candidates(document: Mapping[str, Any]) -> list[str]:
    """Between what the spec leaves the choice."""
    if not document["candidates"]:
        return []
    lines = [f"  {'candidate':<14}{'examples per user':>18}{'noise/signal':>14}{'predicted':>11}"]
    lines += [
        f"  {c['unit']:<14}{c['examples_per_user']:>18}{c['noise_to_signal']:>14.5f}{c['predicted']:>11.5f}"
        for c in document["candidates"]
    ]
    return [*lines, ""]


def _ledger(known: Mapping[str, Any] | None) -> list[str]:
    """What is left of the data set's budget, before this run."""
    if known is None or known["budget"] is None:
        return []
    left = f"ε = {known['remaining_epsilon']:g} and δ = {known['remaining_delta']:g}"
    if known["remaining_rdp"] is not None:
        left = f"RDP {known['remaining_rdp']:g} at order {known['budget']['order']:g}"
    text = f'{left} left of the budget of "{known["data_set"]}"'
    return textwrap.wrap(text, 80, initial_indent="  ledger      ", subsequent_indent=" " * 14)


def _cell(value: float | None, decimals: int, width: int) -> str:
    """A number at the right of its column, with a blank before it: with fewer digits where they would not fit.

    What waits for a noisy answer is a question mark.
    """
    if value is None:
        return f"{'?':>{width}}"
    text = f"{value:.{decimals}f}"
    return f"{text if len(text) < width else f'{value:.2g}':>{width}}"


def origin_line(key: str, value: Any, origin: str, width: int = 80) -> str:
    """``  key = value  (origin)`` in so many columns: first the value is cut, then the front of a file's path."""
    head, text = f"  {key} = ", " ".join(str(value).split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    room = max(width - len(head) - len(origin) - 4, 12)
    text = text if len(text) <= room else text[: room - 1] + "…"
    left = max(width - len(head) - len(text) - 4, 20)
    place = origin if len(origin) <= left else "…" + origin[-(left - 1) :]
    return f"{head}{text}  ({place})"


def _lookup(document: Any, dotted: str) -> Any:
    value = document
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            return "…"
        value = value[part]
    return value
