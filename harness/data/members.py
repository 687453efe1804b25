"""The training users of a privacy group, found by their place among them instead of listed. Private."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
_CHUNK = BLOCK << 13


class GroupMembers:
    """The training users of one group, in the order of their numbers.

    A list would take eight bytes of every worker for each user: of a hundred million, most of a gigabyte. What is kept
    is a bit per user, and the count of each block of 128: a place is found by a search among the counts and a look into
    one block. So a draw costs as much as its cohort is large, and reads no file.
    """

    def __init__(self, groups: NDArray[np.int16], holdout: NDArray[np.bool_], group: int) -> None:
        """Counts.

        Args:
            groups: [users] each user's group.
            holdout: [users] whether a user is held out, and thus in no group's training.
            group: Which group.
        """
        if len(groups) != len(holdout):
            raise ValueError("a group for each user is needed")
        blocks = -(-len(groups) // BLOCK)
        counts = np.zeros(blocks, dtype=np.int64)
        self._bits = np.zeros((blocks, BLOCK // 8), dtype=np.uint8)
        for start in range(0, len(groups), _CHUNK):
            part = slice(start, start + _CHUNK)
            inside = (groups[part] == group) & ~holdout[part]
            padded = np.pad(inside, (0, -len(inside) % BLOCK)).reshape(-1, BLOCK)
            here = slice(start // BLOCK, start // BLOCK + len(padded))
            counts[here], self._bits[here] = padded.sum(axis=1), np.packbits(padded, axis=1)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: Any) -> NDArray[np.int64]:
        """The numbers of the users at these places.

        Args:
            places: Integers in [0, len), of any shape.

        Raises:
            IndexError: There is no such place.
        """
        wanted = np.asarray(places, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError("there is no such member")
        blocks = np.searchsorted(self._ends, wanted, side="right")
        before = np.where(blocks > 0, self._ends[blocks - 1], 0)
        inside = np.unpackbits(self._bits[blocks], axis=-1)
        # The first user with whom the block's count exceeds the place in it.
        at = np.argmax(np.cumsum(inside, axis=-1, dtype=np.int64) > (wanted - before)[..., None], axis=-1)
        found: NDArray[np.int64] = blocks * BLOCK + at
        return found
