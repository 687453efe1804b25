"""A plan on other devices: what `simulating` predicts of it, whether it fits there, and what would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.cache import default_cache_dir
from harness.errors import ArgumentError, MachineError
from harness.planning import room, simulating
from harness.planning.devices import DEVICES, MOST, Device, Target
from harness.planning.footprint import Footprint, Setting, predict
from harness.planning.plan import Plan
from harness.planning.shapes import Shape, find_folder, read_shape
from harness.planning.simulating import Job, Prediction, Range
from harness.planning.workload import Workload
from harness.spec import Spec

POWERS = tuple(2**k for k in range(MOST.bit_length()))
"""Numbers of devices that are predicted beside the one asked for."""


@dataclass(frozen=True)
class Elsewhere:
    """What is predicted. Public.

    Attributes:
        target: The devices.
        job: What runs on them.
        footprint: Memory of a worker there.
        advice: What would fit, where that does not.
        predictions: By number of devices, rising; the target's among them.
        room_for: By number of devices, whether a worker fits into one; None: unknown.
        price: Of a device-hour, in whatever money it was given in; None: not given.
        used: Of a GPU's peak, where it was given.
        notes: What a reader should know.
    """

    target: Target
    job: Job
    footprint: Footprint
    advice: str
    predictions: Mapping[int, Prediction]
    room_for: Mapping[int, bool | None]
    price: float | None
    used: Range | None
    notes: tuple[str, ...]

    @property
    def here(self) -> Prediction:
        """Of the target."""
        return self.predictions[self.target.count]

    @property
    def fits(self) -> bool | None:
        """Whether a worker fits into a device's memory; None: nobody knows how much that is."""
        return self.room_for[self.target.count]

    @property
    def refusal(self) -> str | None:
        """Why it can't run there, and what would; None: it can, or nobody knows."""
        memory = self.target.device.memory
        if self.fits is not False or memory is None:
            return None
        return (
            f"memory: needs about {room.gib(self.footprint.total)} per device "
            f"({self.job.work.microbatch} tokens per micro-batch), "
            f"{self.target.device.name} has {room.gib(memory)}. {self.advice}"
        )

    @property
    def useful(self) -> int:
        """Most devices of which more than half is used."""
        return simulating.useful(self.predictions, self.job.work.units)

    def cost(self, one: Prediction) -> Range | None:
        """Of so many devices."""
        return None if self.price is None else one.device_hours.times(self.price)

    def document(self) -> dict[str, Any]:
        """Plain data."""
        work, device = self.job.work, self.target.device
        return {
            "on": self.target.name,
            "devices": self.target.count,
            "device": device.name,
            "step_seconds": asdict(self.here.step),
            "step_parts": dict(self.here.parts),
            "seconds": asdict(self.here.total),
            "parts": dict(self.here.spent),
            "tokens_per_second": self.here.tokens_per_second,
            "device_hours": asdict(self.here.device_hours),
            "price": self.price,
            "cost": None if (cost := self.cost(self.here)) is None else asdict(cost),
            "speed_up": self._speed_up(self.here),
            "useful_devices": self.useful,
            "by_devices": [self._row(one) for one in self.predictions.values()],
            "memory": {
                "per_device": {**self.footprint.parts, "total": self.footprint.total},
                "host": dict(self.footprint.host),
                "available": device.memory,
                "fits": self.fits,
                "stage": work.stage,
                "microbatch_tokens": work.microbatch,
            },
            "data": self._data(),
            "error": self._error(),
            "measured": simulating.constants(),
            "assumed": simulating.assumed(device, work, self.used),
            "notes": list(self.notes),
        }

    def _error(self) -> dict[str, Any]:
        """How far off it may be: measured where that could be measured."""
        if self.target.device.gpu:
            return {"step": None, "run": None, "from": "no GPU was measured: ranges are those of the assumptions"}
        return {"step": simulating.ERROR, "run": simulating.RUN_ERROR, "from": "scripts/bench/simulate.py"}

    def _speed_up(self, one: Prediction) -> float:
        return self.predictions[1].step.likely / one.step.likely

    def _row(self, one: Prediction) -> dict[str, Any]:
        cost = self.cost(one)
        return {
            "devices": one.devices,
            "step_seconds": asdict(one.step),
            "seconds": asdict(one.total),
            "speed_up": self._speed_up(one),
            "device_hours": asdict(one.device_hours),
            "cost": None if cost is None else asdict(cost),
            "fits": self.room_for[one.devices],
        }

    def _data(self) -> dict[str, Any]:
        """Of preparing the data, which one process does once, before devices are needed."""
        users, each = self.job.users, self.job.examples_per_user
        tokens = users * each * self.job.work.longest * simulating.FILL[1]
        return {
            "users": users,
            "examples_per_user": each,
            "tokens": tokens,
            "prepare_core_seconds": tokens / simulating.PREPARED,
        }


