"""Files in an object store, as far as sources use a `Path`: named by a URL, listed, and read as streams."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

from harness.errors import ArgumentError
from harness.places import Place, place_problem

SCHEME = "s3://"
KEY = "data.source.path"


@dataclass(frozen=True)
class _Facts:
    """What `os.stat` would say.

    Attributes:
        st_size: Bytes.
        st_mtime_ns: Time of the last change.
    """

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class ObjectFile:
    """One object. It answers to what this package asks of a `Path`; anything else fails.

    Attributes:
        url: With options.
        key: Of the spec, that names it.
    """

    url: str
    key: str

    def __str__(self) -> str:
        return unquote(self.url.partition("?")[0])

    def __fspath__(self) -> str:
        """No file of this machine: what tells names apart, where local files are among them."""
        return f"/{SCHEME.rstrip(':/')}/{str(self).removeprefix(SCHEME)}"

    @property
    def name(self) -> str:
        """As of a path."""
        return PurePosixPath(str(self)).name

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(str(self)).suffix

    @property
    def suffixes(self) -> list[str]:
        """As of a path."""
        return PurePosixPath(str(self)).suffixes

    @property
    def parent(self) -> PurePosixPath:
        """As of a path."""
        return PurePosixPath(self.__fspath__()).parent

    def open(self, mode: str = "rb") -> BinaryIO:
        """A stream of its bytes.

        Raises:
            OSError, MachineError: It is not there, or can't be read.
        """
        if mode != "rb":
            raise ValueError("objects are only read")
        return self._place().stream(self._inside())

    def stat(self) -> _Facts:
        """Its size, and when it was written.

        Raises:
            FileNotFoundError: It is not there.
        """
        for _, size, changed in self._place().files(self._inside(), below=False):
            return _Facts(size, changed)
        raise FileNotFoundError(2, "there is no such object")

    def exists(self) -> bool:
        """Whether it is there."""
        return bool(self._place().files(self._inside(), below=False))

    def _place(self) -> Place:
        parts = urlsplit(self.url)
        return _bucket(parts.netloc, parts.query, self.key)

    def _inside(self) -> str:
        return unquote(urlsplit(self.url).path).strip("/")


def is_object(given: str) -> bool:
    """Whether a path of a spec names an object, or a glob of objects."""
    return given.startswith(SCHEME)


def file_at(given: str, key: str = KEY) -> Path:
    """The file of that name: of this machine, or an object."""
    return cast(Path, ObjectFile(given, key)) if is_object(given) else Path(given).expanduser()


@functools.lru_cache(maxsize=64)
def _bucket(netloc: str, query: str, key: str) -> Place:
    return Place(f"{SCHEME}{netloc}" + (f"?{query}" if query else ""), key)


def locate_objects(url: str, key: str) -> list[str]:
    """The URLs of all objects that a URL names: one, or those of a glob (``*``, ``[…]``, ``**``), sorted.

    Raises:
        ArgumentError: There is none.
        MachineError: The store can't be asked.
    """
    if problem := place_problem(url):
        raise ArgumentError(f"{key}: {problem}")
    parts = urlsplit(url)
    place = _bucket(parts.netloc, parts.query, key)
    pattern = unquote(parts.path).strip("/")
    shown = url.partition("?")[0]
    if not pattern:
        raise ArgumentError(f"{key}: {shown} names no object of the bucket (for all of them: {shown.rstrip('/')}/**)")
    magic = glob.has_magic(pattern)
    steps = PurePosixPath(pattern).parts
    fixed = next((i for i, step in enumerate(steps) if glob.has_magic(step)), len(steps))
    below = fixed < len(steps) - 1 or "**" in steps
    names = sorted(name for name, _, _ in place.files("/".join(steps[:fixed]), below=below))
    wanted = re.compile("".join(_translated(steps)))
    found = [name for name in names if (wanted.fullmatch(name) if magic else name == pattern)]
    if not found and names and not magic:
        raise ArgumentError(f"{key}: {shown} is a folder, not a file (for all of its files: {shown}/*)")
    if not found:
        raise ArgumentError(f"{key}: no object matches {shown}" if magic else f"{key}: there is no object {shown}")
    options = f"?{parts.query}" if parts.query else ""
    return [f"{SCHEME}{parts.netloc}/{quote(name)}{options}" for name in found]


def _translated(steps: tuple[str, ...]) -> Iterator[str]:
    """A regular expression, step by step."""
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if step == "**":
            yield ".*" if last else "(?:[^/]+/)*"
            continue
        for piece in re.findall(r"\*|\[!?[^\]]+\]|.", step):
            if piece == "*":
                yield "[^/]*"
            elif piece.startswith("[") and len(piece) > 1:
                inside = piece[1:-1].replace("\\", r"\\")
                yield f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
            else:
                yield re.escape(piece)
        yield "" if last else "/"
