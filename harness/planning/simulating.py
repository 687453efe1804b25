"""``uudp plan --on 64xH100``: seconds, memory and cost of a spec on devices that are not here.

Counts of what a step does (`workload`) times what each costs. Of CPUs, costs are measured (fitted and compared by
``scripts/bench/simulate.py``); of GPUs, they are data sheets and assumptions, each with a range, and the result says
so. Nothing is read of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise

from harness.planning.devices import Device
from harness.planning.workload import Amounts, Workload, amounts_of_a_step, amounts_of_an_evaluation

ERROR = 0.20
"""Of a step's predicted time on a CPU. Each of twelve measured sizes, predicted from all others, is off by less (at
worst 0.14); they are all of one model, on one machine, with one or two workers."""

RUN_ERROR = 0.30
"""The same of a whole run there. Assumed: start-up is known from one run alone."""

CORE_FLOPS = {2: 129e9, 4: 79e9}
"""FLOP/s that one core reaches in a training step, by bytes of a weight; fitted to ``step``, ``zero``, ``endtoend`` and
``full``."""

CORE_LAYER, CORE_GATHER = 9.83e-3, 15.7e-3
"""Seconds per layer and micro-batch that don't grow with its tokens; and those that ZeRO 3 adds. Fitted to the same."""

GLOO_MESSAGE, GLOO_SUMMED, GLOO_COLLECTED = 1.2e-4, 1.38e9, 0.77e9
"""Seconds of a small collective of two processes, and bytes per second of those of 8 MB, which is what a layer of the
measured model has; from ``pieces``. Much larger ones, which no cache holds, are up to three times slower."""

NOISE = 60e6
"""Coordinates per second that a core gives their noise; from ``pieces``."""

PREPARED = 210e3
"""Tokens of text per second and core that are read, tokenised and grouped; from ``pieces``, with Shakespeare."""

START = 24.0
"""Seconds of a run beside its steps and evaluations: Ray, loading, the report. From ``overhead``."""

CHECKPOINT, DISK = 0.024, 320e6
"""Seconds of a small checkpoint (synced, as they are), and bytes per second of a large one; from ``pieces``."""

PADDING = 0.05
"""Of a micro-batch; ``step_packed`` and ``endtoend`` have 0.06 and 0.04."""

FILL = (0.5, 0.75, 1.0)
"""Of `max_tokens`, what a drawn example has: least, likely, most. Nobody looks at texts; the quickstart has 0.73."""

# Users: seconds to draw one and cut micro-batches, seconds to read an example of 64 tokens; from ``cohort``.
_COHORT = (
    (1e4, 9.24e-6, 1.54e-6),
    (1e5, 9.92e-6, 1.62e-6),
    (1e6, 9.87e-6, 2.44e-6),
    (1e7, 9.90e-6, 4.52e-6),
    (1e8, 12.9e-6, 623e-6),
)
_READING = 10.0  # reading from a disk was that much off, between two sizes that were measured
_LAUNCH = (0.5e-3, 1e-3, 2e-3)  # per layer and micro-batch, of PyTorch without graphs; runs beside the GPU's work
_GPU_START = (25.0, 60.0, 240.0)
_LOADED = 1e9  # bytes of weights per second
_LINK_USED = (0.8, 0.6, 0.3)
_MESSAGE = (15e-6, 30e-6, 100e-6)
_GPU_NOISE = 1e9
_PCIE = 20e9


@dataclass(frozen=True)
class Costs:
    """What things cost on a device.

    Attributes:
        flops: Per second.
        layer: Seconds per layer and micro-batch.
        overlaps: Whether that runs beside the computation.
        gather: Seconds that ZeRO 3 adds per layer and micro-batch, beside the bytes.
        message: Seconds per collective and level of the tree.
        summing: Bytes per second over the link, of sums.
        collecting: The same of putting together what is spread out.
        noise: Coordinates per second.
        draw: Seconds per unit of the cohort.
        fetch: Seconds per example.
        offload: Bytes per second.
        start: Seconds of a run beside its training.
    """

    flops: float
    layer: float
    overlaps: bool
    gather: float
    message: float
    summing: float
    collecting: float
    noise: float
    draw: float
    fetch: float
    offload: float
    start: float


@dataclass(frozen=True)
class Range:
    """Least, likely and most."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> Range:
        """All of them."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True)
