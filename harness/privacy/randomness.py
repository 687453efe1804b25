"""All secret randomness of a run: cohorts, choices of examples, noise.

Every draw is a pure function of (key, purpose, step, name, element), never of ranks, shards or of what was drawn
before. So any worker can draw any part alone, and a resumed run repeats the very same draws. The key is 256 bits
from the operating system, made per run; the spec's `seed` never enters here, because a known noise seed removes
all privacy.

The stream is AES-256 in counter mode (from the `cryptography` package) under a subkey that HMAC-SHA-256 derives
from the key and the draw's address. The privacy that it gives is computational.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
_TO_UNIT = 2.0**-53


class Randomness:
    """The draws of one run. Holds the key: never put it into a config, a log, an exception or a pickle."""

    def __init__(self, key: bytes) -> None:
        """Takes a 256-bit key.

        Raises:
            ValueError: The key is not 32 bytes long.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return "Randomness(key=hidden)"

    def __reduce__(self) -> str:
        raise TypeError("the run's key is never pickled")

    def derive(self, purpose: str) -> Randomness:
        """Independent randomness for another use of the same run."""
        return Randomness(self._subkey("derive/" + purpose, 0, ""))

    def key_for(self, purpose: str, number: int) -> bytes:
        """The key of a part that is a run of its own: as secret as this one, and as good as independent of it."""
        return self._subkey("key/" + purpose, number, "")

    def _subkey(self, purpose: str, step: int, name: str) -> bytes:
        # Lengths make the encoding injective: no two addresses share a stream.
        parts = (purpose.encode(), str(step).encode(), name.encode())
        message = b"".join(len(p).to_bytes(8, "big") + p for p in parts)
        return hmac.new(self._key, message, hashlib.sha256).digest()

    def words(self, purpose: str, step: int, name: str, start: int, count: int) -> NDArray[np.uint64]:
        """64-bit words number `start` to `start + count` of the stream at this address, shape [count]."""
        first, last = start // 2, (start + count + 1) // 2
        cipher = Cipher(algorithms.AES(self._subkey(purpose, step, name)), modes.CTR(first.to_bytes(16, "big")))
        stream = cipher.encryptor().update(bytes(16 * (last - first)))
        return np.frombuffer(stream, dtype="<u8")[start - 2 * first :][:count]

    def uniforms(self, purpose: str, step: int, name: str, start: int, count: int) -> NDArray[np.float64]:
        """Uniform draws in (0, 1] with 53 bits, shape [count]."""
        words = self.words(purpose, step, name, start, count)
        return ((words >> np.uint64(11)).astype(np.float64) + 1.0) * _TO_UNIT

    def normals(self, purpose: str, step: int, name: str, start: int, count: int) -> NDArray[np.float64]:
        """Standard normal draws number `start` to `start + count`, shape [count], by Box–Muller on counter blocks.

        The tails reach 8.5 standard deviations (53 bits).
        """
        first, last = start // 2, (start + count + 1) // 2
        pairs = self.uniforms(purpose, step, name, 2 * first, 2 * (last - first)).reshape(-1, 2)
        radius = np.sqrt(-2.0 * np.log(pairs[:, 0]))
        angle = 2.0 * math.pi * pairs[:, 1]
        drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
        return drawn[start - 2 * first :][:count]

    def bernoulli(self, purpose: str, step: int, name: str, population: int, rate: float) -> NDArray[np.int64]:
        """Which of `population` independent coins with probability `rate` show heads: rising indices.

        Drawn by geometric gaps, so that the cost grows with the number of heads, not with the population.
        """
        if population <= 0:
            return np.empty(0, dtype=np.int64)
        if rate >= 1:
            return np.arange(population, dtype=np.int64)
        chunk = int(population * rate + 6 * math.sqrt(population * rate) + 8)
        found: list[NDArray[np.int64]] = []
        position, drawn = -1, 0
        while position < population:
            gaps = np.log(self.uniforms(purpose, step, name, drawn, chunk)) / math.log1p(-rate)
            # A gap beyond the population ends the walk; capping it keeps the sum in range.
            places = position + np.cumsum(np.minimum(np.floor(gaps), population).astype(np.int64) + 1)
            found.append(places[places < population])
            position, drawn = int(places[-1]), drawn + chunk
        return np.concatenate(found)

    def choose(self, purpose: str, step: int, name: str, population: int, size: int) -> NDArray[np.int64]:
        """A uniform choice of min(`size`, `population`) out of `population`, rising, without replacement."""
        if population <= size:
            return np.arange(population, dtype=np.int64)
        order = np.argsort(self.words(purpose, step, name, 0, population), kind="stable")
        return np.sort(order[:size]).astype(np.int64)

    def seed(self, purpose: str, step: int, name: str) -> int:
        """A 63-bit seed for a library's own generator, for randomness on which no privacy rests (dropout)."""
        return int(self.words(purpose, step, name, 0, 1)[0] >> np.uint64(1))


def create_key(path: Path, key: bytes | None = None) -> None:
    """Writes a fresh key, readable by its owner alone; an existing one is never overwritten.

    Args:
        path: Where; inside the run's private folder.
        key: For tests alone; None: 256 bits from the operating system.

    Raises:
        FileExistsError: There is a key already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES) if key is None else key)
        file.flush()
        os.fsync(file.fileno())


def load_key(path: Path) -> Randomness:
    """The run's randomness, from its key file."""
    return Randomness(path.read_bytes())


def destroy_key(path: Path) -> None:
    """Overwrites and removes the key, so that no draw of the run can be repeated. Does nothing if it is gone."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except FileNotFoundError:
        pass
