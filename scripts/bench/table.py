"""Writes the README's table of performance from ``scripts/bench/results/*.json``, or checks that it is that table.

    python scripts/bench/table.py [--check]

A result is what a script here printed, kept as ``<script>-<machine>.json`` (a mode of its own after an underscore:
``step_packed-laptop.json``). Its ``rows`` are its lines of the table. A script without a result is still to be
measured, and the table says so. The table stands between two comments in README.md. With --check nothing is written,
and the exit code is 1 where the README differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- bench: begin (made by scripts/bench/table.py) -->", "<!-- bench: end -->"

SCRIPTS = {
    "step": "tokens/s and memory of a private step over an ordinary LoRA step",
    "step_packed": "the same with ragged users of many examples",
    "endtoend": "text per second of a run's training loop over a plain Trainer + PEFT",
    "zero": "a private step over an ordinary one under ZeRO 0–3",
    "zero_workers": "the same with 1, 2 and 4 workers, at another time",
    "full": "the same with all parameters trained",
    "gpu": "the same on a data-centre GPU, a billion parameters, bfloat16",
    "cohort": "drawing a cohort from up to a hundred million users",
    "plan": "seconds that `uudp plan` takes",
    "fit": "predicted ÷ measured memory of a worker",
    "overhead": "seconds that `uudp run` adds to its training",
    "sweep": "seconds of a sweep of 20 small trials over the sum of their training times",
    "tuning": "what a search inside the budget gains over the defaults at equal ε",
    "tuning_off": "the same from a learning rate ten times too small",
    "simulate": "predicted ÷ measured seconds of a step",
    "pieces": "small costs of a step that predictions rest on",
    "hotspots": "what the time of a private step goes to",
    "utility": "the share of the ordinary gain that a private run keeps",
}
"""In the table's order, with what each measures. Of those whose script is there, none is left out."""


def main() -> None:
    """Writes the table, or compares it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README differs")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    before = options.readme.read_text(encoding="utf-8")
    after = renewed(before, table(options.results))
    if before == after:
        return
    if options.check:
        sys.exit(f"table: the table in {options.readme.name} is stale: run python scripts/bench/table.py")
    options.readme.write_text(after, encoding="utf-8")


def renewed(text: str, made: str, begin: str = BEGIN, end: str = END) -> str:
    """The README's text with this table between the two comments."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        sys.exit(f"table: the README needs one line {begin} and, after it, one {end}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{made}{end}{rest.partition(end)[2]}"


def table(results: Path) -> str:
    """The whole table."""
    found = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results.glob("*.json"))]
    lines = ["| measured | found | to reach | on |", "|---|---|---|---|"]
    for name, what in SCRIPTS.items():
        own = [(path, document) for path, document in found if path.stem.partition("-")[0] == name]
        lines += [line(row, document) for path, document in own for row in rows_of(path, document)]
        if not own and (HERE / f"{name.partition('_')[0]}.py").exists():
            lines.append(f"| {what} | still to be measured | | |")
    return "\n".join(lines) + "\n"


def rows_of(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """A result's lines."""
    if not document.get("rows"):
        sys.exit(f'table: {path.name} has no "rows"')
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def line(row: dict[str, Any], document: dict[str, Any]) -> str:
    """A line of the table; what misses its target is marked."""
    figure = row["figure"] if row["reached"] else f"{row['figure']} (missed)"
    return f"| {row['what']} | {figure} | {row['to_reach']} | {place(document)} |"


def place(document: dict[str, Any]) -> str:
    """Where it was measured: the model and its dtype, and the machine."""
    model = document.get("model") or {}
    name = str(model.get("name", "")).rpartition("/")[2]
    parts = [" ".join(part for part in (name, model.get("dtype", "")) if part)]
    parts.append(document.get("gpu") or f"{document.get('cores', '?')} cores")
    return ", ".join(part for part in parts if part)


if __name__ == "__main__":
    main()
