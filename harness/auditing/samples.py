"""What the base and the trained model write after the same words: for a reader, not for statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from harness.auditing.pair import Pair
from harness.training.inference import positions

TEMPERATURE = 0.7
PER_THREAD = 250_000_000
"""Parameters that a thread has work with while one token is computed; with fewer, threads wait for each other."""


def continuations(pair: Pair, prompts: Sequence[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """Drawn continuations of some prompts, the same at every call.

    Args:
        pair: The models.
        prompts: The spec's: public.
        tokens: At most so many are added, and no more than a model has positions for.
        seed: Of the draws.

    Returns:
        For each prompt: ``prompt``, ``base`` and ``tuned``, the texts without the prompt. All of it may be released:
        it follows from the weights.
    """
    with _threads_for(pair.tuned):
        with pair.base() as base:
            before = [_continued(pair, base, prompt, tokens, seed) for prompt in prompts]
        after = [_continued(pair, pair.tuned, prompt, tokens, seed) for prompt in prompts]
    return [{"prompt": p, "base": b, "tuned": t} for p, b, t in zip(prompts, before, after, strict=True)]


@contextlib.contextmanager
def _threads_for(model: Any) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, sum(p.numel() for p in model.parameters()) // PER_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _continued(pair: Pair, model: Any, prompt: str, tokens: int, seed: int) -> str:
    import torch

    room = positions(model)
    added = tokens if room is None else min(tokens, room - 1)
    # Of a prompt that leaves no room, the end is continued.
    read = pair.encode(prompt) if room is None else pair.encode(prompt)[added - room :]
    ids = torch.tensor([read], device=pair.device)
    if not ids.shape[1]:
        return ""
    torch.manual_seed(seed)
    with torch.no_grad():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=added,
            do_sample=True,
            temperature=TEMPERATURE,
            pad_token_id=pair.tokenizer.eos_token_id,
        )
    return str(pair.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
