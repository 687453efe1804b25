"""Files in a folder or an object store, read by random access: in blocks, each of which must be what was written."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import MachineError

Read = Callable[[int, int], bytes]
"""Bytes of a file from a place on, so many of them."""

BLOCK = 1 << 16
DIGEST = 16
MOST_BLOCKS = 4096
"""That a process holds: 256 MiB."""
_AT_ONCE = 32


def digests_of(path: Path) -> npt.NDArray[np.uint8]:
    """The digests of a file's blocks, one after the other."""
    with path.open("rb") as file:
        found = b"".join(iter(lambda: _digest(file.read(BLOCK)), _digest(b"")))
    return np.frombuffer(found, dtype=np.uint8)


def _digest(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=DIGEST).digest()


class Blocks:
    """Blocks of several files, the last used in memory. Threads may share it."""

    def __init__(
        self, files: Sequence[tuple[Read, int]], digests: npt.NDArray[np.uint8], what: str, hint: str = "",
        most: int = MOST_BLOCKS,
    ) -> None:  # fmt: skip
        """Takes what is to be read.

        Args:
            files: Each one's reader, and its length in bytes.
            digests: Of all blocks, file by file, [blocks, 16].
            what: They are, for errors.
            hint: What can be done where one is not what was written, or is gone; the end of a message.
            most: Blocks in memory.
        """
        self.sizes = [size for _, size in files]
        self._reads = [read for read, _ in files]
        self._firsts = np.cumsum([0, *(-(-size // BLOCK) for size in self.sizes)]).tolist()
        self._digests, self._what, self._hint, self._most = digests, what, hint, most
        self._held: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, file: int, start: int, length: int) -> bytes:
        """Bytes of a file.

        Raises:
            MachineError: They can't be read, or are not what was written.
        """
        stop = min(start + length, self.sizes[file])
        if start >= stop:
            return b""
        first, last = start // BLOCK, -(-stop // BLOCK)
        whole = b"".join(self._blocks(file, first, last))
        return whole[start - first * BLOCK : stop - first * BLOCK]

    def fetch(self, spans: Iterable[tuple[int, int, int]]) -> None:
        """Begins to read what will be asked for soon: of a file, from a byte on, so many. Does not wait.

        No more than half of what is held: what was fetched before should still be there when it is asked for.
        """
        wanted = dict[int, int]()
        for file, start, length in spans:
            stop = min(start + length, self.sizes[file])
            for number in range(start // BLOCK, -(-stop // BLOCK) if stop > start else 0):
                wanted[self._firsts[file] + number] = file
            if len(wanted) >= self._most // 2:
                break
        pool = self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="uudp-blocks")
        failed = threading.Event()  # one of them: to ask for all others would take as long again and again
        for key, file in wanted.items():
            if (own := self._claimed(key)) is not None:
                pool.submit(self._load, file, key - self._firsts[file], [own], failed)

    def _blocks(self, file: int, first: int, last: int) -> list[bytes]:
        """Neighbouring blocks. Those that nobody has asked for are read here, in as few requests as can be."""
        found: list[Future[bytes]] = []
        own: list[Future[bytes]] = []
        for number in range(first, last):
            key = self._firsts[file] + number
            with self._lock:
                held = self._held.get(key)
                if held is not None:
                    self._held.move_to_end(key)
            if held is None and (mine := self._claimed(key)) is not None:
                own.append(mine)
                found.append(mine)
                continue
            if own:
                self._load(file, number - len(own), own)
                own = []
            found.append(held if held is not None else self._again(key, file, number))
        if own:
            self._load(file, last - len(own), own)
        return [each.result() for each in found]

    def _again(self, key: int, file: int, number: int) -> Future[bytes]:
        """Another thread was faster to claim it: its own, or, if that is gone already, one that is not kept."""
        with self._lock:
            held = self._held.get(key)
        if held is None:
            held = Future()
            self._load(file, number, [held])
        return held

    def _claimed(self, key: int) -> Future[bytes] | None:
        """A block that is to be loaded by whoever claims it; None: it is there, or somebody does."""
        with self._lock:
            if key in self._held:
                return None
            found = self._held[key] = Future()
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return found

    def _load(
        self, file: int, first: int, into: Sequence[Future[bytes]], failed: threading.Event | None = None
    ) -> None:
        """Reads neighbouring blocks, and tells whoever waits for them. What fails is not kept.

        Args:
            file: Theirs.
            first: The number of the first.
            into: Get them.
            failed: Others that were wanted with them: where one failed, these are not tried.
        """
        start = first * BLOCK
        length = min(len(into) * BLOCK, self.sizes[file] - start)
        try:
            if failed is not None and failed.is_set():
                raise MachineError(f"{self._what} can't be read{self._hint}")
            content = self._reads[file](start, length)
            pieces = [content[i * BLOCK : (i + 1) * BLOCK] for i in range(len(into))]
            for i, piece in enumerate(pieces):
                if _digest(piece) != self._digests[self._firsts[file] + first + i].tobytes():
                    raise MachineError(f"{self._what} is not what was written there{self._hint}")
        except BaseException as error:
            if failed is not None:
                failed.set()
            with self._lock:
                for i in range(len(into)):
                    self._held.pop(self._firsts[file] + first + i, None)
            for each in into:
                each.set_exception(error)
        else:
            for each, piece in zip(into, pieces, strict=True):
                each.set_result(piece)


class BlockFile(io.RawIOBase):
    """One of the files of `Blocks` as a stream."""

    def __init__(self, blocks: Blocks, file: int) -> None:
        self._blocks, self._file, self._at = blocks, file, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The next byte's place."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blocks.sizes[self._file]}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        left = self._blocks.sizes[self._file] - self._at
        found = self._blocks.read(self._file, self._at, left if size is None or size < 0 else size)
        self._at += len(found)
        return found

    def readinto(self, buffer: Any, /) -> int:
        """The next bytes, into a buffer."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
