"""What every worker runs: step by step, draw the cohort, collect clipped gradients, add noise, step, release.

Imports no Ray, so that a machine with a GPU and nothing else can train and measure.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from harness.data.cohorts import MicroBatch, Unit, deal, draw_cohort, micro_batches
from harness.data.store import Corpus
from harness.errors import ArgumentError, MachineError, UserError
from harness.files import append_private, as_json, hold, write_private, write_released
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness, load_key
from harness.training import checkpoints
from harness.training.batches import collate, pad, weighted_loss
from harness.training.checkpoints import Checkpoint
from harness.training.engine import Engine
from harness.training.evaluation import HoldoutSet, evaluate, is_finite
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.job import Failure, Folder, Job
from harness.training.model import build_model, save_adapter
from harness.training.noise import noisy_mean

Release = Callable[[Mapping[str, Any]], None]
PRIVATE, ORDINARY = "private", "ordinary"
WORKERS_GONE_SECONDS = 30.0
"""So long the workers of a resumed run wait for those of the interrupted one to end."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many workers this is."""

    rank: int
    world: int


@dataclass(frozen=True)
class Inputs:
    """What every series trains on. Private.

    Attributes:
        corpus: All examples.
        members: Per group, its training users.
        holdout: Public hold-out examples.
        randomness: The run's draws.
    """

    corpus: Corpus
    members: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    holdout: HoldoutSet
    randomness: Randomness

    @classmethod
    def load(cls, job: Job, folder: Folder) -> Inputs:
        """Opens the corpus and the run's private folder."""
        corpus = Corpus.load(job.corpus)
        groups = np.load(folder.members)
        training = ~np.asarray(corpus.holdout)
        members = tuple(np.flatnonzero((groups == g) & training) for g in range(len(job.mechanism.groups)))
        chosen = corpus.holdout_by_order(job.spec.evaluation.users)
        holdout = HoldoutSet(
            examples=tuple(corpus.examples_of(int(u))[0] for u in chosen),
            groups=tuple(int(groups[u]) for u in chosen),
            names=tuple(g.name for g in job.mechanism.groups),
        )
        return cls(corpus, members, holdout, load_key(folder.key))


def train(run_dir: Path, release: Release = lambda row: None) -> None:
    """Trains all series of a run on this worker; collective.

    Args:
        run_dir: The run's folder.
        release: Called on every rank with each row of released metrics.

    A reason to give up that the user can act on is left in the run's private folder, and the function returns; the
    driver reports it. Anything else is raised, and may be retried: all state is in the checkpoints.
    """
    folder = Folder(run_dir)
    try:
        with _alone(folder):
            _train(Job.load(run_dir), folder, release)
    except UserError as error:
        if _ranks().rank == 0:
            Failure(str(error), error.exit_code).save(run_dir)


