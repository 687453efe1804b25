"""``uudp init``: a commented starter spec, for the user's own file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import console

if TYPE_CHECKING:
    from harness.spec.starter import Starter


def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="writes NAME.yaml; left out: named after the data")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="a jsonl, csv or parquet file")] = None,
    user: Annotated[str | None, typer.Option("--user", help="column that says who a record belongs to")] = None,
    text: Annotated[str | None, typer.Option("--text", help="column of the text")] = None,
) -> None:
    """Write a commented starter spec for your data.

    With --data it looks at the first rows of the file to guess which column is the user and which is the text; every
    guess is marked with (?), to be checked. It never overwrites a file.
    """
    from harness.errors import ArgumentError, MachineError
    from harness.spec.starter import starter_spec

    name = re.sub(r"\.ya?ml$", "", name) if name is not None else _name_for(data)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ArgumentError(f'NAME: "{name}" must be letters, digits, dots, dashes and underscores')
    path = Path(f"{name}.yaml")
    if path.exists() or path.is_symlink():
        raise ArgumentError(f"{path} exists already, and is left as it is; give another NAME")
    starter = _starter(name, data, user, text)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter_spec(starter))
    except FileExistsError:
        raise ArgumentError(f"{path} exists already, and is left as it is; give another NAME") from None
    except OSError as error:
        raise MachineError(f"{path} can't be written: {error.strerror}") from None
    console.out(f"{path}: written; check the lines marked with (?), then: uudp plan {path}")


def _name_for(data: Path | None) -> str:
    if data is None:
        return "my-run"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", data.name.split(".")[0]).strip("-._")
    return stem[:100] or "my-run"


def _starter(name: str, data: Path | None, user: str | None, text: str | None) -> Starter:
    from harness.data.guessing import ROWS, guess
    from harness.errors import ArgumentError
    from harness.spec.starter import Starter

    if data is None:
        return Starter(
            name, "jsonl", f"{name}.jsonl", user or "user", text or "text", (),
            "the column that says who wrote it", "the column of the text", None,
        )  # fmt: skip
    if not data.is_file():
        raise ArgumentError(f"--data: {data} is a folder, not a file" if data.is_dir() else f"--data: no file {data}")
    found = guess(data.expanduser(), user=user, text=text)
    why_user = f"it repeats in the first {ROWS} rows" if found.repeats else f"NOBODY repeats in the first {ROWS} rows"
    why_user = why_user if found.repeats or user is None else f"you named it, but {why_user}"
    return Starter(
        name,
        found.type,
        str(data),
        found.user,
        found.text,
        found.attributes,
        why_user,
        "you named it" if text else "the column with the longest texts",
        found.users,
    )
