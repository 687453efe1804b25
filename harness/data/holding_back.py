"""Examples that training leaves out, so that an attack has fresh texts of users who were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.canaries import Examples


def held_back(examples: int, most: int) -> int:
    """How many of a user's last examples are left out: a function of their own number of examples alone.

    Args:
        examples: That the user has.
        most: To leave out at most; never more than half of them.
    """
    return min(most, examples // 2)


class WithoutLast:
    """A corpus of which every user's last examples are left out. Private."""

    def __init__(self, corpus: Examples, most: int) -> None:
        """Takes the corpus, and how many examples of a user are left out at most."""
        self._corpus, self._most = corpus, most
        self.n_users = corpus.n_users
        self.example_lengths: NDArray[np.int32] = corpus.example_lengths
        self.example_targets: NDArray[np.int32] = corpus.example_targets

    def examples_of(self, user_index: int) -> tuple[int, int]:
        """The examples of a user that are trained on, as a half-open range."""
        first, last = self._corpus.examples_of(user_index)
        return first, last - held_back(last - first, self._most)

    def user_id(self, user_index: int) -> str:
        """The user's name."""
        return self._corpus.user_id(user_index)

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read examples."""
        self._corpus.fetch(examples)

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """The tokens of an example."""
        return self._corpus.tokens(example_index)

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """Which of them are predicted."""
        return self._corpus.targets(example_index)
