"""How the frozen base model, before any training, sees one user: `ModelView`. For plugins that use it.

Strictly of one user alone: a forward pass holds rows of that user only, in their own order, and what it is filled up
to depends on that user's examples and public constants. So nobody else's records can change a bit of a view.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import ArgumentError, MachineError
from harness.plugins import ModelView
from harness.training.batches import Rows
from harness.training.head import CHUNK_BYTES, install_loss_head, loss_head, losses_of_logits, plain_head
from harness.training.layout import to_device
from harness.training.loading import load_base
from harness.training.model import quiet

VERSION = 1
"""Of all that decides a view; views of another version are not compared with these."""
MOST_EXAMPLES = 8
"""A public constant: of each user, this many of the first examples are looked at, so that the cost is bounded."""
TAIL = 10
"""One in so many of an example's tokens is in its tail, rounded down, and at least one."""
_WIDTH = 32
_TOKENS = 1024


class Examples(Protocol):
    """A corpus, as far as it is needed here."""

    def examples_of(self, user_index: int) -> tuple[int, int]:
        """The first of a user's examples, and the one after their last."""
        ...

    def fetch(self, examples: Sequence[int]) -> None:
        """Begins to read examples that will be asked for soon."""
        ...

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        """Tokens of one example."""
        ...

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        """For each of these tokens, whether it is predicted; never the first."""
        ...


