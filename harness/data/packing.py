"""From one user's texts to training examples.

A pure function of one user's texts: no example ever holds tokens of two users, and nobody's examples depend on
who else is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

MIN_TOKENS = 2
"""A shorter example has nothing to predict."""


class Tokenizer(Protocol):
    """What is used of a `transformers` tokenizer."""

    @property
    def eos_token_id(self) -> Any:
        """The id of the end-of-text token, or None."""

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]:
        """Tokenises a batch of texts."""


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[Tokens]:
    """The tokens of each text, without special tokens; independent of the other texts of the batch.

    Nothing is truncated or padded, and no warning tells how long a text is.
    """
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def pack(texts: Iterable[Sequence[int] | Tokens], *, eos: int, max_tokens: int) -> list[Tokens]:
    """Joins one user's tokenised texts, each followed by `eos`, and cuts them into examples.

    Args:
        texts: The tokens of each text, in order.
        eos: The end-of-text token.
        max_tokens: Tokens of an example; the last one may have fewer. A tail below `MIN_TOKENS` is dropped.
    """
    end = np.array([eos], dtype=np.int32)
    parts = [part for text in texts for part in (np.asarray(text, dtype=np.int32), end)]
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    cuts = [stream[start : start + max_tokens] for start in range(0, len(stream), max_tokens)]
    return [cut for cut in cuts if len(cut) >= MIN_TOKENS]
