"""On the cluster, as a job of its own: prints the released files of a run, for whoever does not see the storage.

Nothing private is among them: no folder that is called ``private`` is entered, and no link is followed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

MARK = "uudp-files:"
"""Begins the lines that hold them."""
LARGEST = 64 * 1024**2
"""Bytes that go through a job's log."""
WIDTH = 8192
PRIVATE = "private"


def released(root: Path) -> Iterator[tuple[str, Path]]:
    """Released files below a run's folder, or a suite's, by their relative paths."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != PRIVATE and not (Path(here) / name).is_symlink())
        for name in sorted(files):
            path = Path(here) / name
            if path.is_file() and not path.is_symlink() and not name.startswith("."):
                yield path.relative_to(root).as_posix(), path


def digest(content: bytes) -> str:
    """Of a file, for whoever receives it."""
    return hashlib.sha256(content).hexdigest()


def send(root: Path) -> int:
    """Prints the files below `root`; returns an exit code."""
    found = list(released(root))
    size = sum(path.stat().st_size for _, path in found)
    if not found or size > LARGEST:
        reason = f"{root} holds nothing" if not found else f"{root} holds {size >> 20} MiB, too much for a job's log"
        print(f"uudp: {reason}", flush=True)
        return 2 if not found else 4
    contents = [path.read_bytes() for _, path in found]
    files = [[name, len(content), digest(content)] for (name, _), content in zip(found, contents, strict=True)]
    print(MARK + json.dumps(files))
    text = base64.b64encode(zlib.compress(b"".join(contents))).decode()
    for start in range(0, len(text), WIDTH):
        print(MARK + text[start : start + WIDTH])
    print(MARK, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(send(Path(sys.argv[1])))
