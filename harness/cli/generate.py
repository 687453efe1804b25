"""``uudp generate``: a finished run's model continues a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import completion, console


def generate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="a finished run's folder, or its id, or the beginning of one",
            autocompletion=completion.runs,
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="the beginning of the text")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=100_000, help="at most so many are added")] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=100.0, help="0: the likeliest token each time")
    ] = 0.7,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="repeats a draw")] = None,
    out: Annotated[Path, typer.Option("--out", help="where runs are kept")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Let a finished run's model continue a text.

    Control characters in what it writes are left out.
    """
    folder = finished_run(run, out)
    from harness.cache import default_cache_dir
    from harness.training import inference

    base = inference.base_of(folder, default_cache_dir())
    text = inference.generate(folder, base, prompt, tokens=tokens, temperature=temperature, seed=seed)
    if json:
        console.emit_json({"run": str(folder), "private": is_private(folder), "prompt": prompt, "text": text})
        return
    for line in console.printable(prompt + text).split("\n"):
        console.out(line)


def finished_run(name: str, out: Path) -> Path:
    """The folder of a finished run; warns on stderr if it has no privacy.

    Raises:
        ArgumentError: There is no such run, or it is not finished.
    """
    from harness.cli.report import find_run
    from harness.errors import ArgumentError
    from harness.reporting.comparing import FINISHED, are_public_trials, is_sweep, status_of
    from harness.reporting.records import read_run

    folder = find_run(name, out)
    record, status = read_run(folder), status_of(folder)
    if are_public_trials(record):
        raise ArgumentError(f"{folder} holds trials on public data, and no model: name the run that they led to")
    made = (folder / "adapter" / "adapter_model.safetensors", folder / "model" / "config.json")
    if status != FINISHED or not any(path.exists() for path in made):
        verb = "sweep" if is_sweep(record) else "run"
        raise ArgumentError(f"{folder} is not finished ({status}): go on with it by uudp {verb} … --resume")
    if not is_private(folder):
        console.err("warning: NOT PRIVATE: this model was trained without noise, and may repeat what users wrote")
    return folder


def is_private(folder: Path) -> bool:
    """Whether the run claims a guarantee."""
    from harness.reporting.records import read_run

    return read_run(folder).private
