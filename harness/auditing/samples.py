"""What the base and the trained model write after the same words: for a reader, not for statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.auditing.pair import Pair

TEMPERATURE = 0.7


def continuations(pair: Pair, prompts: Sequence[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """Drawn continuations of some prompts, the same at every call.

    Args:
        pair: The models.
        prompts: The spec's: public.
        tokens: At most so many are added.
        seed: Of the draws.

    Returns:
        For each prompt: ``prompt``, ``base`` and ``tuned``, the texts without the prompt. All of it may be released:
        it follows from the weights.
    """
    with pair.base() as base:
        before = [_continued(pair, base, prompt, tokens, seed) for prompt in prompts]
    after = [_continued(pair, pair.tuned, prompt, tokens, seed) for prompt in prompts]
    return [{"prompt": p, "base": b, "tuned": t} for p, b, t in zip(prompts, before, after, strict=True)]


def _continued(pair: Pair, model: Any, prompt: str, tokens: int, seed: int) -> str:
    import torch

    read, added = _fitting(pair.encode(prompt), tokens, model.config)
    if not read:
        return ""
    ids = torch.tensor([read], device=pair.device)
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


def _fitting(prompt: list[int], tokens: int, config: Any) -> tuple[list[int], int]:
    """The end of a prompt, and how many tokens are added to it, so that both fit into the model's positions.

    Learned positions have an end: beyond it there is nothing to compute with.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int) or context < 2:
        return prompt, tokens
    read = prompt[-max(1, context - tokens) :]
    return read, min(tokens, context - len(read))
