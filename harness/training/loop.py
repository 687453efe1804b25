"""What every worker runs: step by step, draw the cohort, collect clipped gradients, add noise, step, release.

Imports no Ray, so that a machine with a GPU and nothing else can train and measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from harness.data.cohorts import deal, draw_cohort, micro_batches
from harness.errors import ArgumentError, MachineError, StuckError, UserError
from harness.files import append_private, as_json, write_private
from harness.privacy.mechanism import Mechanism
from harness.training import checkpoints
from harness.training.adapting import next_factor
from harness.training.checkpoints import Checkpoint
from harness.training.engine import Engine
from harness.training.evaluation import evaluate, is_finite, user_losses
from harness.training.gradients import UnitGradients, find_trainables
from harness.training.head import install_loss_head, plain_head
from harness.training.initial import Initial
from harness.training.inputs import ORDINARY, PRIVATE, Inputs, holdout_is_private
from harness.training.job import Failure, Folder, Job
from harness.training.memory import checkpoint_layers, halving, keep_tokens, microbatch_tokens, try_out
from harness.training.model import build_model, frozen_factors, save_adapter
from harness.training.noise import noisy_share
from harness.training.packing import keeps_apart
from harness.training.planting import Directions, Witness
from harness.training.private_evaluation import PrivateEvaluation
from harness.training.probing import check_moves
from harness.training.ranks import alone, any_rank, own_ranks, write_first
from harness.training.reaching import check_reach
from harness.training.released import append_missing, released_rows
from harness.training.remembering import verdict_of
from harness.training.schedule import learning_rate
from harness.training.two_pass import TwoPassUpdate, check_one_noise
from harness.training.updating import AdapterUpdate, Shares, Update
from harness.training.whole_model import save_model, watched_engine

Release = Callable[[Mapping[str, Any]], None]


def train(run_dir: Path, release: Release = lambda row: None) -> Failure | None:
    """Trains all series of a run on this worker; collective.

    Args:
        run_dir: The run's folder.
        release: Called on every rank with each row of released metrics.

    Returns:
        A reason to give up that the user can act on, if there is one. It is left in the run's private folder too; the
        driver reports it. Anything else is raised, and may be retried: all state is in the checkpoints.
    """
    folder = Folder(run_dir)
    try:
        with alone(folder.worker_lease):
            _train(Job.load(run_dir), folder, release)
    except UserError as error:
        failure = Failure(str(error), error.exit_code, isinstance(error, StuckError))
        if own_ranks().rank == 0:
            with suppress(OSError):  # of a full disk
                failure.save(run_dir)
        return failure
    return None


def _train(job: Job, folder: Folder, release: Release) -> None:
    inputs = Inputs.load(job, folder)
    if not Series(PRIVATE, job, folder, inputs, job.mechanism, release).run():
        return
    if job.spec.evaluation.ordinary and job.mechanism.private:
        others = inputs.ordinary(job, folder)
        Series(ORDINARY, job, folder, others, job.mechanism.without_privacy(), release).run()


def _make_update(
    model: nn.Module, job: Job, folder: Folder, inputs: Inputs, mechanism: Mechanism
) -> tuple[Update, bool]:
    """Hands the model to DeepSpeed, and chooses how its steps are computed; collective.

    Returns:
        What takes the steps, and whether short examples may share a row.
    """
    spec, device = job.spec, torch.device(job.device)
    optimizer, sharding = spec.train.optimizer, spec.compute.deepspeed
    if spec.model.adapter.type == "full":
        check_one_noise(job.device, sharding.stage, own_ranks().world)
        ghost, engine = watched_engine(
            model,
            device,
            lambda weights: Engine(model, weights, optimizer, sharding.stage, sharding.offload, calling=True),
        )
        apart = sharding.stage == 3 or spec.compute.gradient_checkpointing
        return TwoPassUpdate(engine, ghost, inputs.corpus, mechanism, inputs.randomness, apart=apart), False
    trainables = find_trainables(model)
    # Before the model computes anything: what is trained of a base in bfloat16 is float32.
    sink = UnitGradients(trainables, device, getattr(torch, spec.model.dtype))
    head = plain_head(model)
    engine = Engine(model, trainables, optimizer, sharding.stage, sharding.offload)
    if sharding.stage == 3:
        check_reach(engine)
    install_loss_head(engine.module, head, device)
    packs = spec.compute.packing == "auto" and verdict_of(
        "rows are shared", job, device, lambda: keeps_apart(engine.module, device)
    )
    witness = None
    if inputs.planted is not None and inputs.planted.has_directions:
        directions = Directions(inputs.planted, sink.size, inputs.randomness, device)
        witness = Witness(directions, inputs.planted, mechanism, folder)
    return AdapterUpdate(engine, sink, inputs.corpus, mechanism, inputs.randomness, witness), packs


class Series:
    """One training from the initial adapter to the last step."""

    def __init__(
        self, name: str, job: Job, folder: Folder, inputs: Inputs, mechanism: Mechanism, release: Release
    ) -> None:
        """Builds model and engine; collective."""
        self.name, self.job, self.folder, self.inputs = name, job, folder, inputs
        self.mechanism, self.release, self.ranks = mechanism, release, own_ranks()
        spec = job.spec
        # Norms and sums in float32 are what clipping is accounted with; a driver's TF32 knows but 10 bits of 24.
        torch.set_float32_matmul_precision("highest")
        self.microbatch_tokens = microbatch_tokens(job, folder)
        model = build_model(job.base, spec.model, spec.seed, spec.compute.deepspeed).to(job.device)
        if spec.compute.gradient_checkpointing and not checkpoint_layers(model):
            raise ArgumentError("compute.gradient_checkpointing: this model has no layers that can be checkpointed")
        self.frozen = frozen_factors(model) if spec.model.adapter.freeze_a else {}
        self.update, self.packs = _make_update(model, job, folder, inputs, mechanism)
        self.engine = self.update.engine
        self.device = self.engine.device
        self.initial = Initial.of(self.engine.parameters(), self.device)
        # What goes from step to step beside the engine's own state; a checkpoint holds all of it.
        self.factor = 1.0
        self.rows: list[Mapping[str, Any]] = []

    def run(self) -> bool:
        """Trains to the end, from the newest checkpoint if there is one.

        Returns:
            Whether it was finished (and not stopped on request).

        Raises:
            MicroBatchTooLarge: To be started again; less memory will be used.
        """
        with halving(self.job, self.folder, self.microbatch_tokens):
            return self._run()

    def _run(self) -> bool:
        step = self._resume()
        total = self.mechanism.steps
        every = self.job.spec.train.checkpoint_every
        while step < total:
            stop = self._step(step)
            step += 1
            self._note_progress(step)
            due = step % every == 0 or step == total
            if due:
                whole = self.job.spec.model.adapter.type == "full"
                current, private = self.engine.parameters(), self.mechanism.private
                check_moves(current, self.initial, step, self.device, private=private, whole=whole)
                self._evaluate(step)
            if due or stop:
                self._checkpoint(step)
            if stop and step < total:
                return False
        if self.name == PRIVATE:
            self._save()
        return True

    def _save(self) -> None:
        """Saves what was trained, once; collective."""
        model, target = self.job.spec.model, self.folder.trained(self.job.spec.model.adapter.type)
        if any_rank(self.ranks.rank == 0 and target.exists(), self.device):
            return
        parameters = self.engine.parameters()
        if model.adapter.type == "full":
            save_model(self.engine.module, parameters, self.job.base, target, self.device)
        else:
            whole = {**self.frozen, **{name: value.cpu() for name, value in parameters.items()}}
            write_first(lambda: save_adapter(self.engine.module, whole, model.base, target), target, self.device)

    # --- one step -------------------------------------------------------------------------------------------

    def _step(self, step: int) -> bool:
        """One release of the mechanism. Returns whether a stop was asked for."""
        randomness, corpus = self.inputs.randomness, self.inputs.corpus
        torch.manual_seed(randomness.seed("dropout", step, f"rank {self.ranks.rank} of {self.ranks.world}"))
        units = draw_cohort(self.mechanism, self.inputs.members, corpus, randomness, step)
        texts, directions = (units, []) if self.inputs.planted is None else self.inputs.planted.split(units)
        dealt = deal(texts, self.ranks.world)
        corpus.fetch([example for unit in dealt[self.ranks.rank] for example in unit.examples])

        def cut(*, pack: bool) -> Shares:
            lengths, budget = corpus.example_lengths, self.microbatch_tokens
            return [micro_batches(share, lengths, budget, pack=pack and self.packs) for share in dealt]

        clip_norms = torch.tensor(self.mechanism.clip_norms_at(step, self.factor), dtype=torch.float64)
        stop = self.ranks.rank == 0 and self.folder.stop.exists()
        self.engine.set_learning_rate(learning_rate(self.job.spec.train, step))
        seen = self.update.step(step, cut, clip_norms, self.factor, stop=stop, directions=directions)
        if self.mechanism.adaptive is not None:
            share = noisy_share(seen.bits, self.mechanism, step, randomness)
            self.factor = next_factor(self.factor, share, self.mechanism.adaptive)
        self._note_privately(step, len(units), seen.loss, seen.above)
        return seen.stop

    # --- beginning, releasing, ending -----------------------------------------------------------------------

    def _resume(self) -> int:
        checkpoint = checkpoints.load_together(self.folder.checkpoints(self.name), self.device)
        released = max((r["step"] for r in released_rows(self.folder.metrics) if r["series"] == self.name), default=-1)
        if self.ranks.world > 1:
            # Nobody writes before everybody has read, or the ranks could begin from different places.
            dist.barrier()
        if released > (-1 if checkpoint is None else checkpoint.step):
            # Going back would compute a released step again.
            raise StuckError(f"the checkpoint of step {released}, which is released, is damaged; start a new run")
        if checkpoint is None:
            self._try_out()
            self.update.probe(self.initial, self.job.spec.data.max_tokens)
            if self.name == PRIVATE:
                self._evaluate(0)
            self._checkpoint(0)
            return 0
        if checkpoint.initial != self.initial.digest(self.frozen):
            raise MachineError("the adapter's initial weights differ from those of the interrupted run")
        self.rows, self.factor = list(checkpoint.rows), checkpoint.clip_factor
        self.engine.restore(
            checkpoint.parameters, checkpoint.optimizer, checkpoint.optimizer_steps, lambda: self.update.idle(last=True)
        )
        self._publish()
        self._note_progress(checkpoint.step)
        return checkpoint.step

    def _try_out(self) -> None:
        """Sees on a GPU whether what was predicted to fit does; on a CPU the system would end the process."""
        compute = self.job.spec.compute
        if compute.microbatch_tokens != "auto" or self.device.type == "cpu" or compute.deepspeed.stage == 3:
            return
        if not isinstance(self.update, AdapterUpdate):
            return
        longest = self.job.spec.data.max_tokens
        self.microbatch_tokens = try_out(self.engine, self.update.sink, self.microbatch_tokens, longest)
        if self.ranks.rank == 0:
            keep_tokens(self.folder, self.microbatch_tokens)

    def _evaluate(self, step: int) -> None:
        epsilon = self.job.epsilon_after(step) if self.name == PRIVATE else None
        row = {"series": self.name, "step": step, "epsilon": epsilon, **self._losses(step)}
        if self.mechanism.adaptive is not None:
            row["clip/factor"] = self.factor
        self.rows.append(row)

    def _losses(self, step: int) -> Mapping[str, float]:
        """What may be released of the hold-out users' losses; collective."""
        inputs, budget = self.inputs, self.microbatch_tokens
        arguments = (self.engine.module, inputs.corpus, inputs.corpus.example_lengths, inputs.holdout, budget)
        if not holdout_is_private(self.job):
            found = evaluate(*arguments, self.device)
            if not is_finite(found):
                raise UserError(
                    f"the loss on hold-out users is not finite after {step} steps; try a smaller learning rate"
                )
            return found
        charge = self.job.mechanism.holdout
        if charge is None or self.name != PRIVATE:
            return {}

        def measure() -> NDArray[np.float64]:
            if not inputs.holdout.examples:
                return np.empty(0)
            sums = user_losses(*arguments, self.device).numpy()
            with np.errstate(all="ignore"):  # a warning would tell of somebody
                return np.asarray(sums[:, 0] / sums[:, 1], dtype=np.float64)

        users = self.job.holdout_users or ()
        answers = PrivateEvaluation(charge, inputs.holdout.names, users, inputs.randomness, self.name)
        return answers.release(self.rows, step, inputs.holdout.groups, measure)

    def _checkpoint(self, step: int) -> None:
        """Makes the state durable, and only then releases its metrics; collective."""
        parameters, (state, count) = self.engine.parameters(), self.engine.optimizer_state()
        initial = self.initial.digest(self.frozen)
        checkpoint = Checkpoint(step, parameters, state, count, self.rows, initial, self.factor)
        checkpoints.save(self.folder.checkpoints(self.name), checkpoint, self.device)
        self._publish()

    def _publish(self) -> None:
        """Releases all rows that are durable and not yet out; doing it twice changes nothing."""
        write_first(lambda: append_missing(self.folder.metrics, self.rows), self.folder.metrics, self.device)
        for row in self.rows[-1:]:
            self.release(row)

    def _note_progress(self, step: int) -> None:
        if self.ranks.rank == 0:
            now = {"series": self.name, "step": step, "steps": self.mechanism.steps, "time": time.time()}
            with suppress(OSError):  # a full disk is told of by the next checkpoint
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
        with suppress(OSError):
            append_private(self.folder.private / "diagnostics.jsonl", (json.dumps(row) + "\n").encode())
