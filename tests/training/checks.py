"""What worker processes run for the tests; each function is called on every rank at once."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from harness.errors import MachineError, UserError
from harness.spec.models import AdapterBlock, ModelBlock, OptimizerBlock
from harness.training import checkpoints, engine, loop, noise, private_evaluation, ranks
from harness.training.batches import pad, weighted_loss
from harness.training.engine import Engine
from harness.training.evaluation import evaluate
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.job import Failure, Folder, Job
from harness.training.loop import PRIVATE, Inputs, Series
from harness.training.memory import checkpoint_layers
from harness.training.model import build_model
from harness.training.probing import check_moves
from tests.tiny import make_mechanism

Weights = dict[str, np.ndarray[Any, Any]]


def _series(run_dir: Path) -> Series:
    job, folder = Job.load(run_dir), Folder(run_dir)
    return Series(PRIVATE, job, folder, Inputs.load(job, folder), job.mechanism, lambda row: None)


def _weights(of: Engine) -> Weights:
    return {name: value.numpy() for name, value in of.parameters().items()}


def trained(run_dirs: Sequence[Path]) -> list[tuple[Weights, Weights]]:
    """Trains runs; returns each one's weights before and after, as this rank holds them."""
    found = []
    for run_dir in run_dirs:
        series = _series(run_dir)
        before = _weights(series.engine)
        assert series.run()
        found.append((before, _weights(series.engine)))
    return found


def train(run_dir: Path) -> str | None:
    """`loop.train`; returns the failure's message, if there is one."""
    loop.train(run_dir)
    if dist.is_initialized():
        dist.barrier()
    failure = Failure.load(run_dir)
    return None if failure is None else failure.message


def train_beside_others(run_dir: Path) -> str | None:
    """`train`, not waiting long for other workers of the same run."""
    with mock.patch.object(ranks, "WORKERS_GONE_SECONDS", 0.2):
        return train(run_dir)


def complaint_about_weights(run_dir: Path, value: float) -> str:
    """What is said of weights that are all `value`."""
    initial = _series(run_dir).initial
    beyond = {name: torch.full_like(weight, value) for name, weight in initial.items()}
    with pytest.raises(UserError) as caught:
        check_moves(beyond, initial, 1, private=False)
    return str(caught.value)


def released(run_dir: Path) -> list[tuple[str, int]]:
    """`loop.train`; returns what was released on this rank, in order."""
    rows: list[tuple[str, int]] = []
    loop.train(run_dir, lambda row: rows.append((row["series"], row["step"])))
    return rows


def stopped_after_release_of(run_dir: Path, step: int, series: str = "private") -> list[tuple[str, int]]:
    """`loop.train`, which is asked to stop as soon as the row of `step` is out; returns what was released."""
    rows: list[tuple[str, int]] = []

    def release(row: Mapping[str, Any]) -> None:
        rows.append((row["series"], row["step"]))
        if (row["series"], row["step"]) == (series, step):
            Folder(run_dir).stop.touch()

    loop.train(run_dir, release)
    dist.barrier()
    Folder(run_dir).stop.unlink(missing_ok=True)
    return rows


class Crash(BaseException):
    """Nobody catches this."""


def crashed_in_step(run_dir: Path, step: int) -> bool:
    """`loop.train` whose every worker dies in the middle of step number `step`; returns whether it did."""
    real = loop.noisy_mean

    def dies(total: Any, trainables: Any, mechanism: Any, number: int, randomness: Any, factor: float) -> Any:
        if number == step:
            raise Crash
        return real(total, trainables, mechanism, number, randomness, factor)

    with mock.patch.object(loop, "noisy_mean", dies):
        try:
            loop.train(run_dir)
        except Crash:
            return True
    return False


def crashed_in_checkpoint(run_dir: Path, step: int, *, orderly: bool) -> tuple[str, list[tuple[str, int]]]:
    """`loop.train` where the checkpoint of `step` can't be written; returns how it ended, and what was released."""
    rows: list[tuple[str, int]] = []
    real = checkpoints.save

    def fails(folder: Path, checkpoint: Any) -> None:
        if checkpoint.step == step:
            raise MachineError("the disk is full") if orderly else Crash
        real(folder, checkpoint)

    with mock.patch.object(checkpoints, "save", fails):
        try:
            loop.train(run_dir, lambda row: rows.append((row["series"], row["step"])))
        except Crash:
            return "crashed", rows
    return "returned", rows


