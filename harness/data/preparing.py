"""Preparation in parts and shards, each by any process that has time: the corpus is the one that `Builder` makes.

Two stages. A *part* of the source is read, checked and tokenised, and its rows are written as runs, each sorted by
user. A *shard* takes a range of users' names out of all parts' runs, and writes the users one after the other, each
one's records in the source's order. Runs are mapped, and nobody's records are ever held at once: a process holds a run
(64 MB), or a few numbers for every record of its range, however many of them are one user's.

What is shuffled lies in files for the owner's eyes, in the cache, never in the memory or the spilled files of whoever
runs the stages: those are told a folder and numbers. What is finished has a manifest, and stays after a kill.
"""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from harness.data.answers import Piece
from harness.data.building import EVALUATION, LISTED, TRAINED_ON, Problems, ShardWriter, Steps, finish
from harness.data.manifest import intact, whole
from harness.data.quiet import Quiet
from harness.data.runs import INDEX, INDEX_SCHEMA, PART_BITS, Gathered, RunWriter
from harness.data.sources.base import BadRecord, Record
from harness.data.sources.files import FileSource
from harness.data.sources.parts import Part, lines_before, parts_of, placed
from harness.data.sources.seen import Seen
from harness.data.tables import mapped
from harness.errors import ArgumentError
from harness.files import create_private, private_folder, write_private

Stage = Literal["part", "shard"]
Run = Callable[[Path, Stage, Sequence[int]], None]
"""Does `do` for every number, in any order and any process; raises what is said of the first that failed."""

CORPUS = "corpus"
MOST_SHARDS = 256
"""Whoever reads the corpus has the three files of each shard open."""

_WORK, _STATE, _RANGES, _SEEN, _FOUND = "work.pickle", "state.json", "ranges.json", "seen.json", "found.json"
_SHARD_BYTES = 1 << 28
_FORMAT = 1
"""Of a workplace: its files, and where parts and shards begin. What was left of another is not gone on with."""


@dataclass(frozen=True)
class Sharding:
    """Who prepares.

    Attributes:
        blocks: About so many parts, and at most so many shards; None: as the data's size asks for.
        workers: Gives what runs the stages, for as long as they last.
    """

    blocks: int | None
    workers: Callable[[], AbstractContextManager[Run]]


def prepare(folder: Path, fingerprint: str, steps: Steps, sharding: Sharding) -> Path:
    """Builds a corpus, or goes on with it.

    Args:
        folder: Its workplace, on storage that all workers see; may have been left by a kill.
        fingerprint: Of the corpus.
        steps: How it is made.
        sharding: By whom.

    Returns:
        The corpus's folder, within `folder`.

    Raises:
        ArgumentError: The source can't be read, fails, or can't be sent to another process.
        OSError: The folder can't be written.
    """
    work = Work.of(folder, steps, sharding.blocks)
    work.save(sharding.blocks)
    with sharding.workers() as run:
        _run(run, folder, "part", [work.part_folder(n) for n in range(len(work.parts))])
        ranges = work.ranges(sharding.blocks)
        _keep_ranges(folder, json.dumps(ranges).encode())
        shards = [work.shard_folder(n) for n in range(len(ranges["first"]))]
        _run(run, folder, "shard", shards)
    corpus = folder / CORPUS
    for left in corpus.iterdir():
        if left not in shards:  # of an attempt to finish
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    finish(corpus, fingerprint, steps, [shard.name for shard in shards], _problems(shards))
    return corpus


def _keep_ranges(folder: Path, ranges: bytes) -> None:
    """Notes where shards begin. Those that began elsewhere (of another version of a library, say) are gone.

    Kept beside others, they would have some users twice and others not at all.
    """
    path = folder / _RANGES
    if not (path.exists() and path.read_bytes() == ranges):
        shutil.rmtree(folder / CORPUS, ignore_errors=True)
        write_private(path, ranges)


def _run(run: Run, folder: Path, stage: Stage, places: Sequence[Path]) -> None:
    """Has those done that aren't yet."""
    above = private_folder(places[0].parent)
    for left in above.glob(".*"):  # half done
        shutil.rmtree(left, ignore_errors=True)
    missing = [number for number, place in enumerate(places) if not intact(place)]
    if missing:
        run(folder, stage, missing)


