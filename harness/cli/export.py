"""``uudp export``: a finished run's model for those who serve models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import completion, console


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="a finished run's folder, or its id, or the beginning of one",
            autocompletion=completion.runs,
        ),
    ],
    merge: Annotated[bool, typer.Option("--merge", help="merge the adapter into its base model")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="the folder to make; left out: RUN/merged")] = None,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Merge a finished run's adapter into its base model; of a run that trained all of it, copy the model.

    The folder holds a whole model with its tokenizer and a card that states the guarantee; transformers loads it.
    """
    from harness.cli.generate import finished_run, is_private
    from harness.errors import ArgumentError

    folder = finished_run(run, out)
    if not merge:
        made = "model" if (folder / "model").exists() else "adapter"
        copy = "a copy of it" if made == "model" else "the whole model"
        raise ArgumentError(f"say --merge for {copy}; the {made} itself is in {folder / made}")
    target = (to.expanduser() if to else folder / "merged").absolute()
    from harness.cache import default_cache_dir
    from harness.reporting.model_card import model_card
    from harness.training import inference

    base = inference.base_of(folder, default_cache_dir())
    inference.merge(folder, base, target, model_card(folder, merged=True))
    if json:
        console.emit_json({"run": str(folder), "model": str(target), "private": is_private(folder)})
    else:
        console.out(f"model: {target}")