def predict_elsewhere(
    plan: Plan, target: Target, *, price: float | None = None, used: float | None = None, folder: Path | None = None
) -> Elsewhere:
    """Predicts a plan's time, memory and cost.

    Args:
        plan: What would run.
        target: On what.
        price: Of a device-hour.
        used: Of a GPU's peak, as ``scripts/bench/gpu.py`` measures it; None: assumed.
        folder: The base model's; None: looked for on this machine.

    Raises:
        ArgumentError: The spec can't run on these devices, or waits for an answer that decides about time.
        MachineError: The base model's shape is not known here.
    """
    spec = plan.spec
    _check(spec, target, used)
    shape = _shape(plan, folder)
    there = spec.model_copy(update={"compute": spec.compute.model_copy(update={"workers": target.count})})
    device = target.device
    tokens = room.choose_tokens(there, shape, device.memory, gpu=device.gpu)
    setting = Setting.of(there, shape, tokens, gpu=device.gpu)
    job = _job(plan, shape, setting)
    share = None if used is None else Range(used, used, used)
    counts = sorted({*POWERS, target.count})
    found = Elsewhere(
        target=target,
        job=job,
        footprint=predict(shape, setting),
        advice="",
        predictions={n: simulating.predict_on(job, device, n, share) for n in counts},
        room_for={n: _fits(shape, replace(setting, workers=n), device) for n in counts},
        price=price,
        used=share,
        notes=(),
    )
    advice = _advice(shape, setting, device) if found.fits is False else ""
    return replace(found, advice=advice, notes=tuple(_notes(found, plan)))


def _check(spec: Spec, target: Target, used: float | None) -> None:
    wanted, gpu, on = spec.compute.accelerator, target.device.gpu, f"--on {target.name}"
    if (wanted == "cpu" and gpu) or (wanted == "cuda" and not gpu):
        raise ArgumentError(f"{on}: the spec says compute.accelerator: {wanted}")
    if used is not None and not gpu:
        raise ArgumentError(f"{on}: --utilisation is for GPUs; a core's speed is measured")
    if spec.model.adapter.type == "full" and spec.compute.deepspeed.stage == 0 and gpu and target.count > 1:
        raise ArgumentError(
            f"{on}: compute.deepspeed.stage: 0 does not go with adapter type: full on several GPUs; take 1, 2 or 3"
        )


def _shape(plan: Plan, folder: Path | None) -> Shape:
    name = plan.spec.model.base
    place = folder or find_folder(name, plan.loaded.base_dir, default_cache_dir())
    shape = None if place is None else read_shape(place)
    if shape is None:
        raise MachineError(
            f"--on: the shape of the base {name} is not known here, so that nothing can be predicted; model.base may "
            "be a folder that holds its config.json alone"
        )
    return shape


