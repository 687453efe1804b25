"""Pairs and conversations → pieces of text, each with or without a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.data.packing import Tokenizer
from harness.data.sources.base import ASSISTANT, Columns, Record, Turn
from harness.errors import ArgumentError

Piece = tuple[str, bool]
"""A text, and whether it is to be learnt."""

_PROBE = (Turn("user", "a question"), Turn(ASSISTANT, "an answer"))


class RefusedError(Exception):
    """A record's turns can't be put into words; says why, without quoting them."""


def pieces_of(record: Record, columns: Columns, tokenizer: Tokenizer) -> list[Piece]:
    """What a record is made of: its prompt and completion, or its conversation as the chat template writes it.

    Each piece is tokenised by itself, as it is when a model is asked: the answer's first token never depends on how
    it would merge with the question's last one.

    Raises:
        RefusedError: The template can't write this conversation.
    """
    if not columns.chat:
        return [(turn.content, turn.role == "completion") for turn in record.turns]
    return _conversation(record.turns, tokenizer)


def check_template(tokenizer: Tokenizer) -> str:
    """The tokenizer's chat template, if it can write a conversation.

    Raises:
        ArgumentError: There is none, or it can't.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ArgumentError("data.messages: the tokenizer of model.base has no chat template; data.text needs none")
    try:
        _conversation(_PROBE, tokenizer)
    except RefusedError:
        message = "data.messages: the chat template of model.base can't write a question and its answer"
        raise ArgumentError(message) from None
    return str(template)


def _conversation(turns: Sequence[Turn], tokenizer: Tokenizer) -> list[Piece]:
    """Everything up to the last answer. What the template ends an answer with is learnt too, up to its last mark.

    A line's end after the end-of-turn token is not: nobody asks the model for more once it has ended its turn.
    """
    pieces: list[Piece] = []
    done = ""
    for i, turn in enumerate(turns):
        if turn.role != ASSISTANT:
            continue
        after = _written(turns[: i + 1], tokenizer, ask=False)
        # Some templates ask with more than they later keep, as with an opened thought.
        asked = (_written(turns[:i], tokenizer, ask=ask) for ask in (True, False))
        before = next((text for text in asked if text.startswith(done) and after.startswith(text)), None)
        if before is None or before == after:
            raise RefusedError("the chat template does not write this conversation turn by turn")
        answer = after[len(before) :]
        if not answer.rstrip().endswith(turn.content.rstrip()):
            answer = answer.rstrip()
        pieces += [(before[len(done) :], False), (answer, True)]
        done = before + answer
    return [piece for piece in pieces if piece[0]]


def _written(turns: Sequence[Turn], tokenizer: Any, *, ask: bool) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except Exception:  # a template may raise anything, and quote the conversation
        pass
    raise RefusedError("the chat template refuses the conversation (its roles, or their order)")