class Viewer:
    """A base model, in float32 and evaluation mode, that users are shown to one at a time.

    Attributes:
        width: Coordinates of an embedding.
    """

    def __init__(self, folder: Path, device: str, longest: int) -> None:
        """Loads the model, and sees on made-up tokens of the largest shape that it can be run. No record is read.

        Args:
            folder: Of the base model.
            device: ``cpu`` or ``cuda``.
            longest: Most tokens that an example can have; within the model's context.

        Raises:
            ArgumentError: The model has no layer norm with weights.
            MachineError: It does not fit into this GPU's memory.
        """
        quiet()
        self._device, self._longest = torch.device(device), longest
        try:
            model = load_base(folder, "float32", None).to(self._device).eval().requires_grad_(False)
            self._begin(model)
        except torch.OutOfMemoryError:
            raise MachineError(
                "the base model does not fit into this GPU in float32, in which plugins see users through it; "
                "use compute.accelerator: cpu, or plugins that need no model"
            ) from None

    def _begin(self, model: Any) -> None:
        model.config.use_cache = False
        self._model = model
        rows: int = model.get_input_embeddings().num_embeddings
        made = (np.arange(max(16, self._longest)) * 7 + 3) % rows
        norm = _last_norm(model, self._rows([made[:16]], [np.arange(16) > 0], 16))
        self._weights = [p.requires_grad_() for p in norm.parameters(recurse=False)]
        self._seen: dict[str, Tensor] = {}
        # What is done to logits is only known where nothing is: then they need not all exist at once.
        install_loss_head(model, plain_head(model), self._device)
        norm.register_forward_hook(self._note_hidden)
        if (head := loss_head(model)) is not None:
            head.layer.register_forward_pre_hook(self._note_input)
        count = _rows_at_once(self._longest)
        longest = made[: self._longest]
        view = self._view([longest] * count, [np.arange(self._longest) > 0] * count)
        self.width = len(view.embedding)

    def _note_hidden(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._seen["hidden"] = output.detach()

    def _note_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen["input"] = inputs[0]

    def close(self) -> None:
        """Lets go of the model and its memory; nothing can be seen any more."""
        del self._model, self._weights
        self._seen.clear()
        gc.collect()  # layers and what was hung on them refer to each other
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def view(self, corpus: Examples, user: int) -> ModelView:
        """What the model makes of a user's first `MOST_EXAMPLES` examples. Private.

        What is not finite counts as nothing: an example's numbers are then 0, and so are the gradient's norm and the
        embedding, the latter also of a user without an example.
        """
        first, last = corpus.examples_of(user)
        examples = range(first, min(last, first + MOST_EXAMPLES))
        corpus.fetch(examples)
        tokens = [np.asarray(corpus.tokens(e)) for e in examples]
        return self._view(tokens, [np.asarray(corpus.targets(e)) for e in examples])

    def _view(self, tokens: list[NDArray[Any]], predicted: list[NDArray[np.bool_]]) -> ModelView:
        if not tokens:
            return ModelView((), (), (), 0.0, (0.0,) * self.width)
        longest = max(map(len, tokens))
        width = min(self._longest, -(-longest // _WIDTH) * _WIDTH)
        size = _rows_at_once(width)
        numbers: list[tuple[float, float, float]] = []
        gradient, hidden, count = np.zeros(sum(w.numel() for w in self._weights)), np.zeros(()), 0
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            rows = self._rows(tokens[part], predicted[part], width)
            losses, guessed, found = self._forward(rows)
            gradient = gradient + found.double().cpu().numpy()
            hidden = hidden + self._hidden_sum([len(t) for t in tokens[part]])
            count += len(rows.predicted)
            wanted = (rows.targets >= 0).cpu().numpy()
            values, hits = losses.double().cpu().numpy(), guessed.cpu().numpy()
            numbers += [_example(v[w], h[w]) for v, h, w in zip(values, hits, wanted, strict=True)]
        self._seen.clear()
        each = list(zip(*numbers, strict=True))
        norm = float(np.linalg.norm(gradient)) / max(1, count)
        return ModelView(each[0], each[1], each[2], norm if math.isfinite(norm) else 0.0, _unit(hidden))

    def _rows(self, tokens: list[NDArray[Any]], predicted: list[NDArray[np.bool_]], width: int) -> Rows:
        """One row per example, filled up with token 0, which nothing to its left sees."""
        inputs = np.zeros((len(tokens), width), dtype=np.int64)
        targets = np.full((len(tokens), width), -100, dtype=np.int64)
        for i, (own, wanted) in enumerate(zip(tokens, predicted, strict=True)):
            inputs[i, : len(own)] = own
            targets[i, : len(own) - 1] = np.where(wanted[1:], own[1:], -100)
        places = np.flatnonzero(targets != -100)
        return Rows(*(to_device(array, self._device) for array in (inputs, targets, places)))

    @torch.enable_grad()
    def _forward(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of every target and whether it is the model's first guess, both [rows, width]; and the gradient.

        The gradient is that of the summed loss by the last norm's weights, flat.
        """
        head = loss_head(self._model)
        if head is None:
            logits = self._model(input_ids=rows.inputs, use_cache=False).logits
            guessed = logits.detach().argmax(-1) == rows.targets
            losses = losses_of_logits(logits.flatten(0, 1).float(), rows.targets.flatten()).view_as(rows.targets)
            return losses.detach(), guessed, _flat(torch.autograd.grad(losses.sum(), self._weights))
        # The model runs up to its output layer; that is done here, once for all three.
        with head.losses_of(rows.targets, rows.predicted[:0]):
            self._model(input_ids=rows.inputs, use_cache=False)
        hidden = self._seen["input"].flatten(0, -2)[rows.predicted]
        wanted = rows.targets.flatten()[rows.predicted]
        size = max(1, CHUNK_BYTES // (4 * len(head.layer.weight)))
        with torch.no_grad():
            some = zip(torch.split(hidden, size), torch.split(wanted, size), strict=True)
            parts = [_of_logits(head.layer, *both) for both in some]
        each, right, back = (torch.cat(found) for found in zip(*parts, strict=True))
        losses = torch.zeros(rows.targets.shape, device=each.device).flatten().index_copy_(0, rows.predicted, each)
        guessed = torch.zeros_like(losses, dtype=torch.bool).index_copy_(0, rows.predicted, right)
        gradient = _flat(torch.autograd.grad(hidden, self._weights, back))
        return losses.view_as(rows.targets), guessed.view_as(rows.targets), gradient

    def _hidden_sum(self, lengths: list[int]) -> NDArray[np.float64]:
        """The sum of the last hidden states over all tokens that are no filling, float64, shape [width]."""
        hidden = self._seen["hidden"].double()
        places = torch.arange(hidden.shape[1], device=hidden.device)
        filling = places >= torch.tensor(lengths, device=hidden.device).unsqueeze(1)
        total: NDArray[np.float64] = hidden.masked_fill(filling.unsqueeze(-1), 0.0).sum(dim=(0, 1)).cpu().numpy()
        return total


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in gradients])


def _of_logits(layer: nn.Linear, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of some tokens, their losses and whether each is the first guess, both [n]; and the gradients, [n, in]."""
    logits = functional.linear(hidden, layer.weight, layer.bias)
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    errors = logits.softmax(1)
    errors[torch.arange(len(wanted), device=wanted.device), wanted] -= 1.0
    return losses, logits.argmax(1) == wanted, errors @ layer.weight


def _rows_at_once(width: int) -> int:
    return min(MOST_EXAMPLES, max(1, _TOKENS // width))


def _example(losses: NDArray[np.float64], guessed: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Loss, tail and guessed share of an example from those of its predicted tokens; 0 if one is not finite."""
    if not len(losses) or not np.isfinite(losses).all():
        return 0.0, 0.0, 0.0
    tail = np.sort(losses)[-max(1, len(losses) // TAIL) :]
    return float(losses.mean()), float(tail.mean()), float(guessed.mean())


def _unit(total: NDArray[np.float64]) -> tuple[float, ...]:
    norm = float(np.linalg.norm(total))
    if not math.isfinite(norm) or norm == 0:
        return (0.0,) * len(total)
    return tuple((total / norm).tolist())


def _last_norm(model: nn.Module, rows: Rows) -> nn.Module:
    """The last normalisation with weights that the model goes through: of a model as it is, not as it is called.

    Raises:
        ArgumentError: There is none.
    """
    passed: list[nn.Module] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        # Of heads of attention there may be norms as well, which have a width of their own.
        if isinstance(output, Tensor) and output.shape[:2] == rows.inputs.shape and output.dim() == 3:
            passed.append(module)

    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower() and [*m.parameters(recurse=False)]]
    handles = [m.register_forward_hook(note) for m in norms]
    try:
        with torch.no_grad():
            model(input_ids=rows.inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not passed:
        raise ArgumentError(
            "model.base: has no layer norm with weights, by whose gradient a plugin of this spec sees users"
        )
    return passed[-1]