def _problems(shards: Sequence[Path]) -> dict[str, Any]:
    """What all shards say of the data, in the order of the records."""
    bad, differing, shortened = list[Any](), list[Any](), list[Any]()
    totals = dict.fromkeys(("bad", "differing", "shortened"), 0)
    for shard in shards:
        found = json.loads((shard / _FOUND).read_bytes())
        bad = sorted(bad + found["bad"])[:LISTED]
        differing = sorted(differing + found["differing"])[:LISTED]
        shortened = (shortened + found["shortened"])[:LISTED]
        totals = {name: total + found["totals"][name] for name, total in totals.items()}
    return {
        "bad_records": {
            "total": totals["bad"],
            "listed": [{"where": where, "reason": reason, "user": user} for _, where, reason, user in bad],
        },
        "differing_attributes": {
            "total": totals["differing"],
            "listed": [{"user": user, "columns": columns} for _, user, columns in differing],
        },
        "shortened_answers": {
            "total": totals["shortened"],
            "listed": [{"user": user, "answers": answers} for user, answers in shortened],
        },
    }


def do(folder: Path, stage: Stage, number: int) -> None:
    """One part or one shard, in whatever process. Does nothing twice."""
    path = folder / _WORK
    work = _loaded(path, path.stat().st_mtime_ns)
    with Quiet(work.steps.private_dir):
        work.do_part(number) if stage == "part" else work.do_shard(number)


def error_log(folder: Path) -> Path:
    """Where the details of a failure go."""
    path = folder / _WORK
    private_dir = _loaded(path, path.stat().st_mtime_ns).steps.private_dir
    return (folder if private_dir is None else private_folder(private_dir)) / "preparation-error.log"


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, _written: int) -> Work:
    """What `Work.save` wrote: our own, in a folder that nobody else can enter."""
    with path.open("rb") as file:
        work: Work = pickle.load(file)
    return work


