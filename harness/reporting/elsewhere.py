"""What is predicted of a plan on other devices, in lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

SHOWN = (1, 8, 64, 512)
"""Numbers of devices in the table, beside the one asked for and the largest useful one."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
GIB = 2**30


def lines(found: Mapping[str, Any]) -> list[str]:
    """A prediction, as `Elsewhere.document` has it."""
    entries = [
        ("time", _run(found)),
        ("step", _step(found)),
        ("memory", _memory(found["memory"])),
        ("cost", _cost(found)),
        ("data", _data(found["data"])),
        ("useful", f"up to {found['useful_devices']} x {found['device']}"),
    ]
    shown = [f"on {found['on']}, predicted:"]
    for name, text in entries:
        shown += textwrap.wrap(text, 80, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
    shown += ["", *_table(found), ""]
    for note in found["notes"]:
        shown += textwrap.wrap(note, 80, initial_indent="  note        ", subsequent_indent=" " * 14)
    return shown


def duration(seconds: float) -> str:
    """As a person says it: ``45 s``, ``3.2 h``."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} s" if seconds >= 0.1 else f"{number(seconds * 1000)} ms"


def number(value: float) -> str:
    """With two or three digits, and never with an exponent below a million."""
    if value >= 1e6:
        return f"{value:.2g}"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


def _between(found: Mapping[str, float]) -> str:
    return f"{duration(found['likely'])} ({duration(found['low'])} to {duration(found['high'])})"


def _run(found: Mapping[str, Any]) -> str:
    spent = ", ".join(f"{name} {duration(value)}" for name, value in found["parts"].items() if value > 0)
    return f"{_between(found['seconds'])}; of the likely one, {spent}"


def _step(found: Mapping[str, Any]) -> str:
    whole = found["step_seconds"]["likely"]
    shares = {name: value / whole for name, value in found["step_parts"].items()}
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
    speed = number(found["tokens_per_second"])
    return f"{_between(found['step_seconds'])}, {speed} tokens of text per second; {said}"


def _memory(found: Mapping[str, Any]) -> str:
    needed = f"about {found['per_device']['total'] / GIB:.1f} GiB per device"
    free = "how much there is, is unknown" if found["available"] is None else f"of {found['available'] / GIB:.0f} GiB"
    more = f"ZeRO {found['stage']}, {found['microbatch_tokens']} tokens per micro-batch"
    host = f"; {sum(found['host'].values()) / GIB:.1f} GiB per device of the machine" if found["host"] else ""
    return f"{needed}, {free} ({more}){host}"


def _cost(found: Mapping[str, Any]) -> str:
    hours, cost = found["device_hours"], found["cost"]
    text = f"{number(hours['likely'])} device-hours ({number(hours['low'])} to {number(hours['high'])})"
    if cost is None:
        return f"{text}; with --price, of a device-hour, their cost"
    said = f"{number(cost['likely'])} ({number(cost['low'])} to {number(cost['high'])})"
    return f"{said} at {found['price']:g} per device-hour: {text}"


def _data(found: Mapping[str, Any]) -> str:
    each, seconds = found["examples_per_user"], found["prepare_core_seconds"]
    return (
        f"preparing {number(found['users'])} users' texts takes one core {duration(seconds)}, once and beforehand, "
        f"if each has {each} example{'s' if each > 1 else ''}, and as much more with every further {each}"
    )


def _table(found: Mapping[str, Any]) -> list[str]:
    """How it scales."""
    wanted = {*SHOWN, found["devices"], found["useful_devices"]}
    priced = found["price"] is not None
    head = f"  {'devices':>9}{'step':>10}{'run':>10}{'speed-up':>10}{'device-hours':>14}"
    rows = [head + (f"{'cost':>10}" if priced else "")]
    for one in found["by_devices"]:
        if one["devices"] in wanted:
            step, run = duration(one["step_seconds"]["likely"]), duration(one["seconds"]["likely"])
            row = f"  {one['devices']:>9}{step:>10}{run:>10}{number(one['speed_up']):>10}"
            row += f"{number(one['device_hours']['likely']):>14}"
            row += f"{number(one['cost']['likely']):>10}" if priced else ""
            rows.append(row + ("  no room" if one["fits"] is False else ""))
    return rows
