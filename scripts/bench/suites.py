"""Keeps what leaderboard suites found, and writes their tables into the README, or checks that they are there.

    uudp bench shakespeare --yes --out runs
    python scripts/bench/suites.py --keep runs/shakespeare
    python scripts/bench/suites.py [--check]

Kept, in ``results/suites/<suite>``, are results.jsonl and of each run what its ε is computed again from: spec, plan,
mechanism, metrics and audit. Adapters and reports are too large, and ``private/`` is nobody's. A table stands in
README.md between two comments; each of its ε is recomputed while it is made. With --check nothing is written, and the
exit code is 1 where the README differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import table

SUITES = table.RESULTS / "suites"
KEPT = ("spec.yaml", "plan.json", "privacy.json", "metrics.jsonl", "audit.json")


def main() -> None:
    """Keeps, writes or compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a suite's folder, with results.jsonl")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README differs")
    parser.add_argument("--readme", type=Path, default=table.README)
    parser.add_argument("--results", type=Path, default=SUITES)
    options = parser.parse_args()
    if options.keep is not None:
        keep(options.keep, options.results)
    before = after = options.readme.read_text(encoding="utf-8")
    for folder in sorted(path for path in options.results.iterdir() if path.is_dir()):
        begin = f"<!-- suite {folder.name}: begin (made by scripts/bench/suites.py) -->"
        after = table.renewed(after, rendered(folder), begin, f"<!-- suite {folder.name}: end -->")
    if before == after:
        return
    if options.check:
        sys.exit(f"suites: a table in {options.readme.name} is stale: run python scripts/bench/suites.py")
    options.readme.write_text(after, encoding="utf-8")


def keep(suite: Path, results: Path) -> None:
    """Copies the small released files of a suite's finished runs, in place of those that were kept before."""
    lines = suite / "results.jsonl"
    if not lines.is_file():
        sys.exit(f"suites: {suite} has no results.jsonl: a folder that uudp bench wrote")
    target = results / suite.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(lines, target / lines.name)
    for line in lines.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)["run"]
        (target / run).mkdir(parents=True)
        for file in (suite / run / name for name in KEPT):
            if file.is_file():
                (target / run / file.name).write_text(anywhere(file), encoding="utf-8")


def anywhere(file: Path) -> str:
    """A file's text; of a plan without the origins of its values, which are paths of the machine that made it."""
    text = file.read_text(encoding="utf-8")
    if file.name != "plan.json":
        return text
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "origins"}) + "\n"


def rendered(folder: Path) -> str:
    """A suite's table, as ``uudp leaderboard --markdown`` prints it."""
    from harness.reporting.leaderboard.document import markdown
    from harness.reporting.leaderboard.gathering import gather

    return markdown(gather([folder]), folder.name).strip() + "\n"


if __name__ == "__main__":
    main()
