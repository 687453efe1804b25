"""``uudp init``: a commented starter spec, for the user's own file."""

from __future__ import annotations

import re
import sys
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
    data: Annotated[
        str | None, typer.Option("--data", help="jsonl, csv or parquet: a file, a quoted glob, or a folder")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="column that says who a record belongs to")] = None,
    text: Annotated[str | None, typer.Option("--text", help="column of the text, or of messages")] = None,
) -> None:
    """Write a commented starter spec for your data.

    With --data it looks at the first rows to guess which column is the user and which is the text, and opens the data
    as the spec would; every guess is marked with (?), to be checked. It never overwrites a file.
    """
    import yaml

    from harness.errors import ArgumentError, MachineError
    from harness.spec.starter import starter_spec

    name = re.sub(r"\.ya?ml$", "", name) if name is not None else _name_for(data)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ArgumentError(f'NAME: "{name}" must be letters, digits, dots, dashes and underscores')
    path = Path(f"{name}.yaml")
    if path.exists() or path.is_symlink():
        raise ArgumentError(f"{path} exists already, and is left as it is; give another NAME")
    content = starter_spec(_starter(name, data, user, text))
    if data is not None:
        from harness.data.guessing import check

        check(yaml.safe_load(content)["data"])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise ArgumentError(f"{path} exists already, and is left as it is; give another NAME") from None
    except OSError as error:
        raise MachineError(f"{path} can't be written: {error.strerror}") from None
    console.out(f"{path}: written; check the lines marked with (?), then: uudp plan {path}")


def _name_for(data: str | None) -> str:
    """The first part of the path, from its end, that can be a name: of data/*.jsonl, data."""
    for part in reversed(Path(data).parts if data is not None else ()):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", part.split(".")[0]).strip("-._")
        if stem and not any(c in part for c in "*?["):
            return stem[:100]
    return "my-run"


def _starter(name: str, data: str | None, user: str | None, text: str | None) -> Starter:
    from harness.data.guessing import ROWS, guess
    from harness.errors import ArgumentError
    from harness.spec.starter import Starter

    if data is None:
        return Starter(
            name, {"type": "jsonl", "path": f"{name}.jsonl"}, user or "user", "text", text or "text",
            why_user="the column that says who wrote it", why_text="the column of the text",
        )  # fmt: skip
    try:
        data.encode()
    except UnicodeEncodeError:
        mend = "rename the file" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1, or rename the file"
        raise ArgumentError(f"--data: the path is not UTF-8, which a spec must be; {mend}") from None
    found = guess(data, user=user, text=text)
    why_user = f"it repeats in the first {ROWS} rows" if found.repeats else f"NOBODY repeats in the first {ROWS} rows"
    why_user = why_user if found.repeats or user is None else f"you named it, but {why_user}"
    why_text = {
        "text": "you named it" if text else "the column with the longest texts",
        "pair": "the model learns to answer the first with the second",
        "messages": "conversations, written as the model's chat template has them; the model learns the answers",
    }[found.form]
    return Starter(
        name,
        found.source,
        found.user,
        found.form,
        found.text,
        completion=found.completion,
        candidates=found.attributes,
        why_user=why_user,
        why_text=why_text,
        encoding_guessed=found.encoding_guessed,
        runner_up=found.runner_up,
        time=found.time,
    )
