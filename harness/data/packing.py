"""From one user's texts to training examples.

A pure function of one user's texts: no example ever holds tokens of two users, and nobody's examples depend on
who else is there.

Plain texts are joined and cut anywhere. Answers (completions, or an assistant's messages) are never cut off from what
they answer: short records share an example, and a long conversation is cut between its questions, each part beginning
with as much of what came before as fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Loss = npt.NDArray[np.uint8]

MIN_TOKENS = 2
"""A shorter example has nothing to predict."""


EVERY = np.empty(0, dtype=np.uint8)
"""A loss mask that says: every token but the first is predicted."""


@dataclass(frozen=True, eq=False)
class Example:
    """One training example.

    Attributes:
        tokens: What the model reads.
        loss: 1 for every token that it is to predict, 0 for the others (always for the first); or `EVERY`.
    """

    tokens: Tokens
    loss: Loss = field(default_factory=lambda: EVERY)

    @property
    def targets(self) -> int:
        """Number of predicted tokens."""
        return int(self.loss.sum()) if len(self.loss) else len(self.tokens) - 1


@dataclass(frozen=True, eq=False)
class Answers:
    """One tokenised record whose answers alone have a loss: as `Example`, of any length."""

    tokens: Tokens
    loss: Loss

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Beginning and end of every answer."""
        edges = np.flatnonzero(np.diff(self.loss, prepend=0, append=0))
        return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


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


def pack(texts: Iterable[Sequence[int] | Tokens], *, eos: int, max_tokens: int) -> Iterator[Tokens]:
    """Joins one user's tokenised texts, each followed by `eos`, and cuts them into examples, one text at a time.

    Args:
        texts: The tokens of each text, in order.
        eos: The end-of-text token.
        max_tokens: Tokens of an example; the last one may have fewer. A tail below `MIN_TOKENS` is dropped.
    """
    end = np.array([eos], dtype=np.int32)
    pending: list[Tokens] = []
    length = 0
    for text in texts:
        pending += (np.asarray(text, dtype=np.int32), end)
        length += len(text) + 1
        if length >= max_tokens:
            stream = np.concatenate(pending)
            length %= max_tokens
            yield from stream[: len(stream) - length].reshape(-1, max_tokens)
            pending = [stream[len(stream) - length :].copy()]
    if length >= MIN_TOKENS:
        yield np.concatenate(pending)


def pack_answers(
    records: Iterable[Answers], *, max_tokens: int, shortened: Callable[[], None] = lambda: None
) -> Iterator[Example]:
    """Puts one user's records with answers into examples.

    Records, or the parts that a long one is cut into, share an example while they fit, in order. Every answer is
    learnt once, after its own question. Where the two don't fit into an example, the question loses its beginning,
    though no more than leaves a context of a quarter of `max_tokens`; then the answer loses its end.

    Args:
        records: One user's.
        max_tokens: Most tokens of an example.
        shortened: Called for every answer that loses its end or a part of its own question.

    Yields:
        The examples, each with at least one target.
    """
    pending: list[Example] = []
    room = max_tokens
    for record in records:
        for part, whole in _parts(record, max_tokens):
            if not whole:
                shortened()
            if len(part.tokens) > room:
                yield from _joined(pending)
                pending, room = [], max_tokens
            pending.append(part)
            room -= len(part.tokens)
    yield from _joined(pending)


def _parts(record: Answers, max_tokens: int) -> Iterator[tuple[Example, bool]]:
    """A record's parts of at most `max_tokens`, and whether each holds its questions and answers in full."""
    spans = record.spans
    questions = [0, *(end for _, end in spans)]  # where the question of each answer begins
    first = 0
    while first < len(spans):
        last = first
        while last + 1 < len(spans) and spans[last + 1][1] - questions[first] <= max_tokens:
            last += 1
        answer, end = spans[first][0], spans[last][1]
        whole = end - questions[first] <= max_tokens
        begin = max(0, end - max_tokens)
        if not whole:
            begin = min(begin, answer - min(answer, max_tokens // 4))
            end = min(end, begin + max_tokens)
        loss = record.loss[begin:end].copy()
        loss[: max(1, answer - begin)] = 0  # answers before the first are only context here
        yield Example(record.tokens[begin:end], loss), whole
        first = last + 1


def _joined(parts: Sequence[Example]) -> Iterator[Example]:
    """One example of all parts, if there is anything to learn from it."""
    if parts:
        example = Example(np.concatenate([p.tokens for p in parts]), np.concatenate([p.loss for p in parts]))
        if example.targets:
            yield example
