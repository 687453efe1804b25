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
    is the count of each block of 128 users; a place is found by a search among the counts and a look into one block.
    So a draw costs as much as its cohort is large, and touches no more of the (mapped) arrays.
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
        self._groups, self._holdout, self._group = groups, holdout, group
        counts = np.zeros(-(-len(groups) // BLOCK), dtype=np.int64)
        for start in range(0, len(groups), _CHUNK):
            inside = self._inside(np.arange(start, min(start + _CHUNK, len(groups))))
            padded = np.pad(inside, (0, -len(inside) % BLOCK)).reshape(-1, BLOCK)
            counts[start // BLOCK :][: len(padded)] = padded.sum(axis=1)
        self._ends = np.cumsum(counts)

    def _inside(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self._groups[users] == self._group) & ~self._holdout[users]
        return found

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
        users = blocks[..., None] * BLOCK + np.arange(BLOCK)
        inside = self._inside(np.minimum(users, len(self._groups) - 1)) & (users < len(self._groups))
        # The first user with whom the block's count exceeds the place in it.
        at = np.argmax(np.cumsum(inside, axis=-1) > (wanted - before)[..., None], axis=-1)
        found: NDArray[np.int64] = blocks * BLOCK + at
        return found
