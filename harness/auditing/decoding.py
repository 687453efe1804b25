"""Continuations drawn from a model, many prefixes at a time: each prefix is computed once, and no token twice.

Rows of a micro-batch end at the same place: shorter prefixes have padding on their left, which nobody sees and which
counts in no position. What the model keeps of a prefix (keys and values) is then copied for each of its continuations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.auditing.losses import still

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.25


def continuations(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    copies: int,
    length: int,
    generator: torch.Generator,
    device: torch.device,
    budget: int,
) -> list[list[list[int]]]:
    """Draws continuations at temperature 1.

    Args:
        model: A causal language model.
        prefixes: Token ids, at least one each.
        copies: Continuations of each prefix.
        length: Tokens of each continuation.
        generator: Of the draws, on `device`; they repeat on the same machine.
        device: Where the model is.
        budget: Tokens of a micro-batch, padding included; a larger row is computed alone.

    Returns:
        Of each prefix in its order, `copies` rows of `length` token ids.
    """
    found: list[list[list[int]]] = [[] for _ in prefixes]
    with torch.inference_mode(), still(model):
        shared = bool(prefixes) and copies > 0 and keeps_prefixes(model, max(prefixes, key=len), device)
        for batch in _batches(prefixes, copies, length, budget, together=shared):
            rows = _drawn(model, [(prefixes[i], n) for i, n in batch], length, generator, device, shared=shared)
            for i in (i for i, n in batch for _ in range(n)):
                found[i].append(rows.pop(0))
    return found


def keeps_prefixes(model: Any, prefix: Sequence[int], device: torch.device) -> bool:
    """Whether padding and what is kept of a prefix change nothing for this model: tried, not read from its name.

    Args:
        model: A causal language model.
        prefix: Token ids, at least one.
        device: Where the model is.
    """
    dtype = next(model.parameters()).dtype
    short = prefix[-1:]
    rows = [list(short), list(short), [*prefix, *short]]
    try:
        decoder = _Decoder(model, [(rows[0], 2), (rows[2], 1)], device, shared=True)
        for step in range(3):
            if step:
                decoder.add(torch.tensor([[row[-1]] for row in rows], device=device))
            alone = torch.stack([model(input_ids=torch.tensor([r], device=device)).logits[0, -1] for r in rows])
            expected, found = (torch.log_softmax(x.float(), dim=-1) for x in (alone, decoder.logits))
            tolerance = _TOLERANCES.get(dtype, _HALF_TOLERANCE) * (1 + expected.abs())
            if not bool((found - expected).abs().le(tolerance).all()):
                return False
            rows = [[*row, (row[-1] + 1 + i) % 10] for i, row in enumerate(rows)]
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, NotImplementedError):
        return False
    return True


def _batches(
    prefixes: Sequence[Sequence[int]], copies: int, length: int, budget: int, *, together: bool
) -> Iterator[list[tuple[int, int]]]:
    """Micro-batches: which prefixes, and how many continuations of each."""
    batch: list[tuple[int, int]] = []
    room = 0
    for i in sorted(range(len(prefixes)), key=lambda i: -len(prefixes[i])):
        left = copies
        while left:
            if batch and (not room or (not together and len(prefixes[i]) != len(prefixes[batch[0][0]]))):
                yield batch
                batch = []
            if not batch:
                room = max(1, budget // (len(prefixes[i]) + length))
            taken = min(left, room)
            batch.append((i, taken))
            room -= taken
            left -= taken
    if batch:
        yield batch


def _drawn(
    model: Any,
    batch: Sequence[tuple[Sequence[int], int]],
    length: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    shared: bool,
) -> list[list[int]]:
    decoder = _Decoder(model, batch, device, shared=shared)
    drawn: list[Tensor] = []
    while len(drawn) < length:
        if drawn:
            decoder.add(drawn[-1])
        drawn.append(_draw(decoder.logits, generator))
    rows: list[list[int]] = torch.cat(drawn, dim=1).tolist()
    return rows


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token of each row, [rows, vocabulary] → [rows, 1]."""
    return torch.multinomial(torch.softmax(logits.float(), dim=-1), 1, generator=generator)


class _Decoder:
    """Rows that grow by a token at a time.

    Attributes:
        logits: Of the next token of every row, shape [rows, vocabulary].
    """

    def __init__(
        self, model: Any, batch: Sequence[tuple[Sequence[int], int]], device: torch.device, *, shared: bool
    ) -> None:
        """Reads the prefixes.

        Args:
            model: A causal language model.
            batch: Prefixes, and how many rows begin with each.
            device: Where the model is.
            shared: Each prefix is computed once, padded on its left; else once a row, and all are as long.
        """
        self._model, self._shared = model, shared
        copies = torch.arange(len(batch), device=device).repeat_interleave(
            torch.tensor([n for _, n in batch], device=device)
        )
        width = max(len(prefix) for prefix, _ in batch)
        pads = [width - len(prefix) for prefix, _ in batch]
        inputs = torch.tensor([[*[0] * n, *p] for n, (p, _) in zip(pads, batch, strict=True)], device=device)
        self._seen = (torch.arange(width, device=device) >= torch.tensor(pads, device=device)[:, None]).long()
        self._past, self.logits = self._read(inputs if shared else inputs[copies], None)
        if shared:
            self._past.batch_select_indices(copies)
            self._seen, self.logits = self._seen[copies], self.logits[copies]

    def add(self, tokens: Tensor) -> None:
        """Lengthens each row by a token, shape [rows, 1]."""
        if self._shared:
            self._seen = torch.cat([self._seen, self._seen.new_ones(len(tokens), 1)], dim=1)
        self._past, self.logits = self._read(tokens, self._past)

    def _read(self, tokens: Tensor, past: Any) -> tuple[Any, Tensor]:
        given = {}
        if self._shared:
            positions = (self._seen.cumsum(dim=1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
            given = {"attention_mask": self._seen, "position_ids": positions}
        out = self._model(input_ids=tokens, past_key_values=past, use_cache=True, **given)
        return out.past_key_values, out.logits[:, -1]
