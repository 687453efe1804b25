"""Folders that are there as a whole or not at all, and say of their files how long they are and what they add up to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.files import create_private

MANIFEST = "manifest.json"


@contextlib.contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, which takes that place with a manifest once all is written into it."""
    new = place.with_name(f".{place.name}-{secrets.token_hex(8)}")
    new.mkdir(mode=0o700)
    try:
        yield new
        told = {path.name: _told(path) for path in sorted(new.iterdir())}
        with create_private(new / MANIFEST) as file:
            file.write(json.dumps(told, indent=1).encode())
        try:
            new.rename(place)
        except OSError:
            if not place.exists():  # another process may have been faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def intact(place: Path) -> bool:
    """Whether `place` is there as it was written; what is damaged is removed."""
    try:
        told = json.loads((place / MANIFEST).read_bytes())
        if all(_told(place / name) == found for name, found in told.items()):
            return True
    except (OSError, ValueError, AttributeError):
        pass
    shutil.rmtree(place, ignore_errors=True)
    return False


def _told(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]
