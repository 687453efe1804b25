"""Memory that a worker will need, by arithmetic on the shape of the model: before it is loaded, without torch.

What is predicted is the largest resident size of one worker process on a CPU (as the system counts it: ``VmHWM``), or
the largest use of one GPU. The constants are what was counted in the code that runs (which tensors autograd keeps for
a frozen base with adapters) and, where nothing can be counted, measured once (``scripts/bench/fit.py`` compares).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from harness.data.blocks import BLOCK, MOST_BLOCKS
from harness.planning.shapes import Shape
from harness.spec.models import Spec

MIB = 2**20
PROCESS = 560 * MIB
"""Resident size of a worker process with Python, torch, DeepSpeed, transformers, PEFT and Ray loaded, and no model."""

GPU_CONTEXT = 600 * MIB
"""What the driver and the libraries keep on a GPU beside the tensors."""

RAY = 900 * MIB
"""Ray's own processes on the machine, and the driver."""

HEAD: int | None = 96 * MIB
"""Most bytes that the output layer works in at a time, a few tokens after the other; None: all logits at once."""

WHOLE_BELOW = 100_000
"""ZeRO 3 keeps weights of fewer elements whole on every worker."""

GATHERED = 1_000_000_000
"""ZeRO 3 keeps up to so many gathered elements for the next use of their layer."""

BUCKET = 50_000_000
"""Elements of gradients that are reduced at a time at ZeRO 3, but for a larger single weight."""

FILE_BYTES = 512 * MIB
"""Most bytes of weights that are written into one file, and held for that, but for a larger single one."""

_MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
_FLAT_VECTORS = 4
# Per token and word of the vocabulary: softmax, its gradient and that of the logits, in float32, are there at once,
# and beside them logits in the base's type, where that is another.
_HEAD_BYTES = {4: 16, 2: 14}


@dataclass(frozen=True)
class Setting:
    """What of a spec, and of the machine, decides about memory.

    Attributes:
        tokens: Of a micro-batch.
        longest: Tokens of the longest example.
        workers: Processes that train.
        stage: ZeRO stage.
        offload: What lies in the machine's memory instead of the GPU's.
        checkpointing: Whether activations are forgotten and computed again.
        base_bytes: Of a weight of the base: 2 or 4.
        coordinates: Trained weights.
        inputs: Widths of the inputs that the adapters of one layer keep, summed.
        full: Whether all weights are trained.
        moments: Numbers that the optimizer keeps per trained weight.
        gpu: Whether a GPU computes.
        units: Units in a micro-batch, at most; None: by `tokens` and `longest`.
        spreads: Whether a unit's examples may lie in several micro-batches.
        stored: Whether examples are read from a store, of which a process keeps what it read last.
    """

    tokens: int
    longest: int
    workers: int
    stage: int
    offload: Literal["none", "optimizer", "parameters"]
    checkpointing: bool
    base_bytes: int
    coordinates: int
    inputs: int
    full: bool
    moments: int
    gpu: bool
    units: int | None = None
    spreads: bool = False
    stored: bool = False

    @classmethod
    def of(cls, spec: Spec, shape: Shape, tokens: int, *, gpu: bool) -> Setting:
        """That of a spec, with so many tokens in a micro-batch."""
        adapter, compute, optimizer = spec.model.adapter, spec.compute, spec.train.optimizer
        full = adapter.type == "full"
        base_bytes = 2 if spec.model.dtype == "bfloat16" else 4
        return cls(
            tokens=tokens,
            longest=spec.data.max_tokens,
            workers=compute.fewest_workers,
            stage=compute.deepspeed.stage,
            offload=compute.deepspeed.offload,
            checkpointing=compute.gradient_checkpointing,
            base_bytes=4 if full else base_bytes,
            coordinates=shape.trained(adapter),
            inputs=0 if adapter.type != "lora" else shape.adapter_inputs(adapter.targets, shared=base_bytes == 4),
            full=full,
            moments=0 if optimizer.type == "sgd" and not optimizer.momentum else _MOMENTS[optimizer.type],
            gpu=gpu,
            spreads=spec.sampling.unit != "example" and spec.sampling.examples_per_user != 1,
            stored=compute.prepare.store is not None,
        )

    @property
    def most_units(self) -> int:
        """Units of a micro-batch. Nobody knows how well texts fill `longest`: half is taken."""
        if self.units is not None:
            return self.units
        return max(1, math.ceil(2 * self.tokens / self.longest))


@dataclass(frozen=True)
class Footprint:
    """Bytes per worker at its largest moment.

    Attributes:
        parts: By what they are for; on the GPU if there is one, else in the machine's memory.
        host: Those in the machine's memory where a GPU computes.
    """

    parts: Mapping[str, int]
    host: Mapping[str, int]

    @property
    def total(self) -> int:
        """The sum of `parts`."""
        return sum(self.parts.values())