def train_on_a_full_disk(run_dir: Path, what: str) -> str | None:
    """`loop.train` whose writer `what` is refused by the system, once step 4 is due or later; returns the failure."""
    owner, name = (checkpoints, "save") if what == "checkpoints.save" else (loop, what)
    real, limits = getattr(owner, name), resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = name.startswith(("write", "append_private")) or name == "save_adapter"
    calls = 0

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 2 and not refused:
            return real(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        try:
            return real(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with mock.patch.object(owner, name, fails):
        failure = loop.train(run_dir)
    dist.barrier()
    return None if failure is None else failure.message


def evaluated(run_dir: Path, budgets: Sequence[int]) -> list[Mapping[str, float]]:
    """The evaluation of a run's initial model under each budget."""
    series = _series(run_dir)
    inputs = series.inputs
    corpus = inputs.corpus
    return [
        evaluate(series.engine.module, corpus, corpus.example_lengths, inputs.holdout, budget, series.device)
        for budget in budgets
    ]


def stepped_engine(base: Path, stage: int, optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Two steps of an engine with gradients given; returns what DeepSpeed saw of them on the way."""
    block = ModelBlock(base=str(base), dtype="float32", adapter=AdapterBlock(r=4, targets=("q_proj", "v_proj")))
    model = build_model(base, block, 0)
    trainables = find_trainables(model)
    raw: list[float] = []
    for trainable in trainables:
        trainable.parameter.register_hook(lambda g: raw.append(float(g.detach().abs().max())))
    sink = UnitGradients(trainables, torch.device("cpu"))
    made = Engine(model, trainables, OptimizerBlock(**optimizer), stage)
    inside = made._engine
    whole = [t.name for t in trainables if t.parameter.numel()]
    held: list[torch.Tensor] = []
    real_step = inside.step

    def step(*args: Any, **kwargs: Any) -> Any:
        held.append(made.gradient())
        return real_step(*args, **kwargs)

    inside.step = step
    weights, given, buffers, norms = [_weights(made)], [], [], []
    generator = torch.Generator().manual_seed(11)
    for _ in range(2):
        sink.reset()
        gradient = torch.randn(sink.size, generator=generator) * 100
        for k in range(3):
            # Another text on every rank: a gradient that came through DeepSpeed would differ.
            row = [(7 * i + 3 * k + dist.get_rank()) % 90 for i in range(9 + k)]
            sink.begin([0, 1])
            made.backward(weighted_loss(pad([row, row[::-1]], made.device), [50.0, 20.0]), sink, last=k == 2)
            norms.append(sink.finish(torch.full((2,), 1e9, dtype=torch.float64), continues=False).tolist())
        buffers.append(float(made.gradient().abs().max()))
        made.step(gradient)
        given.append(gradient)
        weights.append(_weights(made))
    return {
        "weights": weights,
        "given": [g.numpy() for g in given],
        "held": [h.numpy() for h in held],
        "raw": raw,
        "buffers": buffers,
        "norms": norms,
        "layout": [(t.name, t.offset, t.size, t.shape) for t in trainables],
        "whole": len(whole),
        "clipping": inside.gradient_clipping(),
        "fp16": inside.fp16_enabled(),
        "stage": inside.zero_optimization_stage(),
        "accumulation": inside.gradient_accumulation_steps(),
    }


def engine_with_clipping(base: Path) -> str:
    """What happens when DeepSpeed's own clipping is on."""
    block = ModelBlock(base=str(base), dtype="float32")
    model = build_model(base, block, 0)
    config = engine.deepspeed_config(1) | {"gradient_clipping": 1.0}
    with mock.patch.object(engine, "deepspeed_config", return_value=config):
        try:
            Engine(model, find_trainables(model), OptimizerBlock(type="sgd", lr=1.0), 1)
        except RuntimeError as error:
            return str(error)
    return ""


def noise_of_updates(
    base: Path, root: Path, cache: Path, stages: Sequence[int], options: Mapping[str, Any]
) -> dict[int, tuple[Weights, Weights]]:
    """One SGD step with learning rate 1, with noise and without.

    Returns:
        Per ZeRO stage, the update with noise minus the update without, and the update without, on this rank.
    """
    from tests.tiny import make_run

    found = {}
    for stage in stages:
        updates = []
        for noise_std in (options["noise_std"], 0.0):
            run_dir = root / f"stage-{stage}-{noise_std}"
            if dist.get_rank() == 0:
                make_run(
                    run_dir,
                    base,
                    cache=cache,
                    mechanism=make_mechanism(steps=1, **{**options["mechanism"], "noise_std": noise_std}),
                    model={"adapter": {"dropout": options["dropout"]}},
                    train={"optimizer": {"type": "sgd", "lr": 1.0}},
                    compute={"deepspeed": {"stage": stage}, "microbatch_tokens": options["microbatch_tokens"]},
                )
            dist.barrier()
            ((before, after),) = trained([run_dir])
            updates.append({n: before[n].astype(np.float64) - after[n] for n in before})
        with_noise, without = updates
        found[stage] = ({n: with_noise[n] - without[n] for n in without}, without)
    return found


def contributions(run_dir: Path) -> list[tuple[int, int, float, float]]:
    """Trains a run; what each of this rank's completed units added to the sum of its step.

    Returns:
        Step, group, norm before clipping and norm of what was added.
    """
    found: list[tuple[int, int, float, float]] = []
    series = _series(run_dir)
    step_of, micro_batch_of, finish_of = series._step, series._micro_batch, series.sink.finish
    now: dict[str, Any] = {}

    def step(number: int) -> bool:
        now["step"] = number
        return step_of(number)

    def micro_batch(batch: Any, *args: Any, **kwargs: Any) -> Any:
        now["units"] = batch.units
        return micro_batch_of(batch, *args, **kwargs)

    def finish(limits: torch.Tensor, *, continues: bool) -> torch.Tensor:
        before = series.sink.total.clone()
        series.sink.total.zero_()
        norms = finish_of(limits, continues=continues)
        if len(norms) == 1 and now.get("units"):  # one row a micro-batch: one unit at most
            added = float(series.sink.total.double().norm())
            found.append((now["step"], now["units"][0].group, float(norms[0]), added))
        series.sink.total += before
        now["units"] = None
        return norms

    with (
        mock.patch.object(series, "_step", step),
        mock.patch.object(series, "_micro_batch", micro_batch),
        mock.patch.object(series.sink, "finish", finish),
    ):
        series.run()
    return found


def noisy_sums(run_dir: Path, crash_in: int | None = None) -> list[tuple[str, int, str, float]]:
    """`loop.train`; every noisy sum that was made on this rank: purpose, step, name and standard deviation."""
    found: list[tuple[str, int, str, float]] = []
    real = noise.noisy_sum

    def seen(values: Any, std: float, randomness: Any, purpose: str, step: int, name: str) -> Any:
        found.append((purpose, step, name, std))
        return real(values, std, randomness, purpose, step, name)

    with (
        mock.patch.object(noise, "noisy_sum", seen),
        mock.patch.object(private_evaluation, "noisy_sum", seen),
    ):
        if crash_in is None:
            loop.train(run_dir)
        else:
            assert crashed_in_step(run_dir, crash_in)
    return found


def sums_of_hold_out_users(run_dirs: Sequence[Path], center: float, bound: float) -> list[list[float]]:
    """What a private evaluation of each run's initial model would hide with noise: the exact vector over groups."""
    found = []
    real = private_evaluation.bounded_sums
    for run_dir in run_dirs:
        series = _series(run_dir)

        def exact(losses: Any, groups: Any, _: Any, __: float) -> Any:
            sums = real(losses, groups, np.full(2, center), bound)
            found.append(sums.tolist())
            return sums

        with mock.patch.object(private_evaluation, "bounded_sums", exact):
            series._losses(0)
    return found


def losses_with(run_dir: Path, **changes: Any) -> Mapping[str, float]:
    """What an evaluation of the initial model releases, were the job another."""
    job, folder = dataclasses.replace(Job.load(run_dir), **changes), Folder(run_dir)
    series = Series(PRIVATE, job, folder, Inputs.load(job, folder), job.mechanism, lambda row: None)
    return series._losses(0)


def saved_bytes(base: Path, *, checkpointed: bool) -> int:
    """Bytes of activations that live between forward and backward of one micro-batch."""
    model = build_model(base, ModelBlock(base=str(base), dtype="float32", adapter=AdapterBlock(r=2)), 0)
    sink = UnitGradients(find_trainables(model), torch.device("cpu"))
    if checkpointed:
        assert checkpoint_layers(model) == 2
    sink.begin(list(range(16)))
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    rows = pad([list(range(1, 65))] * 16, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_base_model().model(input_ids=rows.inputs, use_cache=False)  # type: ignore[operator]
    assert hidden is not None
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(storage.nbytes() for place, storage in held.items() if place not in weights)
