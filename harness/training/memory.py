"""Out of memory: the micro-batch is halved and the step repeated, with the same draws and the same users.

How large a micro-batch may be says something about who was drawn, so what was found stays private.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.errors import StuckError
from harness.files import as_json, write_private
from harness.planning.room import CPU_TOKENS
from harness.training.batches import pad, weighted_loss
from harness.training.engine import Engine
from harness.training.gradients import UnitGradients
from harness.training.job import Folder, Job
from harness.training.layout import Layout
from harness.training.ranks import any_rank


class MicroBatchTooLarge(RuntimeError):
    """A micro-batch did not fit; the next attempt goes on from the last checkpoint with one half as large."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is used up, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch has no type of its own for the CPU's.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def microbatch_tokens(job: Job, folder: Folder) -> int:
    """Tokens of a micro-batch: the spec's, or what earlier attempts of this run chose or came down to."""
    asked, kept = job.spec.compute.microbatch_tokens, kept_tokens(folder)
    if asked == "auto":
        return max(CPU_TOKENS, job.spec.data.max_tokens) if kept is None else kept
    return asked if kept is None else min(kept, asked)


def kept_tokens(folder: Folder) -> int | None:
    """What an earlier attempt of this run chose or came down to, if there was one."""
    return int(json.loads(folder.microbatch.read_text())["tokens"]) if folder.microbatch.exists() else None


def keep_tokens(folder: Folder, tokens: int) -> None:
    """Keeps a size for all later attempts of this run."""
    write_private(folder.microbatch, as_json({"tokens": tokens}).encode())


def try_out(engine: Engine, sink: UnitGradients, tokens: int, longest: int) -> int:
    """The largest micro-batch that fits, of `tokens` and its halves, tried on made-up tokens; collective.

    Not for ZeRO 3, where a rank that runs out of memory would leave the others waiting for its weights.

    Args:
        engine: The model.
        sink: What collects gradients; it is reset.
        tokens: To begin with.
        longest: Tokens of the longest example, with which it ends.
    """
    while tokens > longest and any_rank(not _fits(engine, sink, tokens, longest), engine.device):
        tokens = max(longest, tokens // 2)
    return tokens


def _fits(engine: Engine, sink: UnitGradients, tokens: int, longest: int) -> bool:
    rows = max(1, tokens // longest)
    sink.reset()
    sink.begin(Layout.of_rows(range(rows), engine.device))
    made_up = pad([[i % 2 for i in range(longest)]] * rows, engine.device)
    try:
        engine.backward(weighted_loss(made_up, [1.0 / longest] * rows), sink, last=False)
        sink.finish(torch.ones(rows, dtype=torch.float64, device=engine.device), continues=False)
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        sink.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def halving(job: Job, folder: Folder, tokens: int) -> Iterator[None]:
    """Notes a smaller micro-batch where what is done in here runs out of memory.

    Nothing is repeated in place: other ranks may be waiting in the middle of a collective, and DeepSpeed's buffers may
    be half filled. All workers start again, from the last checkpoint.

    Args:
        job: What is trained.
        folder: Where the smaller size is noted; ranks that fail together note the same one.
        tokens: The size that is in use.

    Raises:
        MicroBatchTooLarge: To be tried again.
        StuckError: There is nothing left to halve.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        longest = job.spec.data.max_tokens
        if tokens <= longest:
            raise StuckError(
                f"out of memory with one example at a time (data.max_tokens: {longest}); try "
                "compute.gradient_checkpointing: true, or compute.deepspeed.stage: 3 on more workers, or shorter "
                "examples, or a smaller model"
            ) from error
        # Twice the longest may hold one row or two: half of what is used, in any case.
        keep_tokens(folder, max(longest, tokens // 2))
        raise MicroBatchTooLarge from error


def checkpoint_layers(model: torch.nn.Module) -> int:
    """Lets every decoder layer forget its activations, and compute them again in the backward pass.

    Layers are wrapped, not switched by `transformers`, which does so in training mode alone: there dropout of the base
    would be on. The layer's gradients are recorded in the one backward pass, as ever.

    Args:
        model: With its adapter.

    Returns:
        How many layers; 0: the model has none that `transformers` knows how to checkpoint.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        _recompute(layer)
    return len(layers)


def _recompute(layer: torch.nn.Module) -> None:
    from torch.utils.checkpoint import checkpoint

    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(inner, *args, use_reentrant=False, **kwargs)

    layer.forward = forward
