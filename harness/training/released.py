"""The file of released metrics: rows are added once, and never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.files import write_released


def append_missing(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds the rows whose series and step are not there yet; those that are stay as they are."""
    # A kill in the middle of a line leaves half of one: it is dropped, and its row written again.
    present = released_rows(path)
    known = {(row["series"], row["step"]) for row in present}
    missing = [row for row in rows if (row["series"], row["step"]) not in known]
    write_released(path, "".join(json.dumps(row) + "\n" for row in [*present, *missing]))


def released_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of the file; none if there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