def predict(shape: Shape, setting: Setting) -> Footprint:
    """What a worker needs.

    Args:
        shape: Of the base model.
        setting: How it is trained.
    """
    s = setting
    parts = {"process": GPU_CONTEXT if s.gpu else PROCESS, **_weights(shape, s), **_trained(s)}
    resting = sum(parts.values())
    # Where all weights are trained, a unit's gradient is there only if its micro-batches are several; one may end where
    # the next begins. It is not divided among workers.
    units = 4 * s.coordinates * ((2 if s.spreads else 0) if s.full else s.most_units)
    kept, working = _activations(shape, s)
    head = min(_HEAD_BYTES[s.base_bytes] * s.tokens * shape.vocabulary, HEAD or math.inf)
    parts["unit gradients"] = units
    parts["activations"] = kept
    parts["head"] = int(max(head, working))
    if not s.gpu:
        parts["holes"] = int(_hole_share(s) * s.tokens * shape.layers * _layer(shape, s)) + parts.get("gathered", 0)
    # After the backward pass activations are gone, and the units' gradients of adapters are there twice; while the base
    # is loaded in another type, so are its files; a checkpoint holds what goes into a file.
    largest = max(
        sum(parts.values()),
        resting + (units if s.full else 2 * units),
        resting + _loading(shape, s),
        resting + (0 if s.gpu else _writing(shape, s)),
    )
    parts["loading"] = max(0, largest - sum(parts.values()))
    host: dict[str, int] = {}
    (host if s.gpu else parts)["data"] = BLOCK * MOST_BLOCKS if s.stored else 0
    if s.gpu:
        host["process"] = PROCESS
        host["writing"] = _writing(shape, s)
        if s.offload != "none":
            host["optimizer"] = parts.pop("optimizer")
        if s.offload == "parameters":
            host["base"] = parts.pop("base")
    return Footprint(*({name: size for name, size in found.items() if size} for found in (parts, host)))


def _weights(shape: Shape, s: Setting) -> dict[str, int]:
    if s.stage < 3:
        return {"base": s.base_bytes * shape.parameters}
    sizes = [math.prod(one) for one in shape.weights.values()]
    small = sum(n for n in sizes if n < WHOLE_BELOW)
    sharded = shape.parameters - small
    gathered = 0 if s.workers == 1 and not s.gpu else max(shape.largest, min(sharded, GATHERED))
    return {
        "base": s.base_bytes * (small + math.ceil(sharded / s.workers)),
        "gathered": s.base_bytes * gathered,
    }


def _trained(s: Setting) -> dict[str, int]:
    share = s.workers if s.stage >= 1 else 1
    masters = 1 if s.stage >= 1 else 0
    # On a GPU the bucket is there from the start.
    bucket = 0 if s.stage < 3 else BUCKET if s.gpu else min(BUCKET, s.coordinates)
    if s.full:  # the weights themselves are the base's
        gradients = math.ceil(s.coordinates / (s.workers if s.stage >= 2 else 1))
        return {
            "gradients": 4 * (gradients + bucket),
            "optimizer": 4 * math.ceil(s.coordinates * (s.moments + masters) / share),
        }
    return {
        "adapter": 4 * s.coordinates,
        "gradients": 4 * (s.coordinates * _FLAT_VECTORS + bucket),
        "optimizer": 4 * math.ceil(s.coordinates * (s.moments + masters) / share),
    }


def _hole_share(s: Setting) -> float:
    """Of all layers' activations: what the C library's heap has free but can't use, as measured with glibc.

    Giving every tensor back at once would avoid it, and take a half more time.
    """
    if s.stage == 3 and s.workers > 1:  # weights come and go between activations
        return 0.6
    if s.checkpointing:
        return 0.3
    return 0.2 if s.base_bytes == 4 else 0.1


def _layer(shape: Shape, s: Setting) -> int:
    """Bytes of a layer's activations per token."""
    b, h = s.base_bytes, shape.hidden
    norms = 2 * h * (4 if shape.gated else b)
    attention = b * 4 * shape.queries
    inner = b * shape.inner * (3 if shape.gated else 4)
    adapters = 4 * s.inputs
    if s.full:  # a product whose weight is trained keeps its input
        adapters = b * (2 * h + shape.queries + shape.inner)
    return norms + attention + inner + adapters


def _activations(shape: Shape, s: Setting) -> tuple[int, int]:
    """What is kept for the backward pass, and what is worked with beside it at a time."""
    b, h = s.base_bytes, shape.hidden
    layer = _layer(shape, s)
    working = b * 4 * shape.inner + 16 * h
    if s.checkpointing:
        return s.tokens * shape.layers * h * b, s.tokens * (layer + working)
    return s.tokens * shape.layers * layer, s.tokens * working


def _loading(shape: Shape, s: Setting) -> int:
    """Pages of the weights' files that are read while weights are made of them in another type.

    Files of the same type are not copied but mapped.
    """
    if s.gpu or not shape.file_bytes:
        return 0
    same = (
        shape.file_bytes == s.base_bytes * shape.parameters
        or abs(shape.file_bytes / (s.base_bytes * shape.parameters) - 1) < 0.01
    )
    return 0 if same else shape.file_bytes


def _writing(shape: Shape, s: Setting) -> int:
    """What the first worker holds of the weights, or of as large a part of the optimizer's state, to write it.

    A weight that is gathered for it is there twice.
    """
    states = max(1, s.moments)
    return min(4 * s.coordinates * states, FILE_BYTES) + 8 * min(s.coordinates, shape.largest)


def with_tokens(setting: Setting, tokens: int) -> Setting:
    """The same with another micro-batch."""
    return replace(setting, tokens=tokens)
