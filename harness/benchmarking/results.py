"""A suite's folder: what its cells are, how far each is, and one line for each that has finished.

``results.jsonl`` is only ever appended to; ``suite.json`` says what the cells are, so that a suite that is gone on with
adds cells and changes none. Both are made of released files alone, and can be published.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.benchmarking.cells import Cell
from harness.errors import ArgumentError, MachineError, UserError
from harness.files import as_json, sync_folder, write_released
from harness.reporting.audited import audited, failed
from harness.reporting.records import block, items, number, read_run
from harness.reporting.summary import summarize
from harness.training.job import Failure

VERSION = 1
RESULTS, CELLS = "results.jsonl", "suite.json"
FINISHED, FAILED, OPEN = "finished", "failed", "open"
UNKNOWN = "training failed; details are in its private folder"


@dataclass
class Standing:
    """How far the cells of a suite are. Written whole at every change.

    Attributes:
        root: The suite's folder.
        suite: Its name.
        title: For people.
        cells: By name, what each is (`Cell.document`), with ``status``, ``reason`` and ``run`` (its folder below
            `root`).
    """

    root: Path
    suite: str
    title: str
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, name: str, status: str, *, reason: str | None = None, run: Path | None = None) -> None:
        """Notes how far a cell is."""
        folder = None if run is None else run.relative_to(self.root).as_posix()
        self.cells[name] |= {"status": status, "reason": reason, "run": folder}
        self.write()

    def write(self) -> None:
        """Writes ``suite.json``."""
        document = {"version": VERSION, "suite": self.suite, "title": self.title, "cells": list(self.cells.values())}
        write_released(self.root / CELLS, as_json(document))


def why_failed(run: Path) -> str:
    """Why a run failed, as its folder says: in its training, or in its audit."""
    failure = Failure.load(run)
    if failure is not None:
        return failure.message
    with contextlib.suppress(UserError):
        told = failed(audited(read_run(run)))
        if told is not None:
            return f"AUDIT FAILED: {told}"
    return UNKNOWN


def is_begun(root: Path) -> bool:
    """Whether a suite was begun in a folder."""
    return (root / CELLS).exists()


def check_begun(root: Path, *, resume: bool) -> None:
    """That there is a suite to go on with, or none where one is to begin.

    Raises:
        ArgumentError: It isn't so, or the place is no folder.
    """
    for folder in (root, *root.parents):
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"{folder} is no folder")
    if is_begun(root) != resume:
        raise ArgumentError(
            f"there is no suite to go on with in {root}; leave out --resume"
            if resume
            else f"{root} holds a suite that was begun before: go on with it (--resume), or choose another --out"
        )


def begin(root: Path, suite: str, title: str, cells: Iterable[Cell]) -> Standing:
    """How far a suite is, with cells added that are new.

    Raises:
        ArgumentError: A cell is another one than when the suite was begun, or is not in it any more.
        MachineError: The suite's papers are damaged.
    """
    known = _known(root)
    asked = {cell.name: cell.document() for cell in cells}
    gone = [name for name in known if name not in asked]
    changed = [name for name in known if name in asked and known[name]["spec_digest"] != asked[name]["spec_digest"]]
    if gone or changed:
        what = f"{gone[0]} is not in it any more" if gone else f"{changed[0]} is another one now"
        more = len(gone) + len(changed) - 1
        others = f" (and {more} more cell{'s' * (more > 1)})" if more else ""
        raise ArgumentError(
            f"{root} was begun with another suite: {what}{others}. A suite that is gone on with may add cells and "
            "change none: choose another name, or another --out"
        )
    fresh = {"status": OPEN, "reason": None, "run": None}
    standing = Standing(root, suite, title, {name: {**fresh, **known.get(name, {}), **asked[name]} for name in asked})
    standing.write()
    return standing


def _known(root: Path) -> dict[str, dict[str, Any]]:
    path = root / CELLS
    if not path.exists():
        return {}
    try:
        return {str(one["name"]): dict(one) for one in json.loads(path.read_text())["cells"] if one["spec_digest"]}
    except (OSError, ValueError, TypeError, KeyError):
        raise MachineError(f"{path} is damaged: what the suite's cells were is not known any more") from None


# --- lines --------------------------------------------------------------------------------------------------


def repaired(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, after half a line, which a kill leaves, was taken away.

    Raises:
        MachineError: A whole line of it is no result, or it can't be written.
    """
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
    except OSError as error:
        raise MachineError(f"{path} can't be repaired: {error.strerror}") from None
    found = []
    for place, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            assert isinstance(row, dict)
            assert isinstance(row["cell"], str)
        except (ValueError, AssertionError, KeyError, RecursionError):
            raise MachineError(f"{path}:{place}: is no result of a suite; nothing is appended to it") from None
        found.append(row)
    return found


