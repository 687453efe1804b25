"""Folders and prefixes of object stores that several machines reach, named by a URL in a spec.

Credentials are the environment's affair (``AWS_ACCESS_KEY_ID``, a profile, a machine's role): they are never read here.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

from harness.environment import take_keys
from harness.errors import ArgumentError, MachineError
from harness.files import UNWRITABLE, create_private, private_folder

SHAPES = "s3://BUCKET/PREFIX or a folder (absolute), as /mnt/results or file:///mnt/results"
OPTIONS = ("region", "endpoint_override", "scheme")
"""What may follow the ``?`` of an ``s3:`` URL; none of it is secret."""
SECONDS = (10.0, 20.0)
"""An object store may take so long to connect, and then be so long silent; it is asked three times."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"(https?://)?[A-Za-z0-9.-]+(:\d{1,5})?")
_PIECE = 1 << 23
_SHORT = {code: os.strerror(code).lower() for code in (*UNWRITABLE, errno.EACCES, errno.EPERM, errno.ENOENT)}
"""What may be said of an error as it is."""


def place_problem(url: str) -> str | None:
    """What is wrong with a URL, if anything. Never quotes it: somebody may have put a key there."""
    if not url.isprintable() or url != url.strip() or "\\" in url or "#" in url:
        return "holds blanks at an end, control characters, # or a backslash"
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        return f"can't be read as a URL, {SHAPES}"
    if "@" in parts.netloc:
        return "holds a key, and specs are copied into runs; leave it to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if ".." in unquote(parts.path).split("/"):
        return "can't hold .."
    if parts.scheme in ("", "file"):
        good = parts.path.startswith("/") and len(parts.path) > 1 and not parts.netloc and not parts.query
        return None if good else f"must be {SHAPES}"
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
        return f"must be {SHAPES}"
    if unknown := sorted(set(options) - set(OPTIONS)):
        return f"only {', '.join(OPTIONS)} can follow the ?, found {unknown[0][:20]}"
    if "scheme" in options and options["scheme"] not in ("http", "https"):
        return "scheme must be http or https"
    if "endpoint_override" in options and not _ENDPOINT.fullmatch(options["endpoint_override"]):
        return "endpoint_override must be HOST:PORT"
    return None


class Place:
    """Files below a URL. What can't be done there is one line, without what a request says of who made it.

    Attributes:
        shown: The URL, as far as messages name it.
    """

    def __init__(self, url: str, key: str, *below: str, private: bool = False) -> None:
        """Takes a URL.

        Args:
            url: Of the spec.
            key: Of the spec, that names it; for errors.
            below: Further parts of the path.
            private: In a folder, new files are for their owner's eyes; of a bucket, that is for its policy to say.

        Raises:
            ArgumentError: It can be no such place.
        """
        if problem := place_problem(url):
            raise ArgumentError(f"{key}: {problem}")
        parts = urlsplit(url)
        self.shown = url.partition("?")[0].rstrip("/")
        path = (unquote(parts.path) if parts.scheme else parts.path).strip("/")
        self._local, self._private, self._key = parts.scheme != "s3", private, key
        base = f"/{path}" if self._local else str(PurePosixPath(parts.netloc, path))
        self._base, self._options = PurePosixPath(base, *below), dict(parse_qsl(parts.query))

    def write(self, name: str, content: bytes) -> None:
        """Writes a file.

        Raises:
            MachineError: It can't be written.
        """
        self._asked("written", "", self._write, name, lambda file: file.write(content))

    def copy(self, path: Path, name: str) -> None:
        """Copies a local file there, a piece of it in memory at a time.

        Raises:
            MachineError: It can't be written.
        """
        with path.open("rb") as source:
            self._asked("written", "", self._write, name, lambda file: shutil.copyfileobj(source, file, _PIECE))

    def read(self, name: str, most: int) -> bytes | None:
        """A file of at most so many bytes, and what is one byte more of a longer one; None: there is none.

        Raises:
            MachineError: It can't be read.
        """
        found: bytes | None = self._asked("read", "", self._read, name, most)
        return found

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        """What reads a file's bytes from a place on, so many of them; several threads may ask at once.

        It raises a MachineError where they can't be read.
        """
        files: list[Any] = []

        def read(start: int, length: int) -> bytes:
            if not files:
                files.append(self._system.open_input_file(str(self._base / name)))
            return bytes(files[0].read_at(length, start))

        return lambda start, length: bytes(self._asked("read", "", read, start, length))

    def stream(self, name: str) -> BinaryIO:
        """A file to read from, some megabytes at a time.

        Raises:
            MachineError: There is none, or it can't be read.
        """
        file = self._asked("read", name, self._system.open_input_file, str(self._base / name))
        return _Buffered(_Stream(file, functools.partial(self._asked, "read", name)), _PIECE)

    def files(self, folder: str, *, below: bool) -> list[tuple[str, int, int]]:
        """The files in a folder: each one's name, size in bytes, and time of its last change in nanoseconds.

        Args:
            folder: Its name, or that of a file.
            below: Also those of folders in it.

        Raises:
            MachineError: It can't be read.
        """
        found: list[tuple[str, int, int]] = self._asked("read", folder, self._files, str(self._base / folder), below)
        return found

    def _files(self, path: str, below: bool) -> list[tuple[str, int, int]]:
        from pyarrow import fs

        looked = self._system.get_file_info(path)
        if looked.type == fs.FileType.Directory:
            every = self._system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=below))
        else:
            every = [looked]
        start = len(str(self._base)) + 1
        return [(one.path[start:], one.size, one.mtime_ns or 0) for one in every if one.type == fs.FileType.File]

    @cached_property
    def _system(self) -> Any:
        from pyarrow import fs

        if self._local:
            return fs.LocalFileSystem()
        take_keys()
        return fs.S3FileSystem(
            **self._options, connect_timeout=SECONDS[0], request_timeout=SECONDS[1], background_writes=False,
            allow_delayed_open=True,  # what is small is one request
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )  # fmt: skip

    def _write(self, name: str, fill: Callable[[Any], Any]) -> None:
        path = self._base / name
        if not self._local:
            with self._system.open_output_stream(str(path)) as stream:
                fill(stream)
            return
        if self._private:
            private_folder(Path(path).parent)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        new = Path(path.with_name(f".{path.name}.new"))
        new.unlink(missing_ok=True)
        with create_private(new) if self._private else new.open("wb") as file:
            fill(file)
        new.replace(path)

    def _read(self, name: str, most: int) -> bytes | None:
        try:
            with self._system.open_input_file(str(self._base / name)) as stream:
                return bytes(stream.read(most + 1))
        except FileNotFoundError:
            return None

    def _asked(self, done: str, name: str, what: Callable[..., Any], *given: Any) -> Any:
        try:
            return what(*given)
        except (OSError, ValueError) as error:  # its text may quote a request, with who made it
            found = re.search(r"AWS Error (\w+)", str(error))
            why = (
                found[1].lower().replace("_", " ")
                if found
                else _SHORT.get(getattr(error, "errno", None) or 0, "no answer")
            )
            shown = f"{self.shown}/{name}" if name else self.shown
            raise MachineError(f"{self._key}: {shown} can't be {done}: {why}") from None


class _Buffered(io.BufferedReader):
    """Never asks for less than its buffer holds: for texts, 8 KiB are wanted at a time, and each would be a request."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)
        return super().read1(size)


class _Stream(io.RawIOBase):
    """An object that is read from one place on. What goes wrong meanwhile is said as of all else."""

    def __init__(self, file: Any, asked: Callable[..., Any]) -> None:
        self._file, self._asked = file, asked

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any, /) -> int:
        return int(self._asked(self._file.readinto, buffer))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
