"""Released files in a folder or an object store that laptop and cluster both reach: copied there, and brought back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from harness.cluster.sending import PRIVATE, digest, released
from harness.errors import MachineError
from harness.places import Place

MANIFEST = ".uudp-files.json"
"""Of all files with their digests; written last, so that what it names is there."""
LARGEST_MANIFEST = 16 * 1024**2


class Results:
    """Where released files of one run, or of a suite, lie."""

    def __init__(self, url: str, kept: PurePosixPath) -> None:
        """Args: `url`: ``compute.results``; `kept`: the run's place below it.

        Raises:
            ArgumentError: It can be no such place.
        """
        self._place = Place(url, "compute.results", str(kept))

    def publish(self, root: Path) -> int:
        """Copies the released files of a folder there; returns how many.

        Raises:
            MachineError: It can't be written there.
        """
        listed = []
        for name, path in released(root):
            content = path.read_bytes()
            self._place.write(name, content)
            listed.append([name, len(content), digest(content)])
        if listed:
            self._place.write(MANIFEST, json.dumps(listed).encode())
        return len(listed)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """All files, each as it was written; none where nothing was published.

        Raises:
            MachineError: It can't be read, or is not what a run releases.
        """
        shown = self._place.shown
        text = self._place.read(MANIFEST, LARGEST_MANIFEST)
        if text is None:
            return
        try:
            listed = [(str(name), int(size), str(sha)) for name, size, sha in json.loads(text)]
        except (ValueError, TypeError):
            raise MachineError(f"what lies in {shown} was not written by uudp") from None
        for name, size, sha in listed:
            check_name(name)
            content = self._place.read(name, size)
            if content is None or digest(content) != sha:
                raise MachineError(f"{shown}: {name} is not what was published; it may be written now: try again")
            yield name, content


def check_name(name: str) -> None:
    """Refuses what no run releases.

    Raises:
        MachineError: This could lie elsewhere, or is private.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or PRIVATE in parts or "\0" in name:
        raise MachineError("the cluster sent what no run releases")
