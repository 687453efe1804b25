"""Released files in a folder or an object store that laptop and cluster both reach: copied there, and brought back.

Credentials are the environment's affair (``AWS_ACCESS_KEY_ID``, a profile, a machine's role): they are never read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from harness.cluster.sending import PRIVATE, digest, released
from harness.errors import ArgumentError, MachineError
from harness.spec.results_url import results_problem

MANIFEST = ".uudp-files.json"
"""Of all files with their digests; written last, so that what it names is there."""
SECONDS = (10.0, 60.0)
"""An object store may take so long to connect, and then to answer."""
LARGEST_MANIFEST = 16 * 1024**2


class Results:
    """Where released files of one run, or of a suite, lie."""

    def __init__(self, url: str, kept: PurePosixPath) -> None:
        """Args: `url`: ``compute.results``; `kept`: the run's place below it.

        Raises:
            ArgumentError: It can be no such place.
        """
        if problem := results_problem(url):
            raise ArgumentError(f"compute.results: {problem}")
        parts = urlsplit(url)
        self.shown = url.partition("?")[0].rstrip("/")
        path = unquote(parts.path).strip("/")
        self._local = parts.scheme != "s3"
        base = f"/{path}" if self._local else str(PurePosixPath(parts.netloc, path))
        self._base, self._options = PurePosixPath(base, kept), dict(parse_qsl(parts.query))

    def publish(self, root: Path) -> int:
        """Copies the released files of a folder there; returns how many.

        Raises:
            MachineError: It can't be written there.
        """
        files = self._asked("written", self._system)
        listed = []
        for name, path in released(root):
            content = path.read_bytes()
            self._asked("written", self._write, files, name, content)
            listed.append([name, len(content), digest(content)])
        if listed:
            self._asked("written", self._write, files, MANIFEST, json.dumps(listed).encode())
        return len(listed)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """All files, each as it was written; none where nothing was published.

        Raises:
            MachineError: It can't be read, or is not what a run releases.
        """
        system = self._asked("read", self._system)
        text = self._asked("read", self._read, system, MANIFEST, LARGEST_MANIFEST)
        if text is None:
            return
        try:
            listed = [(str(name), int(size), str(sha)) for name, size, sha in json.loads(text)]
        except (ValueError, TypeError):
            raise MachineError(f"what lies in {self.shown} was not written by uudp") from None
        for name, size, sha in listed:
            check_name(name)
            content = self._asked("read", self._read, system, name, size)
            if content is None or digest(content) != sha:
                raise MachineError(f"{self.shown}: {name} is not what was published; it may be written now: try again")
            yield name, content

    def _system(self) -> Any:
        from pyarrow import fs

        if self._local:
            return fs.LocalFileSystem()
        return fs.S3FileSystem(
            **self._options, connect_timeout=SECONDS[0], request_timeout=SECONDS[1], background_writes=False,
            allow_delayed_open=True,  # what is small is one request
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )  # fmt: skip

    def _write(self, system: Any, name: str, content: bytes) -> None:
        path = self._base / name
        if not self._local:
            with system.open_output_stream(str(path)) as stream:
                stream.write(content)
            return
        system.create_dir(str(path.parent), recursive=True)
        new = path.with_name(f".{path.name}.new")
        with system.open_output_stream(str(new)) as stream:
            stream.write(content)
        system.move(str(new), str(path))

    def _read(self, system: Any, name: str, most: int) -> bytes | None:
        """A file of at most so many bytes, and what is one byte more of a longer one; None: there is none."""
        try:
            with system.open_input_file(str(self._base / name)) as stream:
                return bytes(stream.read(most + 1))
        except FileNotFoundError:
            return None

    def _asked(self, done: str, what: Callable[..., Any], *given: Any) -> Any:
        try:
            return what(*given)
        except (OSError, ValueError) as error:  # its text may quote a request, with who made it
            found = re.search(r"AWS Error (\w+)", str(error))
            why = found[1].lower().replace("_", " ") if found else getattr(error, "strerror", None) or "no answer"
            raise MachineError(f"compute.results: {self.shown} can't be {done}: {why}") from None


def check_name(name: str) -> None:
    """Refuses what no run releases.

    Raises:
        MachineError: This could lie elsewhere, or is private.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or PRIVATE in parts or "\0" in name:
        raise MachineError("the cluster sent what no run releases")
