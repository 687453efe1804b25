"""What trained layers are given for each token of the vocabulary, where that depends on the token alone.

In models whose positions enter in attention (RoPE), the first layer's projections see the token and nothing else. So
everybody can compute what each token would give them. It is tried, not read from a name: a layer counts if what it is
given in the midst of a text is what it is given for the token by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.auditing.losses import still

_PROBE = 16
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Source:
    """Layers that are given the same input.

    Attributes:
        names: Of their weights, as the model's parameters are called.
        transposed: For each, whether its weight is [in, out], as GPT-2's are.
        entries: Their input for each token, float32, shape [vocabulary, in].
    """

    names: tuple[str, ...]
    transposed: tuple[bool, ...]
    entries: Tensor


@dataclass(frozen=True)
class Dictionary:
    """How tokens are read off an update. Public: made of the model alone.

    Attributes:
        vocabulary: Number of tokens.
        embedding: Name of the trained embedding's weight, whose rows name the tokens; None: it is not trained.
        sources: Trained linear layers whose input is the token's alone; none are needed where there is `embedding`.
        reason: Why neither is there, after "does not apply: "; None: one is.
    """

    vocabulary: int
    embedding: str | None
    sources: tuple[Source, ...]
    reason: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters that are looked at."""
        return (self.embedding,) if self.embedding else tuple(n for s in self.sources for n in s.names)


class _Enough(Exception):
    """All that is wanted of a forward pass is there."""


def dictionary(model: Any, device: torch.device, budget: int) -> Dictionary:
    """Finds out how tokens can be read off this model's updates.

    Args:
        model: With the parameters that are trained, and no others, requiring gradients.
        device: Where it is.
        budget: Tokens that are looked at together.
    """
    given: nn.Embedding = model.get_input_embeddings()
    vocabulary = given.num_embeddings
    for name, parameter in model.named_parameters():
        if parameter is given.weight and parameter.requires_grad:
            return Dictionary(vocabulary, name, (), None)
    layers = {n: m for n, m in model.named_modules() if _is_trained(m)}
    if not layers:
        return Dictionary(vocabulary, None, (), "neither embeddings nor linear layers are trained")
    with torch.no_grad(), still(model):
        free = _position_free(model, layers, vocabulary, device)
        if not free:
            reason = "what the trained layers are given depends on the position or on the tokens before"
            return Dictionary(vocabulary, None, (), reason)
        sources = _sources(model, {n: layers[n] for n in free}, vocabulary, device, budget)
    return Dictionary(vocabulary, None, sources, None)


def _is_trained(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad


def _position_free(
    model: Any, layers: Mapping[str, nn.Module], vocabulary: int, device: torch.device
) -> tuple[str, ...]:
    """Names of the layers that are given the same for a token at any place of a text as by itself."""
    tokens = torch.randint(vocabulary, (_PROBE,), generator=torch.Generator().manual_seed(0)).to(device)
    # The same tokens again: each stands at two places, after different ones.
    text = torch.cat([tokens, tokens.flip(0)])
    within, alone = _inputs(model, layers, text[None]), _inputs(model, layers, text[:, None])
    found = []
    for name in layers:
        a, b = (x[name].float().reshape(len(text), -1) for x in (within, alone))
        tolerance = _HALF_TOLERANCE if within[name].dtype.itemsize < 4 else _TOLERANCE
        sizes = torch.linalg.vector_norm(b, dim=1)
        if bool((torch.linalg.vector_norm(a - b, dim=1) <= tolerance * sizes).all()) and bool((sizes > 0).any()):
            found.append(name)
    return tuple(found)


def _sources(
    model: Any, layers: Mapping[str, nn.Module], vocabulary: int, device: torch.device, budget: int
) -> tuple[Source, ...]:
    # Layers that are given the very same tensor share an entry: their updates are rows of one matrix.
    places = {
        n: x.data_ptr() for n, x in _inputs(model, layers, torch.zeros(1, 1, dtype=torch.long, device=device)).items()
    }
    groups: dict[int, list[str]] = {}
    for name, place in places.items():
        groups.setdefault(place, []).append(name)
    firsts = {names[0]: layers[names[0]] for names in groups.values()}
    parts: dict[str, list[Tensor]] = {n: [] for n in firsts}
    for first in range(0, vocabulary, budget):
        tokens = torch.arange(first, min(first + budget, vocabulary), device=device)
        for name, values in _inputs(model, firsts, tokens[:, None]).items():
            parts[name].append(values.float().reshape(len(tokens), -1))
    return tuple(
        Source(
            tuple(f"{n}.weight" for n in names),
            tuple(not isinstance(layers[n], nn.Linear) for n in names),
            torch.cat(parts[names[0]]),
        )
        for names in groups.values()
    )


def _inputs(model: Any, layers: Mapping[str, nn.Module], tokens: Tensor) -> dict[str, Tensor]:
    """What layers are given for rows of tokens; the model runs no further than it must."""
    with _watched(layers) as seen, suppress(_Enough):
        model(input_ids=tokens, use_cache=False)
    return seen


@contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Sequence[Tensor]) -> None:
            seen[name] = inputs[0].detach()
            if len(seen) == len(layers):
                raise _Enough

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