class Job:
    """A whole run, as it is simulated.

    Attributes:
        work: A step, with full examples.
        steps: Of each training.
        trainings: 1; 2 with an ordinary one for comparison.
        evaluations: Of the first training.
        holdout: Users of an evaluation.
        checkpoints: Of each training.
        users: To train on.
        examples_per_user: At most.
    """

    work: Workload
    steps: int
    trainings: int
    evaluations: int
    holdout: float
    checkpoints: int
    users: float
    examples_per_user: int


@dataclass(frozen=True)
class Prediction:
    """Of one number of devices.

    Attributes:
        devices: How many.
        step: Seconds.
        parts: Of the likely step.
        total: Seconds of the whole run.
        spent: Of the likely whole, by what they are for.
        tokens_per_second: Likely, padding not counted.
    """

    devices: int
    step: Range
    parts: Mapping[str, float]
    total: Range
    spent: Mapping[str, float]
    tokens_per_second: float

    @property
    def device_hours(self) -> Range:
        """What is to be paid for."""
        return self.total.times(self.devices / 3600)


def utilisation(device: Device, work: Workload) -> Range:
    """Of a GPU's peak, what training reaches: an assumption, less for narrow layers. Least, likely, most."""
    if work.base_bytes == 4:
        return Range(0.2, 0.4, 0.6)
    if work.shape.hidden < 1024:
        return Range(0.05, 0.15, 0.3)
    return Range(0.1, 0.25, 0.4) if work.shape.hidden < 2048 else Range(0.2, 0.35, 0.5)


def costs_on(
    device: Device, work: Workload, workers: int, users: float, used: Range | None = None
) -> tuple[Costs, Costs, Costs]:
    """The best, the likely and the worst case.

    Args:
        device: What computes.
        work: What is computed.
        workers: How many of them; more than a node's talk over the network.
        users: Of the population, which cohorts are drawn from.
        used: Of a GPU's peak; None: `utilisation`.
    """
    draw, fetch = reading(users)
    if not device.gpu:
        likely = Costs(
            flops=CORE_FLOPS[work.base_bytes],
            layer=CORE_LAYER,
            overlaps=False,
            gather=CORE_GATHER,
            message=GLOO_MESSAGE,
            summing=GLOO_SUMMED,
            collecting=GLOO_COLLECTED,
            noise=NOISE,
            draw=draw,
            fetch=fetch,
            offload=_PCIE,
            start=START,
        )
        return replace(likely, fetch=fetch / _READING), likely, replace(likely, fetch=fetch * _READING)
    peak = device.bfloat16 if work.base_bytes == 2 else device.float32
    link = device.link if workers <= device.per_node else device.network
    shares = used or utilisation(device, work)
    loading = work.base_bytes * work.shape.parameters / _LOADED

    host = 1 + ERROR  # by so much other machines' cores may differ, too

    def case(i: int, share: float, reads: float) -> Costs:
        return Costs(
            flops=peak * share,
            layer=_LAUNCH[i],
            overlaps=True,
            gather=_LAUNCH[i] / 2,
            message=_MESSAGE[i],
            summing=link * _LINK_USED[i],
            collecting=link * _LINK_USED[i],
            noise=(_GPU_NOISE if work.full else NOISE) / host ** (i - 1),
            draw=draw * host ** (i - 1),
            fetch=fetch * reads,
            offload=_PCIE,
            start=_GPU_START[i] + loading,
        )

    return case(0, shares.high, 1 / _READING), case(1, shares.likely, 1.0), case(2, shares.low, _READING)


def reading(users: float) -> tuple[float, float]:
    """Seconds to draw a unit, and to read an example, of a population; between measured sizes by interpolation."""
    if users <= _COHORT[0][0]:
        return _COHORT[0][1:]
    for (less, *low), (more, *high) in pairwise(_COHORT):
        if users <= more:
            share = math.log(users / less) / math.log(more / less)
            draw, fetch = (a * (b / a) ** share for a, b in zip(low, high, strict=True))
            return draw, fetch
    return _COHORT[-1][1:]  # beyond, every read goes to the disk already


def parts_of(amounts: Amounts, costs: Costs) -> dict[str, float]:
    """Seconds, by what they are for."""
    computing, calling = amounts.flops / costs.flops, amounts.layer_calls * costs.layer
    return {
        "compute": computing,
        "launching": max(0.0, calling - computing) if costs.overlaps else calling,
        "collectives": amounts.messages * costs.message
        + amounts.summed / costs.summing
        + amounts.collected / costs.collecting
        + amounts.gathers * costs.gather,
        "noise": amounts.noise / costs.noise,
        "cohort": amounts.drawn * costs.draw + amounts.fetched * costs.fetch,
        "offload": amounts.offloaded / costs.offload,
    }