@dataclass(frozen=True)
class Work:
    """What any process must know to do a part or a shard.

    Attributes:
        folder: The workplace.
        steps: What is done.
        parts: Of the source, then of its evaluation file.
        training: How many are of the source.
    """

    folder: Path
    steps: Steps
    parts: tuple[Part, ...]
    training: int

    @classmethod
    def of(cls, folder: Path, steps: Steps, blocks: int | None) -> Work:
        """Splits the source."""
        own = parts_of(steps.source, blocks)
        other = steps.source.evaluation
        return cls(folder, steps, (*own, *(parts_of(other, blocks) if other is not None else ())), len(own))

    def save(self, blocks: int | None) -> None:
        """Writes it for other processes; what was left by another work is gone.

        Raises:
            ArgumentError: It can't be written: the source, or the tokenizer, lives in this process alone.
        """
        try:
            written = pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError):
            written = b""
        if not written:
            message = "the source, or the tokenizer of model.base, can't be sent to another process; use engine: single"
            raise ArgumentError(f"compute.prepare.engine: {message}")
        state = json.dumps([_FORMAT, blocks, [_identity(part) for part in self.parts]]).encode()
        path = self.folder / _STATE
        if self.folder.exists() and not (path.exists() and path.read_bytes() == state):
            shutil.rmtree(self.folder)
        private_folder(self.folder)
        write_private(path, state)
        write_private(self.folder / _WORK, written)

    def part_folder(self, number: int) -> Path:
        """Where a part's rows lie."""
        return self.folder / "parts" / f"part-{number:05d}"

    def shard_folder(self, number: int) -> Path:
        """Where a shard's tables lie."""
        return self.folder / CORPUS / f"shard-{number:05d}"

    # --- parts ----------------------------------------------------------------------------------------------

    def do_part(self, number: int) -> None:
        """Reads, checks and tokenises a part, and writes its runs."""
        part, steps = self.parts[number], self.steps
        seen = Seen(getattr(part.source, "key", ""))
        places = deque[int]()
        with whole(self.part_folder(number)) as folder:
            with RunWriter(folder, steps.columns) as runs:

                def usable() -> Iterator[tuple[Record, list[Piece]]]:
                    records = steps.records(part.source, lambda: part.records(steps.columns, seen))
                    for place, record in enumerate(records, start=number << PART_BITS):
                        ready = steps.ready(record)
                        if isinstance(ready, BadRecord):
                            runs.add_bad(record, ready, place)
                        else:
                            places.append(place)
                            yield ready

                for record, tokens, loss in steps.tokenized(usable()):
                    runs.add(record, places.popleft(), tokens, loss)
            with create_private(folder / _SEEN) as file:
                file.write(json.dumps(vars(seen)).encode())

    # --- between the stages ---------------------------------------------------------------------------------

    def ranges(self, blocks: int | None) -> dict[str, Any]:
        """The first name of every shard, and for each part the lines of its file before it.

        Raises:
            ArgumentError: A declared column occurs nowhere, or there are no records.
        """
        lines = self._checked()
        index = pa.concat_tables(
            pa.Table.from_batches(mapped(self.part_folder(n) / INDEX), schema=INDEX_SCHEMA)
            for n in range(len(self.parts))
        ).sort_by("first")
        ends = np.cumsum(index.column("bytes").to_numpy()) if index.num_rows else np.zeros(1, np.int64)
        shards = blocks or -(-int(ends[-1]) // _SHARD_BYTES)
        shards = max(1, min(shards, MOST_SHARDS))
        at = np.searchsorted(ends, ends[-1] / shards * np.arange(1, shards), side="right")
        names = {index.column("first")[int(i)].as_py() for i in at if i < index.num_rows}
        return {"first": ["", *sorted(names - {""})], "before": lines}

    def _checked(self) -> list[int]:
        lines: list[int] = []
        for source, numbers in (
            (self.steps.source, range(self.training)),
            (self.steps.source.evaluation, range(self.training, len(self.parts))),
        ):
            all_of_it, own = Seen(getattr(source, "key", "")), list[int]()
            for number in numbers:
                of_part = Seen()
                vars(of_part).update(json.loads((self.part_folder(number) / _SEEN).read_bytes()))
                all_of_it.merge(of_part)
                own.append(of_part.lines if self.parts[number].span is not None else 0)
            if isinstance(source, FileSource) and self.parts[numbers[0]].files:
                all_of_it.check(self.steps.columns, source.source_name)
            lines += lines_before([self.parts[n] for n in numbers], own)
        return lines

    # --- shards ---------------------------------------------------------------------------------------------

    def do_shard(self, number: int) -> None:
        """Writes the users of a range of names."""
        ranges = json.loads((self.folder / _RANGES).read_bytes())
        firsts = [*ranges["first"], None]
        parts = [self.part_folder(n) for n in range(len(self.parts))]
        gathered = Gathered(parts, self.training, self.steps.columns, firsts[number], firsts[number + 1])
        problems = Problems()
        with whole(self.shard_folder(number)) as folder:
            with ShardWriter(folder, self.steps, problems) as shard:
                for user, held, attributes, rows in gathered.users():
                    shard.add(user, attributes, held, gathered.table, rows)
            total, listed = gathered.bad(LISTED)
            differing, shortened = gathered.differing(), list(problems.shortened.items())
            found = {
                "bad": [self._told(one, ranges["before"]) for one in listed],
                "differing": differing[:LISTED],
                "shortened": shortened[:LISTED],
                "totals": {"bad": total, "differing": len(differing), "shortened": sum(n for _, n in shortened)},
            }
            with create_private(folder / _FOUND) as file:
                file.write(json.dumps(found).encode())

    def _told(self, bad: tuple[int, str, str | None, str | None], before: list[int]) -> list[Any]:
        """What is said of a record that can't be used: its place, where it is in its file, why, and whose it is."""
        place, where, reason, user = bad
        number = place >> PART_BITS
        said = placed(where, before[number])
        return [place, f"{EVALUATION if number >= self.training else ''}{said}", reason or TRAINED_ON, user]


def _identity(part: Part) -> list[Any]:
    """What tells a part from that of other data, or of the same data before somebody wrote into them."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in part.files if path.exists()]
    return [files, part.span]