def _job(plan: Plan, shape: Shape, setting: Setting) -> Job:
    spec, mechanism = plan.spec, plan.mechanism
    if not plan.population.users_known:
        raise ArgumentError("--on: the number of users waits for a noisy answer; guess it: data.population=10000")
    # Of an average step: some groups take part in fewer.
    drawn = [mechanism.units(i) * g.sampling_rate * g.steps / mechanism.steps for i, g in enumerate(mechanism.groups)]
    units = sum(drawn)
    each = [1 if mechanism.sampling_unit == "example" else g.examples_per_user for g in mechanism.groups]
    examples = sum(d * e for d, e in zip(drawn, each, strict=True)) / units
    work = Workload(
        shape=shape,
        base_bytes=setting.base_bytes,
        coordinates=setting.coordinates,
        full=setting.full,
        checkpointing=setting.checkpointing,
        stage=setting.stage,
        offload=setting.offload,
        microbatch=setting.tokens,
        longest=setting.longest,
        units=units,
        tokens=examples * setting.longest,
        examples=max(each),
        moments=setting.moments,
    )
    times = -(-mechanism.steps // spec.train.checkpoint_every) + 1
    held = sum(plan.holdout_users)
    if spec.data.holdout.visibility == "public":
        held = min(held, spec.evaluation.users)
    return Job(
        work=work,
        steps=mechanism.steps,
        trainings=2 if spec.evaluation.ordinary and mechanism.private else 1,
        evaluations=times if held > 0 else 0,
        holdout=held,
        checkpoints=times,
        users=plan.population.users,
        examples_per_user=max(g.examples_per_user for g in mechanism.groups),
    )


def _fits(shape: Shape, setting: Setting, device: Device) -> bool | None:
    return None if device.memory is None else predict(shape, setting).total <= device.memory


def _advice(shape: Shape, setting: Setting, device: Device) -> str:
    """Changes of the spec, or a device with more memory."""
    assert device.memory is not None
    needed = predict(shape, setting).total
    larger = [one for one in DEVICES.values() if one.memory is not None and one.memory >= needed]
    found = room.advice(shape, setting, device.memory)
    if not larger:
        return found
    return f"{found}; or {min(larger, key=lambda one: one.memory or 0).name} as it is"


def _notes(found: Elsewhere, plan: Plan) -> Sequence[str]:
    work, target, notes = found.job.work, found.target, []
    if target.count > work.units:
        notes.append(
            f"A cohort of {work.units:.4g} {plan.mechanism.sampling_unit}s can't feed {target.count} devices: "
            f"at least {target.count - int(work.units)} have nothing to do at every step."
        )
    if target.count > found.useful:
        notes.append(
            f"Beyond {found.useful} devices, less than half of each is used: of a step on {target.count}, "
            f"{largest(found.here.parts)} takes the most."
        )
    if found.here.parts["launching"] > found.here.parts["compute"] and target.device.gpu and _cut_small(found):
        notes.append(
            f"Micro-batches of {work.microbatch} tokens leave a GPU waiting to be told what to do; "
            "compute.microbatch_tokens: auto takes as many as fit."
        )
    if target.device.gpu:
        notes.append("No GPU was at hand to measure: the range is that of the assumptions (--json names them).")
        if work.base_bytes == 4:
            notes.append("The base computes in float32; model.dtype: bfloat16 would be faster on a GPU.")
    else:
        notes.append(
            f"A cpu is one core of the machine that was measured, with one model and up to 2 workers: every step there "
            f"is within {simulating.ERROR:.0%} of what the others predict. Other models and more workers are "
            f"extrapolated, and of whole runs an error of {simulating.RUN_ERROR:.0%} is assumed."
        )
    if found.job.users > 1e8:
        notes.append("More than 10^8 users is beyond what was measured.")
    return notes


def _cut_small(found: Elsewhere) -> bool:
    """Whether a worker's share of a cohort is cut into several micro-batches."""
    work = found.job.work
    return work.units * work.tokens * simulating.FILL[1] / found.target.count > work.microbatch


def largest(parts: Mapping[str, float]) -> str:
    """The part that takes the most."""
    return max(parts, key=lambda name: parts[name])
