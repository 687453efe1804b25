"""Whether a model keeps examples that share a row apart: without it, one user's gradient would depend on others.

`transformers` makes attention block-diagonal where positions begin again and there is no mask, in most families. A
family is on the list if its tests say so, and what is on the list is still tried with the model at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.training.batches import pack_rows, pad, token_losses

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma3_text", "gpt2", "gpt_neox"})
"""Values of `model_type` in which examples may share a row."""
_SEGMENTS = ((19, 13, 9), (12, 24))
"""Lengths of the made-up examples of each row."""


def keeps_apart(model: Any, device: torch.device) -> bool:
    """Whether examples may share rows, by the list and by trial on made-up tokens; collective at ZeRO 3.

    In the trial the gradient of every example's losses in the others' embeddings has to be exactly zero, in its own
    it must not be, and the losses have to be those of the example in a row of its own.

    Args:
        model: With or without an adapter.
        device: Where it is.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in FAMILIES:
        return False
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        return _tried(model, device)
    finally:
        for module in training:
            module.training = True


@torch.enable_grad()
def _tried(model: Any, device: torch.device) -> bool:
    count = model.config.vocab_size
    texts = [[[(7 * i + 11 * n + 29 * r) % count for i in range(n)] for n in row] for r, row in enumerate(_SEGMENTS)]
    seen: list[Tensor] = []

    def cut(module: Any, args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    # ZeRO-3 gathers weights for one backward pass per forward pass; else one forward pass serves all.
    once = not any(hasattr(p, "ds_id") for p in model.parameters())
    packed: tuple[Tensor, Tensor] | None = None
    try:
        for r, own, text in _places(texts):
            with torch.no_grad():  # at ZeRO 3 a graph keeps all weights gathered
                alone = token_losses(model, pad([text], device))[0]
            if packed is None or not once:
                packed = token_losses(model, pack_rows(texts, device)), seen[-1]
                seen.clear()
            losses, embedded = packed
            if not _same(losses[r, own], alone, embedded.dtype):
                return False
            (gradient,) = torch.autograd.grad(losses[r, own].sum(), embedded, retain_graph=once)
            if not bool(gradient[r, own].any()):
                return False
            gradient[r, own] = 0
            if bool(gradient.any()):
                return False
    finally:
        handle.remove()
    return True


def _places(texts: list[list[list[int]]]) -> Iterator[tuple[int, slice, list[int]]]:
    """The made-up examples, each with its row and its place there."""
    for r, row in enumerate(texts):
        first = 0
        for text in row:
            yield r, slice(first, first + len(text)), text
            first += len(text)


def _same(packed: Tensor, alone: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-3 if dtype.itemsize >= 4 else 5e-2
    return float((packed - alone).detach().norm()) <= tolerance * float(alone.detach().norm())
