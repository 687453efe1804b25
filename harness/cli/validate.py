"""``uudp validate``: the spec alone; touches no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import completion, console


def validate(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC",
            help="files or packaged specs' names; then KEY=VALUE to replace values in all of them",
            autocompletion=completion.specs,
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Check specs without touching data.

    Every mistake is named at once, as FILE:LINE:COLUMN KEY: what is wrong, with a suggestion where one is near.
    """
    from harness.errors import ArgumentError
    from harness.spec import SpecErrors, load_spec

    paths, overrides = split_overrides(specs)
    if not paths:
        raise ArgumentError("validate needs a spec")
    results: list[dict[str, Any]] = []
    for path in paths:
        problems: list[dict[str, Any]] = []
        try:
            load_spec(path, overrides)
        except SpecErrors as errors:
            for problem in errors.problems:
                console.error(str(problem))
                place = problem.place
                problems.append(
                    {
                        "file": place.file,
                        "line": place.line or None,
                        "column": place.column or None,
                        "key": problem.key,
                        "message": problem.message,
                        "suggestion": problem.suggestion,
                    }
                )
        else:
            if not json:
                console.out(f"{path}: ok")
        results.append({"spec": path, "ok": not problems, "problems": problems})
    if json:
        console.emit_json({"ok": all(r["ok"] for r in results), "specs": results})
    if not all(r["ok"] for r in results):
        raise typer.Exit(2)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Spec files, and ``key=value``: what holds an equals sign and is no file."""
    overrides = [a for a in arguments if "=" in a and not _is_there(a)]
    return [a for a in arguments if a not in overrides], overrides


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False
