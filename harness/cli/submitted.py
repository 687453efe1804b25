"""``python -m harness.cli.submitted``: what a submitted job is where its results are copied to ``compute.results``."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from harness.cli import console, main
from harness.errors import UserError


def submitted(results: str, storage: str, kept: str, words: list[str]) -> int:
    """Runs one command line, copies what it has released by its end, and returns its exit code.

    Args:
        results: A URL, without a secret.
        storage: Where runs live.
        kept: The run's place below it.
        words: The command line.
    """
    from harness.cluster.results import Results

    code = main.run_app(words)
    try:
        count = Results(results, PurePosixPath(kept)).publish(Path(storage, kept))
    except UserError as error:
        console.error(f"uudp: {error}; the files are in {storage}/{kept}")
        return code or error.exit_code
    if count:
        console.err(f"copied: {count} released files to {results.partition('?')[0]}")
    return code


if __name__ == "__main__":
    sys.exit(submitted(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
