"""What both models write after the spec's prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harness.auditing.samples import continuations
from tests.families import make_model


class Words:
    """A tokenizer of one letter per token."""

    eos_token_id = 2

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return " ".join(str(int(one)) for one in ids)


class Two:
    """A pair of models that are one."""

    device = torch.device("cpu")
    tokenizer = Words()

    def __init__(self, family: str) -> None:
        self.tuned = make_model(family)
        self.longest = 0
        self.tuned.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _: Any, args: Any, kwargs: Any) -> None:
        self.longest = max(self.longest, kwargs["input_ids"].shape[1])

    @contextlib.contextmanager
    def base(self) -> Iterator[Any]:
        yield self.tuned

    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 100 for letter in text]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(("letters", "tokens"), [(250, 16), (1000, 16), (5, 600)])
def test_no_more_is_written_than_a_model_has_positions_for(family: str, letters: int, tokens: int) -> None:
    """Both models have 256. Break: without the cut, GPT-2 ends a run whose training is over with an IndexError."""
    pair = Two(family)
    (found,) = continuations(pair, ["a" * letters], tokens, seed=1)  # type: ignore[arg-type]
    assert found["prompt"] == "a" * letters
    assert 0 < len(found["tuned"].split()) <= min(tokens, 256)
    assert pair.longest <= 256


def test_a_small_model_writes_on_one_thread() -> None:
    """On two busy cores SmolLM2 took 15 times as much processor time with two. Red without `_threads_for`."""
    pair = Two("llama")
    seen: set[int] = set()
    pair.tuned.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        continuations(pair, ["word"], 3, seed=1)  # type: ignore[arg-type]
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)
