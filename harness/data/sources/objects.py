"""Files in an object store, as far as sources use a `Path`: named by a URL, listed, and read as streams."""

from __future__ import annotations

import fnmatch
import functools
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

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
        """No file of this machine: what tells objects apart, where local files are among them."""
        store = dict(parse_qsl(urlsplit(self.url).query)).get("endpoint_override", "")
        return f"/{SCHEME.rstrip(':/')}/{store.rpartition('/')[2]}/{str(self).removeprefix(SCHEME)}"

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
    return given[: len(SCHEME)].lower() == SCHEME


def check_object(given: str, key: str) -> None:
    """Looks at a URL of objects, without asking for them.

    Raises:
        ArgumentError: It can be none; it is not quoted, since it may hold a key.
    """
    if problem := place_problem(given):
        raise ArgumentError(f"{key}: {problem}")


def file_at(given: str, key: str = KEY) -> Path:
    """The file of that name: of this machine, or an object."""
    if not is_object(given):
        return Path(given).expanduser()
    return cast(Path, ObjectFile(SCHEME + given[len(SCHEME) :], key))


@functools.lru_cache(maxsize=64)
def _bucket(netloc: str, query: str, key: str) -> Place:
    return Place(f"{SCHEME}{netloc}" + (f"?{query}" if query else ""), key)


def locate_objects(url: str, key: str) -> list[str]:
    """The URLs of all objects that a URL names: one, or those of a glob (``*``, ``[…]``, ``**``), sorted.

    Raises:
        ArgumentError: There is none.
        MachineError: The store can't be asked.
    """
    check_object(url, key)
    parts = urlsplit(url)
    place = _bucket(parts.netloc, parts.query, key)
    pattern = unquote(parts.path).strip("/")
    shown = unquote(url.partition("?")[0]).rstrip("/")
    if not pattern:
        raise ArgumentError(f"{key}: {shown} names no object of the bucket (for all of them: {shown}/**)")
    magic = glob.has_magic(pattern)
    steps = PurePosixPath(pattern).parts
    fixed = next((i for i, step in enumerate(steps) if glob.has_magic(step)), len(steps))
    below = fixed < len(steps) - 1 or "**" in steps
    names = sorted(name for name, _, _ in place.files("/".join(steps[:fixed]), below=below))
    found = [name for name in names if (_matches(steps, name.split("/")) if magic else name == pattern)]
    if not found and names and not magic:
        raise ArgumentError(f"{key}: {shown} is a folder, not a file (for all of its files: {shown}/*)")
    if not found:
        raise ArgumentError(f"{key}: no object matches {shown}" if magic else f"{key}: there is no object {shown}")
    options = f"?{parts.query}" if parts.query else ""
    return [f"{SCHEME}{parts.netloc}/{quote(name)}{options}" for name in found]


def _matches(steps: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a name are those of a glob, step by step; ``**`` is any number of them."""
    if not steps or not parts:
        return not steps and not parts
    if steps[0] == "**":
        return len(steps) == 1 or any(_matches(steps[1:], parts[i:]) for i in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], steps[0]) and _matches(steps[1:], parts[1:])