def times(path: Path) -> list[tuple[float, float]]:
    """Seconds and steps of each line that says both; what is no line says nothing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        seconds, steps = (number(row.get(key)) if isinstance(row, dict) else None for key in ("seconds", "steps"))
        if seconds is not None and steps is not None and seconds > 0 and steps > 0:
            found.append((seconds, steps))
    return found


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one line, durably; everybody may read it.

    Raises:
        ValueError: A number in it is not finite.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    new = not path.exists()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), "ab") as file:
        if new:
            path.chmod(0o644)  # whatever the umask
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def result_of(
    suite: str, cell: Mapping[str, Any], root: Path, run: Path, made: Mapping[str, Any], seconds: float | None
) -> dict[str, Any]:
    """The line of a finished cell, from its run's released files.

    Args:
        suite: The suite's name.
        cell: What it is, as `Cell.document`.
        root: The suite's folder.
        run: The run's.
        made: With what: ``code`` and ``machine``.
        seconds: That it took; left out where the data are private, or nobody knows.
    """
    record, summary = read_run(run), summarize(run)
    epsilon = {str(g["name"]): number(g.get("epsilon")) for g in items(record.privacy, "groups")}
    losses = ("base_loss", "trained_loss", "ordinary_loss")
    groups = {
        name: {"epsilon": epsilon.get(name) if record.private else None}
        | {key: summary["groups"].get(name, {}).get(key) for key in losses}
        for name in dict.fromkeys([*epsilon, *summary["groups"]])
    }
    public = record.privacy.get("data", {}).get("visibility") == "public"
    return {
        "version": VERSION,
        "suite": suite,
        "cell": cell["name"],
        **{key: cell[key] for key in ("data", "policy", "baseline", "budget", "seed", "spec_digest")},
        "run": run.relative_to(root).as_posix(),
        "run_id": run.name,
        "mechanism_digest": record.privacy.get("mechanism_digest"),
        "private": record.private,
        "epsilon": record.epsilon if record.private else None,
        "delta": number(record.privacy.get("delta")) if record.private else None,
        "steps": record.privacy.get("steps_completed"),
        **{key: summary[key] for key in losses},
        "groups": groups,
        "dropped": [str(name) for name in block(record.spec, "groups").get("drop") or ()],
        "audit": audit_of(run),
        **made,
        "seconds": round(seconds, 1) if public and seconds is not None else None,
    }


def audit_of(run: Path) -> dict[str, Any] | None:
    """What a run's audit found: its verdict, and the bound and ceiling of each test; None: there was none."""
    try:
        found = json.loads((run / "audit.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {"verdict": "unreadable", "bounds": []}
    if not isinstance(found, dict):
        return {"verdict": "unreadable", "bounds": []}
    bounds = [
        {
            "kind": str(test.get("kind")),
            "score": None if test.get("score") is None else str(test["score"]),
            "group": None if test.get("group") is None else str(test["group"]),
            "bound": number(test.get("bound")),
            "ceiling": number(test.get("ceiling")),
        }
        for test in items(found, "one_run")
    ]
    return {"verdict": str(found.get("verdict")), "bounds": bounds}
