"""What worker processes run for the tests; each function is called on every rank at once."""

from __future__ import annotations

import dataclasses
import resource
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import MachineError, UserError
from harness.spec.adapter_block import AdapterBlock
from harness.spec.compute_block import DeepspeedBlock
from harness.spec.models import ModelBlock, OptimizerBlock
from harness.training import checkpoints, engine, loop, noise, private_evaluation, ranks, two_pass, updating
from harness.training.batches import pad, weighted_loss
from harness.training.engine import Engine
from harness.training.evaluation import evaluate
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.initial import digest_of
from harness.training.inputs import PRIVATE, Inputs
from harness.training.job import Failure, Folder, Job
from harness.training.layout import Layout
from harness.training.loop import Series
from harness.training.memory import checkpoint_layers
from harness.training.model import build_model
from harness.training.probing import check_moves
from tests.tiny import make_mechanism
from tests.training.families import move

Weights = dict[str, np.ndarray[Any, Any]]
BOTH_FACTORS = AdapterBlock(r=4, alpha=16, targets=("q_proj", "v_proj"), freeze_a=False)


def _series(run_dir: Path) -> Series:
    job, folder = Job.load(run_dir), Folder(run_dir)
    return Series(PRIVATE, job, folder, Inputs.load(job, folder), job.mechanism, lambda row: None)


def _weights(of: Engine) -> Weights:
    return {name: value.numpy().copy() for name, value in of.parameters().items()}


def trained(run_dirs: Sequence[Path]) -> list[tuple[Weights, Weights]]:
    """Trains runs; returns each one's weights before and after, as this rank holds them."""
    found = []
    for run_dir in run_dirs:
        series = _series(run_dir)
        before = _weights(series.engine)
        assert series.run()
        found.append((before, _weights(series.engine)))
    return found


def precision_of_products(run_dir: Path) -> str:
    """Of a training that begins where float32 was allowed to be coarse."""
    torch.set_float32_matmul_precision("medium")
    try:
        _series(run_dir)
        return torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision("highest")


def packed_and_trained(run_dir: Path) -> tuple[int, Weights]:
    """Trains a run; how many of this rank's micro-batches had rows of several examples, and the weights after."""
    series = _series(run_dir)
    step_of, packed = series.update.step, []

    def step(number: int, cut: Any, *args: Any, **kwargs: Any) -> Any:
        packed.extend(batch.packed for batch in cut(pack=True)[series.ranks.rank])
        return step_of(number, cut, *args, **kwargs)

    with mock.patch.object(series.update, "step", step):
        assert series.run()
    return sum(packed), _weights(series.engine)


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
    series = _series(run_dir)
    beyond = {name: torch.full_like(weight, value) for name, weight in series.engine.parameters().items()}
    with pytest.raises(UserError) as caught:
        check_moves(beyond, series.initial, 1, series.device, private=False)
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
    real = updating.noisy_mean

    def dies(total: Any, trainables: Any, mechanism: Any, number: int, randomness: Any, factor: float) -> Any:
        if number == step:
            raise Crash
        return real(total, trainables, mechanism, number, randomness, factor)

    with mock.patch.object(updating, "noisy_mean", dies):
        try:
            loop.train(run_dir)
        except Crash:
            return True
    return False