def predict_on(job: Job, device: Device, workers: int, used: Range | None = None) -> Prediction:
    """Seconds of a step and of the whole run.

    Args:
        job: What runs.
        device: On what.
        workers: How many.
        used: Of a GPU's peak, where that is known.
    """
    steps, totals, likely = [], [], []
    for costs, fill in zip(costs_on(device, job.work, workers, job.users, used), FILL, strict=True):
        parts, spent = run_on(job, costs, fill, workers)
        steps.append(sum(parts.values()))
        totals.append(sum(spent.values()))
        likely.append((parts, spent))
    step_error, run_error = (0.0, 0.0) if device.gpu else (ERROR, RUN_ERROR)
    parts, spent = likely[1]
    return Prediction(
        devices=workers,
        step=Range(steps[0] / (1 + step_error), steps[1], steps[2] * (1 + step_error)),
        parts=parts,
        total=Range(totals[0] / (1 + run_error), totals[1], totals[2] * (1 + run_error)),
        spent=spent,
        tokens_per_second=job.work.units * job.work.tokens * FILL[1] / steps[1],
    )


def run_on(job: Job, costs: Costs, fill: float, workers: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a step, and of a whole run, by what they are for.

    Args:
        job: What runs.
        costs: Of a device.
        fill: Tokens of a drawn example over the most that it may have.
        workers: How many.
    """
    work = job.work
    filled = replace(work, tokens=work.tokens * min(1.0, fill / (1 - PADDING)))
    step = parts_of(amounts_of_a_step(filled, workers), costs)
    evaluation = parts_of(amounts_of_an_evaluation(work, job.holdout, work.longest * fill, workers), costs)
    evaluations = job.evaluations + (job.trainings - 1) * max(0, job.evaluations - 1)
    size = 4.0 * work.coordinates * (1 + work.moments)
    return step, {
        "start-up": costs.start,
        "training": sum(step.values()) * job.steps * job.trainings,
        "evaluation": sum(evaluation.values()) * evaluations,
        "checkpoints": (CHECKPOINT + size / DISK) * job.checkpoints * job.trainings,
    }


def useful(predictions: Mapping[int, Prediction], units: float) -> int:
    """The largest number of devices of which more than half is used, against one; never more than there are units."""
    one = predictions[1].step.likely
    fits = [n for n, p in predictions.items() if one / p.step.likely >= n / 2 and n <= max(1.0, units)]
    return max(fits, default=1)


def constants() -> dict[str, float]:
    """What was measured, for who wants to compare it."""
    return {
        "core_flops_bfloat16": CORE_FLOPS[2],
        "core_flops_float32": CORE_FLOPS[4],
        "core_layer_seconds": CORE_LAYER,
        "core_gather_seconds": CORE_GATHER,
        "gloo_message_seconds": GLOO_MESSAGE,
        "gloo_summed_bytes_per_second": GLOO_SUMMED,
        "gloo_collected_bytes_per_second": GLOO_COLLECTED,
        "noise_per_second": NOISE,
        "prepared_tokens_per_second": PREPARED,
        "start_seconds": START,
        "checkpoint_seconds": CHECKPOINT,
        "disk_bytes_per_second": DISK,
    }


def assumed(device: Device, work: Workload, used: Range | None = None) -> dict[str, object]:
    """What nobody has measured, with ranges: least, likely, most."""
    found: dict[str, object] = {
        "fill": list(FILL),
        "padding": PADDING,
        "reading_off_by": _READING,
        "offloaded_bytes_per_second": _PCIE,
    }
    if not device.gpu:
        return found
    share = used or utilisation(device, work)
    return {
        **found,
        "utilisation": list(asdict(share).values()),
        "utilisation_from": "given" if used is not None else "assumed",
        "launch_seconds_per_layer": list(_LAUNCH),
        "start_seconds": list(_GPU_START),
        "share_of_link": list(reversed(_LINK_USED)),
        "message_seconds": list(_MESSAGE),
        "loaded_bytes_per_second": _LOADED,
        "gpu_noise_per_second": _GPU_NOISE,
        "device": {f.name: getattr(device, f.name) for f in fields(device)},
    }
