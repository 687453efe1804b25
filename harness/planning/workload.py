"""What a step has to do, counted: before anything is loaded, from the shape of the model and the spec's numbers.

Counts know no machine. What each of them costs on one is `simulating`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.planning.footprint import GATHERED, WHOLE_BELOW
from harness.planning.shapes import Shape


@dataclass(frozen=True)
class Workload:
    """A training step, whoever computes it.

    Attributes:
        shape: Of the base model.
        base_bytes: Of a weight of the base, in which it is computed with too: 2 or 4.
        coordinates: Trained weights.
        full: Whether all weights are trained: norms first, then a weighted backward pass.
        checkpointing: Whether activations are computed twice.
        stage: ZeRO stage.
        offload: What lies in the machine's memory.
        microbatch: Tokens of a micro-batch.
        longest: Tokens of the longest example, and of a row.
        units: Expected units (users, or examples of users) of a cohort.
        tokens: Expected tokens of a unit, padding included.
        examples: That are read for a unit, at most.
        moments: Numbers that the optimizer keeps per trained weight.
    """

    shape: Shape
    base_bytes: int
    coordinates: int
    full: bool
    checkpointing: bool
    stage: int
    offload: str
    microbatch: int
    longest: int
    units: float
    tokens: float
    examples: int
    moments: int

    @property
    def apart(self) -> bool:
        """Whether, with all weights trained, both passes go forward."""
        return self.full and (self.stage == 3 or self.checkpointing)


@dataclass(frozen=True)
class Amounts:
    """What the worker with the most to do has to do.

    Attributes:
        flops: Floating point operations.
        layer_calls: Layers that go forward and backward once, summed over micro-batches.
        gathers: Layers whose weights are collected from other workers (ZeRO 3), summed over micro-batches.
        messages: Collectives, each times the depth of a tree of all workers.
        summed: Bytes that go over the link for sums.
        collected: Bytes that go over it where what is spread out is put together.
        noise: Coordinates that get their noise.
        drawn: Units of the whole cohort, which every worker draws.
        fetched: Examples that this worker reads.
        offloaded: Bytes between the machine's memory and the device's.
    """

    flops: float = 0.0
    layer_calls: float = 0.0
    gathers: float = 0.0
    messages: float = 0.0
    summed: float = 0.0
    collected: float = 0.0
    noise: float = 0.0
    drawn: float = 0.0
    fetched: float = 0.0
    offloaded: float = 0.0


def multiplied(shape: Shape) -> int:
    """Weights that every token is multiplied with: all matrices, but an input table that is no output layer too."""
    sizes = {name: math.prod(one) for name, one in shape.weights.items() if len(one) == 2}
    tables = {name: n for name, n in sizes.items() if shape.vocabulary in shape.weights[name]}
    # Tied, there is one table and it is the output layer; else one of the two is only looked up in.
    looked_up = max(tables.values(), default=0) if len(tables) > 1 else 0
    return sum(sizes.values()) - looked_up


def flops_of_a_token(work: Workload, *, backward: bool = True) -> float:
    """Floating point operations per token; of the attention, those of a causal mask over a full row."""
    weights = multiplied(work.shape)
    attention = work.longest * work.shape.queries * work.shape.layers
    forward = 2 * weights + 2 * attention
    if not backward:
        return forward
    if work.full:
        # Backward for norms: to the inputs alone. Backward for the sum: to inputs and weights.
        return forward * (2 if work.apart else 1) + 6 * weights + 10 * attention
    again = forward if work.checkpointing else 0
    return forward + 2 * weights + 5 * attention + 6 * work.coordinates + again


def amounts_of_a_step(work: Workload, workers: int) -> Amounts:
    """Of one step on so many workers."""
    share = math.ceil(work.units / workers - 1e-9) if work.units >= 1 else work.units
    tokens = share * work.tokens
    batches = max(1, math.ceil(tokens / max(work.microbatch, 1) - 1e-9))
    passes = 1.0 if not work.full else 2.0 if work.apart else 5 / 3
    gathered = work.stage == 3
    summed, collected, calls = _collectives(work, batches, workers)
    if gathered:
        calls += batches * passes * work.shape.layers
    return Amounts(
        flops=tokens * flops_of_a_token(work),
        layer_calls=work.shape.layers * batches * passes,
        gathers=work.shape.layers * batches * passes if gathered else 0.0,
        messages=calls * math.ceil(math.log2(workers)) if workers > 1 else 0.0,
        summed=summed,
        collected=collected,
        noise=work.coordinates / (workers if work.full and work.stage >= 1 else 1),
        drawn=work.units,
        fetched=share * work.examples,
        offloaded=_offloaded(work, batches, passes, workers),
    )


def amounts_of_an_evaluation(work: Workload, users: float, tokens: float, workers: int) -> Amounts:
    """Of one pass over hold-out users, forward alone.

    Args:
        work: The training.
        users: Of the hold-out, an example each.
        tokens: Of an example.
        workers: Who share them.
    """
    batches = math.ceil(math.ceil(users * tokens / work.microbatch) / workers)
    own = min(users * tokens, batches * work.microbatch, math.ceil(users / workers) * tokens)
    gathered = work.stage == 3
    collected = batches * _spread(work) * _passed_on(workers) if gathered else 0.0
    calls = batches * work.shape.layers * math.ceil(math.log2(workers)) if gathered and workers > 1 else 0.0
    layers = work.shape.layers * batches
    return Amounts(
        flops=own * flops_of_a_token(work, backward=False),
        layer_calls=layers / 3,
        gathers=layers / 2 if gathered else 0.0,
        messages=calls,
        collected=collected,
        fetched=math.ceil(users / workers),
    )


def _passed_on(workers: int) -> float:
    """Of what is collected from all workers, the share that comes over the link."""
    return (workers - 1) / workers


def _spread(work: Workload) -> float:
    """Bytes of the weights that ZeRO 3 divides among the workers."""
    sizes = (math.prod(one) for one in work.shape.weights.values())
    return work.base_bytes * float(sum(n for n in sizes if n >= WHOLE_BELOW))


def _collectives(work: Workload, batches: int, workers: int) -> tuple[float, float, float]:
    """Bytes over the link of one worker in a step, for sums and for collecting; and calls. Of ring algorithms."""
    if workers == 1:
        return 0.0, 0.0, 0.0
    trained, share = 4.0 * work.coordinates, _passed_on(workers)
    # Of adapters there is the sum of the clipped gradients, and what DeepSpeed sums beside it: zeros, as many.
    sums = 1 if work.full else 2
    # A sum for everybody moves all twice: to be summed, and back. From stage 1 on, what comes back are new weights.
    twice = 2 if not work.full or work.stage == 0 else 1
    summed, collected = trained * (sums * twice), 0.0
    if work.stage >= 1:
        collected += trained
        summed -= 0.0 if work.full else trained
    if work.stage == 3:
        spread = _spread(work)
        # Of a large model the weights are collected again on the way back.
        times = batches * (2 if spread / work.base_bytes > GATHERED else 1) * (2 if work.apart else 1)
        collected += times * spread - (trained if work.full else 0.0)
    return summed * share, collected * share, float(sums + (work.stage >= 1))


def _offloaded(work: Workload, batches: int, passes: float, workers: int) -> float:
    if work.offload == "none":
        return 0.0
    states = 8.0 * work.coordinates / workers
    if work.offload == "parameters":
        return states + batches * passes * work.base_bytes * work.shape.parameters / workers
    return states