def crashed_in_checkpoint(run_dir: Path, step: int, *, orderly: bool) -> tuple[str, list[tuple[str, int]]]:
    """`loop.train` where the checkpoint of `step` can't be written; returns how it ended, and what was released."""
    rows: list[tuple[str, int]] = []
    real = checkpoints.save

    def fails(folder: Path, checkpoint: Any, device: torch.device) -> None:
        if checkpoint.step == step:
            raise MachineError("the disk is full") if orderly else Crash
        real(folder, checkpoint, device)

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
    block = ModelBlock(base=str(base), dtype="float32", adapter=BOTH_FACTORS)
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
            sink.begin(Layout.of_rows([0, 1], made.device))
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
    step_of, micro_batch_of, finish_of = series._step, series.update._micro_batch, series.update.sink.finish
    now: dict[str, Any] = {}

    def step(number: int) -> bool:
        now["step"] = number
        return step_of(number)

    def micro_batch(batch: Any, *args: Any, **kwargs: Any) -> Any:
        now["units"] = batch.units
        return micro_batch_of(batch, *args, **kwargs)

    def finish(limits: torch.Tensor, *, continues: bool) -> torch.Tensor:
        before = series.update.sink.total.clone()
        series.update.sink.total.zero_()
        norms = finish_of(limits, continues=continues)
        if len(norms) == 1 and now.get("units"):  # one row a micro-batch: one unit at most
            added = float(series.update.sink.total.double().norm())
            found.append((now["step"], now["units"][0].group, float(norms[0]), added))
        series.update.sink.total += before
        now["units"] = None
        return norms

    with (
        mock.patch.object(series, "_step", step),
        mock.patch.object(series.update, "_micro_batch", micro_batch),
        mock.patch.object(series.update.sink, "finish", finish),
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
    model = build_model(base, ModelBlock(base=str(base), dtype="float32", adapter=BOTH_FACTORS), 0)
    sink = UnitGradients(find_trainables(model), torch.device("cpu"))
    if checkpointed:
        assert checkpoint_layers(model) == 2
    sink.begin(Layout.of_rows(range(16), torch.device("cpu")))
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


def adapted(
    folder: Path, adapter: AdapterBlock, stage: int, cohorts: Sequence[Sequence[Sequence[Sequence[int]]]]
) -> dict[str, Any]:
    """Steps of SGD (learning rate 1) on cohorts of users' texts, clipped to 0.5 each and divided by 4.

    Users are dealt to ranks; each rank has one example of theirs in a micro-batch.
    """
    block = ModelBlock(base=str(folder), dtype="float32", adapter=adapter)
    model = build_model(folder, block, 2, DeepspeedBlock(stage=stage))  # type: ignore[arg-type]
    move(model)
    trainables = find_trainables(model)
    sink = UnitGradients(trainables, torch.device("cpu"))
    made = Engine(model, trainables, OptimizerBlock(type="sgd", lr=1.0), stage)
    rank, world = (dist.get_rank(), dist.get_world_size())
    raw: list[float] = []
    for trainable in trainables:
        trainable.parameter.register_hook(lambda g: raw.append(float(g.abs().max())))
    for cohort in cohorts:
        shares = [cohort[r::world] for r in range(world)]
        rounds = max(sum(map(len, share)) for share in shares)
        own = [(text, i, t == len(user) - 1) for i, user in enumerate(shares[rank]) for t, text in enumerate(user)]
        sink.reset()
        for i in range(rounds):
            # Ranks with fewer take part with a weight of zero.
            text, user, ends = own[i] if i < len(own) else ([0, 0], None, True)
            targets = 1 if user is None else sum(len(t) - 1 for t in shares[rank][user])
            sink.begin(Layout.of_rows([0], torch.device("cpu")))
            rows = pad([text], torch.device("cpu"))
            made.backward(weighted_loss(rows, [float(user is not None) / targets]), sink, last=i == rounds - 1)
            sink.finish(torch.tensor([0.5], dtype=torch.float64), continues=not ends)
        total = sink.total.clone()
        dist.all_reduce(total)
        made.step(total / 4)
    return {"weights": _weights(made), "raw": raw}


def whole_updates(runs: Sequence[Path], steps: int) -> list[list[Weights]]:
    """Trains runs; the weights before and after every step, as this rank holds them."""
    found = []
    for run_dir in runs:
        series = _series(run_dir)
        weights = [_weights(series.engine)]
        for step in range(steps):
            series._step(step)
            weights.append(_weights(series.engine))
        found.append(weights)
    return found


def updates_of_kept_parameters(runs: Sequence[Path]) -> tuple[list[str], list[list[Weights]]]:
    """`whole_updates` of one step, where ZeRO 3 keeps small parameters whole as it does by itself; which it kept."""
    sharded = engine.deepspeed_config

    def by_default(stage: int, offload: engine.Offload = "none") -> dict[str, Any]:
        config = sharded(stage, offload)
        del config["zero_optimization"]["stage3_param_persistence_threshold"]
        return config

    with mock.patch.object(engine, "deepspeed_config", by_default):
        updates = whole_updates(runs, 1)
        series = _series(runs[0])
    trained: list[Any] = list(series.engine.trainables)
    return [t.name for t in trained if t.parameter.ds_persist], updates


def stretches(run_dir: Path) -> list[tuple[str, int, int]]:
    """One step; the stretches that this rank made noisy: parameter, first coordinate, how many."""
    found: list[tuple[str, int, int]] = []
    series = _series(run_dir)
    real = two_pass.noisy_part

    def seen(total: torch.Tensor, name: str, start: int, *rest: Any) -> torch.Tensor:
        found.append((name, start, total.numel()))
        return real(total, name, start, *rest)

    with mock.patch.object(two_pass, "noisy_part", seen):
        series._step(0)
    return found


class _Live(TorchDispatchMode):
    """Bytes of tensors that operations have made and that are still there: now, and at most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._see(tensor.untyped_storage(), given)
        return made

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def loaded(base: Path, stage: int, dtype: Any, seed: int, adapter: AdapterBlock = BOTH_FACTORS) -> dict[str, Any]:
    """Loads a model as a series does; what a rank holds of it, what it held at most, and what it all is."""
    import deepspeed

    block = ModelBlock(base=str(base), dtype=dtype, adapter=adapter)
    torch.manual_seed(100 * seed + dist.get_rank())
    with _Live() as live:
        model = build_model(base, block, seed, DeepspeedBlock(stage=stage))  # type: ignore[arg-type]
    own, whole, values = 0, 0, {}
    for name, parameter in model.named_parameters():
        part = getattr(parameter, "ds_tensor", parameter)
        with deepspeed.zero.GatheredParameters([parameter] if part is not parameter else []):
            values[name] = parameter.detach().float().numpy().copy()
            if not parameter.requires_grad:
                whole += parameter.numel() * parameter.element_size()
                own += part.numel() * part.element_size()
    types = {n: str(p.dtype) for n, p in model.named_parameters()}
    adapter = {n: torch.from_numpy(values[n]) for n, p in model.named_parameters() if p.requires_grad}
    return {
        "own": own, "whole": whole, "most": live.most, "values": values, "types": types,
        "initial": digest_of(adapter),
    }  # fmt: skip


def tried(run_dir: Path, cache: Path) -> dict[str, Any]:
    """A remembered trial on ranks of which one loses its cache: how often each ran it, and what they took it to say."""
    import os

    from harness.training.remembering import verdict_of

    rank = dist.get_rank()
    job, cpu = Job.load(run_dir), torch.device("cpu")
    runs, verdicts = [], []
    with mock.patch.dict(os.environ):
        # Both begin with nothing; then both have it; then one has lost it, and the other would now say no.
        for place, verdict in ((f"{rank}", True), (f"{rank}", True), ("0" if rank == 0 else "lost", rank == 0)):
            os.environ["UUDP_CACHE"] = str(cache / place)
            count: list[bool] = []

            def trial(count: list[bool] = count, verdict: bool = verdict) -> bool:
                dist.barrier()
                count.append(verdict)
                return verdict

            verdicts.append(verdict_of("made up", job, cpu, trial))
            runs.append(len(count))
    return {"runs": runs, "verdicts": verdicts}


def gathered_in_last_step(run_dir: Path, steps: int) -> tuple[int, int]:
    """A run at ZeRO 3, evaluated before it: how many weights its last step gathered, and how many there are.

    A step is one micro-batch.
    """
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    name = "_PartitionedParameterCoordinator__all_gather_params"
    real, gathered = getattr(Coordinator, name), []

    def counting(coordinator: Any, parameters: set[Any], forward: bool) -> Any:
        gathered.extend(p for p in parameters if p.ds_status.name == "NOT_AVAILABLE")
        return real(coordinator, parameters, forward)

    series = _series(run_dir)
    series._losses(0)
    with mock.patch.object(Coordinator, name, counting):
        for step in range(steps):
            gathered.clear()
            series._step(step)
    return len(gathered), len({id(p) for p in gathered})