def _train(job: Job, folder: Folder, release: Release) -> None:
    inputs = Inputs.load(job, folder)
    if not Series(PRIVATE, job, folder, inputs, job.mechanism, release).run():
        return
    if job.spec.evaluation.ordinary and job.mechanism.private:
        # Its own draws: a cohort that noise protects is never drawn again without.
        others = Inputs(inputs.corpus, inputs.members, inputs.holdout, inputs.randomness.derive(ORDINARY))
        Series(ORDINARY, job, folder, others, job.mechanism.without_privacy(), release).run()


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Nobody else trains this run meanwhile: workers can outlive their driver on a cluster. Collective.

    Raises:
        MachineError: Workers of an earlier try are still at work.
    """
    ranks, problem = _ranks(), ""
    with contextlib.ExitStack() as stack:
        if ranks.rank == 0:
            try:
                if not stack.enter_context(hold(folder.worker_lease, seconds=WORKERS_GONE_SECONDS)):
                    problem = "workers of an earlier try of this run are still at work; wait until they have ended"
            except MachineError as error:
                problem = str(error)
        if _any_rank(bool(problem), _collective_device()):
            raise MachineError(problem or "the first worker could not begin")
        yield


def _any_rank(happened: bool, device: torch.device) -> bool:
    """Whether something happened on any rank; collective."""
    flag = torch.tensor([float(happened)], device=device)
    if _ranks().world > 1:
        dist.all_reduce(flag)
    return bool(flag.item())


class Series:
    """One training from the initial adapter to the last step."""

    def __init__(
        self, name: str, job: Job, folder: Folder, inputs: Inputs, mechanism: Mechanism, release: Release
    ) -> None:
        """Builds model and engine; collective."""
        self.name, self.job, self.folder, self.inputs = name, job, folder, inputs
        self.mechanism, self.release, self.ranks = mechanism, release, _ranks()
        spec = job.spec
        model = build_model(job.base, spec.model, spec.seed).to(job.device)
        trainables = find_trainables(model)
        self.sink = UnitGradients(trainables, torch.device(job.device))
        self.engine = Engine(model, trainables, spec.train.optimizer, spec.compute.deepspeed.stage)
        self.device = self.engine.device
        self.clip_norms = torch.tensor([g.clip_norm for g in mechanism.groups], dtype=torch.float64)
        self.initial = self.engine.parameters()
        self.rows: list[Mapping[str, Any]] = []

    def run(self) -> bool:
        """Trains to the end, from the newest checkpoint if there is one.

        Returns:
            Whether it was finished (and not stopped on request).
        """
        step = self._resume()
        total = self.mechanism.steps
        every = self.job.spec.train.checkpoint_every
        while step < total:
            stop = self._step(step)
            step += 1
            self._note_progress(step)
            due = step % every == 0 or step == total
            if due:
                self._check_moves(step)
                self._evaluate(step)
            if due or stop:
                self._checkpoint(step)
            if stop and step < total:
                return False
        if self.name == PRIVATE:
            parameters = self.engine.parameters()
            if self.ranks.rank == 0 and not self.folder.adapter.exists():
                save_adapter(self.engine.module, parameters, self.job.spec.model.base, self.folder.adapter)
        return True

    # --- one step -------------------------------------------------------------------------------------------

    def _step(self, step: int) -> bool:
        """One release of the mechanism. Returns whether a stop was asked for."""
        randomness, corpus = self.inputs.randomness, self.inputs.corpus
        torch.manual_seed(randomness.seed("dropout", step, f"rank {self.ranks.rank} of {self.ranks.world}"))
        units = draw_cohort(self.mechanism, self.inputs.members, corpus, randomness, step)
        budget = self.job.spec.compute.microbatch_tokens
        batches = [micro_batches(s, corpus.example_lengths, budget) for s in deal(units, self.ranks.world)]
        mine = batches[self.ranks.rank]
        rounds = max(1, *(len(b) for b in batches))
        self.sink.reset()
        clipped, losses = 0, 0.0
        for i in range(rounds):
            if i < len(mine):
                loss, above = self._micro_batch(mine[i], last=i == rounds - 1)
                losses, clipped = losses + loss, clipped + above
            else:
                self._idle(last=i == rounds - 1)
        stop = self.ranks.rank == 0 and self.folder.stop.exists()
        aside = torch.tensor([float(stop), losses, float(clipped)], device=self.device)
        summed = torch.cat([self.sink.total, aside])
        if self.ranks.world > 1:
            dist.all_reduce(summed)
        total, (stopped, loss_sum, clipped_sum) = summed[: self.sink.size], summed[self.sink.size :].tolist()
        self.engine.step(noisy_mean(total, self.sink.trainables, self.mechanism, step, randomness))
        self._note_privately(step, len(units), loss_sum, clipped_sum)
        return bool(stopped > 0)

    def _micro_batch(self, batch: MicroBatch, *, last: bool) -> tuple[float, int]:
        rows = collate(self.inputs.corpus, batch.rows, self.device)
        units: Sequence[Unit] = batch.units
        weights = [1.0 / units[slot].targets for slot in batch.slots]
        inner = weighted_loss(rows, weights)
        seen: list[Tensor] = []

        def loss_of(model: Any) -> Tensor:
            loss = inner(model)
            seen.append(loss.detach())
            return loss

        self.sink.begin(batch.slots)
        self.engine.backward(loss_of, self.sink, last=last)
        limits = self.clip_norms[[u.group for u in units]].to(self.device)
        norms = self.sink.finish(limits, continues=batch.continues)
        above = int((norms > limits[: len(norms)]).sum())
        return float(seen[0]), above

    def _idle(self, *, last: bool) -> None:
        """A micro-batch of weight zero, to stay in step with the other ranks, or for an empty cohort."""
        self.sink.begin([0])
        self.engine.backward(weighted_loss(pad([[0, 0]], self.device), [0.0]), self.sink, last=last)
        self.sink.finish(torch.ones(1, dtype=torch.float64, device=self.device), continues=False)

    # --- beginning, releasing, ending -----------------------------------------------------------------------

    def _resume(self) -> int:
        checkpoint = checkpoints.load_newest(self.folder.checkpoints(self.name))
        released = max((r["step"] for r in _released(self.folder.metrics) if r["series"] == self.name), default=-1)
        if self.ranks.world > 1:
            # Nobody writes before everybody has read, or the ranks could begin from different places.
            dist.barrier()
        if released > (-1 if checkpoint is None else checkpoint.step):
            # Going back would compute a released step again.
            raise MachineError(f"the checkpoint of step {released}, which is released, is damaged; start a new run")
        if checkpoint is None:
            self._probe()
            if self.name == PRIVATE:
                self._evaluate(0)
            self._checkpoint(0)
            return 0
        if checkpoint.initial != checkpoints.digest_of(self.initial):
            raise MachineError("the adapter's initial weights differ from those of the interrupted run")
        self.rows = list(checkpoint.rows)
        self.sink.reset()
        self.engine.restore(
            checkpoint.parameters, checkpoint.optimizer, checkpoint.optimizer_steps, lambda: self._idle(last=True)
        )
        self._publish()
        self._note_progress(checkpoint.step)
        return checkpoint.step

    def _probe(self) -> None:
        """Sees on made-up tokens that the model computes and that the adapter can learn, before a record is read."""
        self.sink.reset()
        self.sink.begin([0])
        # As long as an example can be, and with the last tokens that there are.
        rows: int = self.engine.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
        made_up = [rows - 1 - i % rows for i in range(max(16, self.job.spec.data.max_tokens))]
        loss_of = weighted_loss(pad([made_up], self.device), [1.0 / (len(made_up) - 1)])
        seen: list[float] = []

        def probe(model: Any) -> Tensor:
            loss = loss_of(model)
            seen.append(float(loss.detach()))
            return loss

        self.engine.backward(probe, self.sink, last=False)
        unlimited = torch.full((1,), float("inf"), dtype=torch.float64, device=self.device)
        norms = self.sink.finish(unlimited, continues=False)
        if not np.isfinite(seen[0]) or not bool(torch.isfinite(norms).all()):
            raise UserError("the base model's loss is not finite: it would never train; try model.dtype: float32")
        for trainable in self.sink.trainables:
            if not self.initial[trainable.name].any() and not trainable.view(self.sink.total).any():
                raise UserError(f"{trainable.name} gets no gradient: it would stay zero; leave it out of the targets")
        self._check_causal()

    def _check_causal(self) -> None:
        """No token may see what lies to its right: padding, whose length depends on others, has no mask.

        The gradient of early outputs in later inputs must be exactly zero, at any dtype.
        """
        seen: list[Tensor] = []

        def watch(module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[0]

        model: Any = self.engine.module
        handle = model.get_input_embeddings().register_forward_hook(watch)
        try:
            rows = pad([list(range(1, 17))], self.device)
            early = model(input_ids=rows.inputs, use_cache=False).logits[:, :8]
            (gradient,) = torch.autograd.grad(early.float().square().sum(), seen[0])
        finally:
            handle.remove()
        if bool(gradient[:, 8:].any()):
            raise ArgumentError(
                "model.base: its tokens see what comes after them (it is no causal language model), so that one user's "
                "gradient would depend on others; it can't be trained privately"
            )

    def _check_moves(self, step: int) -> None:
        """Every trainable weight must have moved: one that didn't is not covered by clipping and noise."""
        current = self.engine.parameters()
        for name, value in current.items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{name} is no longer finite after {step} steps; try a smaller train.optimizer.lr")
            # Without noise, LoRA's first factor has no gradient until its second one, zero at first, has moved.
            if (self.mechanism.private or step > 1) and torch.equal(value, self.initial[name]):
                raise UserError(f"{name} has not moved in {step} steps: the adapter would stay what it was")

    def _evaluate(self, step: int) -> None:
        corpus, budget = self.inputs.corpus, self.job.spec.compute.microbatch_tokens
        found = evaluate(self.engine.module, corpus, corpus.example_lengths, self.inputs.holdout, budget, self.device)
        if not is_finite(found):
            raise UserError(f"the loss on hold-out users is not finite after {step} steps; try a smaller learning rate")
        epsilon = self.job.epsilon_after(step) if self.name == PRIVATE else None
        self.rows.append({"series": self.name, "step": step, "epsilon": epsilon, **found})

    def _checkpoint(self, step: int) -> None:
        """Makes the state durable, and only then releases its metrics; collective."""
        parameters = self.engine.parameters()
        state, count = self.engine.optimizer_state()
        problem = ""
        if self.ranks.rank == 0:
            initial = checkpoints.digest_of(self.initial)
            checkpoint = Checkpoint(step, parameters, state, count, self.rows, initial)
            try:
                checkpoints.save(self.folder.checkpoints(self.name), checkpoint)
            except MachineError as error:
                problem = str(error)
        if _any_rank(bool(problem), self.device):
            raise MachineError(problem or "a checkpoint could not be written")
        self._publish()

    def _publish(self) -> None:
        """Releases all rows that are durable and not yet out; doing it twice changes nothing."""
        if self.ranks.rank == 0:
            _append_missing(self.folder.metrics, self.rows)
        for row in self.rows[-1:]:
            self.release(row)

    def _note_progress(self, step: int) -> None:
        if self.ranks.rank == 0:
            now = {"series": self.name, "step": step, "steps": self.mechanism.steps, "time": time.time()}
            write_private(self.folder.progress, as_json(now).encode())

    def _note_privately(self, step: int, units: int, losses: float, clipped: float) -> None:
        if self.ranks.rank != 0:
            return
        mean = losses / units if units else None
        row = {
            "series": self.name,
            "step": step,
            "cohort": units,
            "train/loss": mean if mean is not None and np.isfinite(mean) else None,
            "clipped": clipped / units if units else None,
        }
        append_private(self.folder.private / "diagnostics.jsonl", (json.dumps(row) + "\n").encode())


def _ranks() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks(0, 1)


def _collective_device() -> torch.device:
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda") if nccl else torch.device("cpu")


def _append_missing(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    # A kill in the middle of a line leaves half of one: it is dropped, and its row written again.
    present = _released(path)
    known = {(row["series"], row["step"]) for row in present}
    missing = [row for row in rows if (row["series"], row["step"]) not in known]
    write_released(path, "".join(json.dumps(row) + "\n" for row in [*present, *missing]))


def _released(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
