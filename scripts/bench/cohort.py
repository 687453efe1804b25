"""What it costs to draw a cohort of 1,000 users and to fetch their examples, of 10⁴ to 10⁸ users: one JSON document.

    python scripts/bench/cohort.py [--users 10000 100000 ...] [--repeats N]

Draws with `draw_cohort`, finds users with `GroupMembers` and cuts micro-batches, as every worker does at every step;
then reads each drawn example's tokens. Groups, first examples and lengths are mapped files as a corpus has
them; tokens lie in a sparse mapped file (all zero, at their real offsets), because a hundred million users' texts would
not fit. Each population has a process of its own. Its memory is what it holds itself (libraries included); pages of
mapped files, which the kernel drops whenever somebody needs the room, are reported beside it.
"""

from __future__ import annotations

import argparse
import math
import mmap
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure

TO_REACH = {"growth": 1.5, "held_bytes": 1_000_000_000}
EXAMPLES_EACH, LENGTH = 2, 64
CHUNK = 1 << 20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[10**k for k in range(4, 9)])
    parser.add_argument("--cohort", type=int, default=1000, help="expected users of a step")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the files go (left out: a temporary folder)")
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _measure.prepare(1, trains=False)
    if options.of:
        _measure.publish(one(options.of, options))
        return
    arguments = [__file__, "--cohort", str(options.cohort), "--repeats", str(options.repeats)]
    with TemporaryDirectory(prefix="uudp-bench-") as place:
        folder = options.folder or Path(place)
        found = []
        for users in options.users:
            write(folder / str(users), users)
            found.append(_measure.apart([*arguments, "--folder", str(folder / str(users)), "--of", str(users)]))
    _measure.publish(
        {
            "script": "cohort",
            "cohort": options.cohort,
            "examples_per_user": EXAMPLES_EACH,
            "tokens_per_example": LENGTH,
            "repeats": options.repeats,
            "results": found,
            **compared(found),
            "to_reach": TO_REACH,
            **_measure.machine(),
        }
    )


def compared(found: list[dict[str, Any]]) -> dict[str, Any]:
    """How the cost grows, and the table's rows."""
    done = [each for each in found if "failed" not in each]
    if not done:
        return {"rows": []}
    least = next((each for each in done if each["users"] >= 10**5), done[0])
    most = done[-1]
    growth = round(most["seconds"]["draw"] / least["seconds"]["draw"], 3)
    held, limit = most["held_bytes"] / 1e9, TO_REACH["held_bytes"] / 1e9
    sizes = [f"10^{round(math.log10(each['users']))}" for each in (most, least)]
    return {
        "growth": growth,
        "growth_of_cpu_time": round(most["draw_cpu_seconds"] / least["draw_cpu_seconds"], 3),
        "rows": [
            _measure.row(
                f"time to draw a cohort from {sizes[0]} users over one from {sizes[1]}",
                growth,
                TO_REACH["growth"],
                at_most=True,
            ),
            _measure.row(f"memory of a worker that draws from {sizes[0]} users", held, limit, at_most=True, unit=" GB"),
        ],
    }


def write(folder: Path, users: int) -> None:
    """The files of a population, a part at a time."""
    import numpy as np

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    columns = {"groups": np.int16, "holdout": np.bool_, "first_example": np.int64}
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(users,))
        for name, dtype in columns.items()
    }
    for start in range(0, users, CHUNK):
        stop = min(users, start + CHUNK)
        files["groups"][start:stop] = 0
        files["holdout"][start:stop] = draw.random(stop - start) < 0.05
        files["first_example"][start:stop] = np.arange(start, stop) * EXAMPLES_EACH
    examples = users * EXAMPLES_EACH
    for name, value in (("lengths", LENGTH), ("targets", LENGTH - 1)):
        column = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.int32, shape=(examples,))
        for start in range(0, examples, CHUNK):
            column[start : start + CHUNK] = value
    with (folder / "tokens").open("wb") as file:
        file.truncate(examples * LENGTH * 4)


