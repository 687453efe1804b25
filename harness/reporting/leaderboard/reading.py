"""Folders of runs and what a suite says of them: found below what was given, read without looking into ``private/``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError
from harness.reporting.leaderboard import files
from harness.reporting.leaderboard.files import Refused, shown
from harness.reporting.records import number

NEEDED = ("plan.json", "privacy.json", "metrics.jsonl", "spec.yaml")
MORE = ("sweep.json", "assessment.json", "audit.json")
RESULTS = "results.jsonl"
MARKER = ".uudp-leaderboard"
"""In a site that this made: such a folder holds no runs, and may be replaced."""
DEEPEST = 12
"""Folders below one that was given."""


@dataclass(frozen=True)
class Found:
    """What lies below the folders that were given.

    Attributes:
        runs: Folders of runs, by what they are called on the page: their path below the folder that was given.
        results: What suites say of their runs: (name on the page, path).
    """

    runs: Mapping[str, Path]
    results: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class RunFiles:
    """The released files of a run, as plain values; what they say is not checked yet.

    Attributes:
        id: Beginning of the SHA-256 of all of them: the same run has the same, wherever it lies.
        plan: ``plan.json``.
        privacy: ``privacy.json``.
        metrics: Rows of ``metrics.jsonl``.
        spec: ``spec.yaml``.
        spec_text: The same as it is written.
        sweep: ``sweep.json``; None: there is none.
        assessment: ``assessment.json``; None: there is none.
        audit: ``audit.json``; None: there is none.
    """

    id: str
    plan: dict[str, Any]
    privacy: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    spec: dict[str, Any]
    spec_text: str
    sweep: dict[str, Any] | None
    assessment: dict[str, Any] | None
    audit: dict[str, Any] | None


@dataclass(frozen=True)
class Cell:
    """What a suite says that a run is.

    Attributes:
        suite: Name of the suite.
        data: What it trains on, as the suite calls it.
        policy: The policy or baseline.
        budget: ε of the cell; None: it has none.
        seed: Of the spec.
        run: Folder of the run as the page calls it.
    """

    suite: str
    data: str
    policy: str
    budget: float | None
    seed: int | None
    run: str


@dataclass(frozen=True)
class Results:
    """All that suites say.

    Attributes:
        cells: By folder of the run.
        problems: Lines that say nothing, each with its place and what is wrong.
    """

    cells: Mapping[str, Cell] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def find(folders: Sequence[Path]) -> Found:
    """Every run below these folders, and what suites say of them. Links are not followed.

    Raises:
        ArgumentError: One of them is no folder.
    """
    runs: dict[str, Path] = {}
    results: list[tuple[str, Path]] = []
    seen: set[Path] = set()
    for top in folders:
        if not top.is_dir():
            raise ArgumentError(f"{shown(top)} is no folder" if top.exists() else f"there is no folder {shown(top)}")
        top = top.resolve()  # noqa: PLW2901
        for path, names in _walk(top):
            label = path.relative_to(top).as_posix() if path != top else path.name
            if path in seen:  # one of the folders lies in another one
                continue
            seen.add(path)
            if "plan.json" in names or "privacy.json" in names:
                runs[_free(label, runs)] = path
            if RESULTS in names:
                results.append((RESULTS if path == top else f"{label}/{RESULTS}", path))
    return Found(runs, tuple(results))


def _walk(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders and the names in them, in a fixed order; neither private parts nor sites."""
    for path, below, names in os.walk(top):
        if MARKER in names or len(Path(path).relative_to(top).parts) > DEEPEST:
            below.clear()
            continue
        below[:] = sorted(name for name in below if name != "private" and not name.startswith("."))
        yield Path(path), {*names, *below}


def _free(label: str, taken: Mapping[str, Path]) -> str:
    """A name that no other folder has: two that were given may have runs of the same name."""
    found, count = label, 2
    while found in taken:
        found, count = f"{label} ({count})", count + 1
    return found


def read_run(folder: Path) -> RunFiles:
    """The released files of a run.

    Raises:
        Refused: One is missing, or can't be read as what it should be.
    """
    handle = files.open_folder(folder)
    try:
        texts = {name: files.read_text(handle, name) for name in (*NEEDED, *MORE)}
    finally:
        os.close(handle)
    for name in NEEDED:
        if texts[name] is None:
            raise Refused(f"{name} is missing")
    digest = hashlib.sha256()
    for name, text in texts.items():
        digest.update(f"{name} {'' if text is None else hashlib.sha256(text.encode()).hexdigest()}\n".encode())
    read = {n: files.json_object(t, n) for n, t in texts.items() if t is not None and n.endswith(".json")}
    spec = texts["spec.yaml"] or ""
    return RunFiles(
        digest.hexdigest()[:16],
        read["plan.json"],
        read["privacy.json"],
        tuple(files.json_rows(texts["metrics.jsonl"] or "", "metrics.jsonl")),
        files.yaml_object(spec, "spec.yaml"),
        spec,
        read.get("sweep.json"),
        read.get("assessment.json"),
        read.get("audit.json"),
    )


def links_below(folder: Path) -> str | None:
    """The first link in a run's folder; None: there is none. Looks at names alone, and not into ``private/``."""
    for path, below, names in os.walk(folder):
        for name in sorted([*below, *names]):
            if (Path(path) / name).is_symlink():
                return (Path(path) / name).relative_to(folder).as_posix()
        below[:] = [name for name in below if name != "private"]
    return None


def read_results(found: Found) -> Results:
    """What suites say of the runs that were found; a line that can't be used is a problem, and nothing else."""
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    by_path = {path: label for label, path in found.runs.items()}
    for name, folder in found.results:
        try:
            rows = _rows(folder)
        except Refused as refused:
            problems.append(f"{name}: {refused}")
            continue
        for line, row in rows:
            try:
                cell = _cell(row, folder, by_path)
                if cells.setdefault(cell.run, cell) != cell:
                    raise Refused("the same run is said to be in two cells")
            except Refused as refused:
                problems.append(shown(f"{name}:{line}: {refused}", 300))
    return Results(cells, tuple(problems))


def _rows(folder: Path) -> list[tuple[int, dict[str, Any] | Refused]]:
    handle = files.open_folder(folder)
    try:
        text = files.read_text(handle, RESULTS) or ""
    finally:
        os.close(handle)
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > files.MOST_ROWS:
        raise Refused(f"more than {files.MOST_ROWS} lines")
    return [(n, _row(line)) for n, line in lines]


def _row(line: str) -> dict[str, Any] | Refused:
    try:
        return files.json_object(line, "the line")
    except Refused as refused:
        return refused


def _cell(row: dict[str, Any] | Refused, folder: Path, by_path: Mapping[Path, str]) -> Cell:
    if isinstance(row, Refused):
        raise row
    texts = {}
    for key in ("suite", "data", "policy", "run"):
        value = row.get(key)
        if not isinstance(value, str) or not value.strip() or len(value) > 500:
            raise Refused(f"{key} should be a text")
        texts[key] = value
    budget, seed = row.get("budget"), row.get("seed")
    if budget is not None and not ((known := number(budget)) is not None and known > 0):
        raise Refused("budget should be a number above 0, or null")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise Refused("seed should be a whole number, or null")
    parts = Path(texts["run"]).parts
    path = folder.joinpath(*parts)
    if ".." in parts or Path(texts["run"]).is_absolute() or path not in by_path:
        raise Refused(f"there is no run {shown(texts['run'], 80)}")
    return Cell(texts["suite"], texts["data"], texts["policy"], number(budget), seed, by_path[path])
