"""Folders → all that the site shows: suites, runs of no suite, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.reporting.leaderboard import reading
from harness.reporting.leaderboard.files import Refused, shown
from harness.reporting.leaderboard.ranking import Board, Entry, Place, Refusal, boards, entry, own_place
from harness.reporting.leaderboard.reading import Cell, RunFiles
from harness.reporting.leaderboard.verifying import Verified, verify
from harness.reporting.records import LOSS

OTHER = "Other runs"
REFUTED = "AUDIT FAILED: an audit found a lower bound above the claimed ε"


@dataclass(frozen=True)
class Page:
    """A suite, or all runs that are in none.

    Attributes:
        key: Tells it from all others.
        name: Of the suite; `OTHER`.
        suite: Whether it is one.
        boards: A table for each of its data.
        refused: Runs that are not shown otherwise.
    """

    key: str
    name: str
    suite: bool
    boards: tuple[Board, ...]
    refused: tuple[Refusal, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All its runs that were verified."""
        return tuple(e for board in self.boards for row in board.rows for e in row.entries)


@dataclass(frozen=True)
class Leaderboard:
    """Everything that the site shows.

    Attributes:
        pages: Suites in alphabetical order, then the runs of none.
        problems: Lines of suites' results that could not be used.
    """

    pages: tuple[Page, ...]
    problems: tuple[str, ...]

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Of all pages."""
        return tuple(refusal for page in self.pages for refusal in page.refused)


@dataclass(frozen=True)
class Check:
    """Whether a folder may be submitted; `reason` says why not, and is empty where it may."""

    run: str
    reason: str
    private: bool


def is_refuted(run: Verified) -> bool:
    """Whether an audit reached more than the run claims."""
    return run.audit is not None and run.audit.verdict == "violated"


def gather(folders: Sequence[Path]) -> Leaderboard:
    """Reads and verifies every run below these folders.

    Raises:
        ArgumentError: One of them is no folder.
    """
    found = reading.find(folders)
    results = reading.read_results(found)
    verified: dict[str, list[Entry]] = {}
    refused: dict[str, list[Refusal]] = {}
    seen: dict[tuple[object, ...], str] = {}
    for folder, path in found.runs.items():
        cell = results.cells.get(folder)
        page = OTHER if cell is None else f"suite {cell.suite}"
        try:
            files = reading.read_run(path)
            _check_once(files, cell, seen)
            run = verify(files, cell)
            seen.update(dict.fromkeys(_keys(files, cell), shown(folder)))
            place = own_place(run) if cell is None else Place(cell.data, cell.policy, cell.budget, cell.seed)
            verified.setdefault(page, []).append(entry(place, run, shown(folder)))
        except Refused as reason:
            refused.setdefault(page, []).append(Refusal(shown(folder), _in_words(cell), str(reason)))
    names = sorted({*verified, *refused}, key=lambda name: (name == OTHER, name))
    pages = tuple(
        Page(
            name,
            OTHER if name == OTHER else shown(name.removeprefix("suite ")),
            name != OTHER,
            boards(verified.get(name, [])),
            tuple(sorted(refused.get(name, []), key=lambda r: (r.what, r.run))),
        )
        for name in names
    )
    return Leaderboard(pages, results.problems)


def check(folders: Sequence[Path]) -> list[Check]:
    """Verifies every run below these folders as it would be submitted: without its ``private/``, without links.

    Raises:
        ArgumentError: One of them is no folder.
    """
    found = reading.find(folders)
    checks = []
    for folder, path in found.runs.items():
        private = False
        try:
            if (path / "private").exists() or (path / "private").is_symlink():
                raise Refused("it holds private/, which must never leave the machine that trained")
            if (link := reading.links_below(path)) is not None:
                raise Refused(f"{link} is a link")
            run = verify(reading.read_run(path))
            private = entry(own_place(run), run, shown(folder)).run.private
            reason = REFUTED if is_refuted(run) else ""
        except Refused as refused:
            reason = str(refused)
        checks.append(Check(shown(folder), reason, private))
    return checks


def _keys(files: RunFiles, cell: Cell | None) -> list[tuple[object, ...]]:
    """What counts once: the same files, and a seed of a cell."""
    found: list[tuple[object, ...]] = [(files.id,)]
    if any(key.startswith(LOSS) for row in files.metrics for key in row):
        # What was measured after fresh noise, whatever was written beside it since: no two runs have the same digits.
        told = [
            files.privacy.get("mechanism_digest"),
            [
                [row.get("series"), row.get("step"), {k: v for k, v in row.items() if k.startswith(LOSS)}]
                for row in files.metrics
            ],
        ]
        found.append((hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),))
    if cell is not None and cell.seed is not None:
        found.append((cell.suite, cell.data, cell.policy, cell.budget, cell.seed))
    return found


def _check_once(files: RunFiles, cell: Cell | None, seen: dict[tuple[object, ...], str]) -> None:
    """That neither the same files nor the same seed of a cell count twice: intervals would look narrower.

    Raises:
        Refused: They would.
    """
    for key in _keys(files, cell):
        if key in seen:
            what = "the same run as" if len(key) == 1 else "the same cell and seed as"
            raise Refused(f"{what} {seen[key]}, which is counted")


def _in_words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    budget = "" if cell.budget is None else f", ε {cell.budget:g}"
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    return shown(f"{cell.policy}{budget}{seed} on {cell.data}")