class Mapped:
    """The index and the tokens of a population, all mapped."""

    def __init__(self, folder: Path, users: int) -> None:
        import numpy as np

        def column(name: str) -> Any:
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

        for name in ("first_example", "lengths", "targets"):  # as `Corpus.read_ahead`
            with (folder / f"{name}.npy").open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

        self.groups, self.holdout = column("groups"), column("holdout")
        self.first_example = column("first_example")
        self.example_lengths, self.example_targets = column("lengths"), column("targets")
        shape = (users * EXAMPLES_EACH, LENGTH)
        with (folder / "tokens").open("rb") as file:  # as `tables.mapped`, for what is scattered
            place = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        place.madvise(mmap.MADV_RANDOM)
        self._tokens = np.frombuffer(place, dtype=np.int32).reshape(shape)

    def examples_of(self, user_index: int) -> tuple[int, int]:
        following = user_index + 1
        last = self.first_example[following] if following < len(self.holdout) else len(self.example_lengths)
        return int(self.first_example[user_index]), int(last)

    def user_id(self, user_index: int) -> str:
        return str(user_index)

    def tokens(self, example_index: int) -> Any:
        return self._tokens[example_index]


def one(users: int, options: argparse.Namespace) -> dict[str, Any]:
    """One population: seconds per step and memory, in this process."""
    from harness.data.cohorts import draw_cohort, micro_batches
    from harness.data.members import GroupMembers
    from harness.privacy.mechanism import GroupMechanism, Mechanism
    from harness.privacy.randomness import Randomness

    libraries = held = _measure.resident("RssAnon")
    begin = time.perf_counter()
    corpus = Mapped(options.folder, users)
    members = GroupMembers(corpus.groups, corpus.holdout, 0)
    opened = time.perf_counter() - begin
    rate = min(1.0, options.cohort / len(members))
    group = GroupMechanism("everybody", float(len(members)), rate, 0.5, 10**6, EXAMPLES_EACH)
    mechanism, randomness = Mechanism(10**6, 0.5, (group,), "zero_out"), Randomness(bytes(32))
    seconds: dict[str, list[float]] = {"draw": [], "micro_batches": [], "fetch": []}
    sizes: list[int] = []
    cpu: list[float] = []
    minor: list[int] = []
    major: list[int] = []
    for step in range(options.repeats + 2):
        marks, busy = [time.perf_counter()], [time.process_time()]
        faults = resource.getrusage(resource.RUSAGE_SELF)
        units = draw_cohort(mechanism, (members,), corpus, randomness, step)
        marks.append(time.perf_counter())
        busy.append(time.process_time())
        after = resource.getrusage(resource.RUSAGE_SELF)
        batches = micro_batches(units, corpus.example_lengths, 4096)
        marks.append(time.perf_counter())
        read = sum(int(corpus.tokens(e).sum()) for batch in batches for e in batch.examples)
        marks.append(time.perf_counter())
        held = max(held, _measure.resident("RssAnon"))
        if read:
            raise RuntimeError("a sparse file is all zero")
        if step >= 2:
            sizes.append(len(units))
            cpu.append(busy[1] - busy[0])
            minor.append(after.ru_minflt - faults.ru_minflt)
            major.append(after.ru_majflt - faults.ru_majflt)
            for name, begin, end in zip(seconds, marks, marks[1:], strict=False):
                seconds[name].append(end - begin)
    return {
        "users": users,
        "drawn": round(sum(sizes) / len(sizes), 1),
        "opened_seconds": round(opened, 4),
        "seconds": {name: _measure.median(each, 6) for name, each in seconds.items()},
        "draw_cpu_seconds": _measure.median(cpu, 6),
        "draw_page_faults": {"minor": _measure.median(minor, 1), "major": _measure.median(major, 1)},
        "held_bytes": held,
        "of_which_libraries": libraries,
        "mapped_bytes": _measure.resident("RssFile"),
    }


if __name__ == "__main__":
    main()
