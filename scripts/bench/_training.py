"""Ways of taking one training step on the same tokens: the product's, ordinary LoRA training, others' private ones.

The product's is `harness.training.loop.Series`, as every worker of a run has it: it draws the cohort, deals it out,
cuts it into micro-batches, clips, adds noise and steps through DeepSpeed.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.privacy.randomness import Randomness
from harness.spec.models import Spec
from harness.training.evaluation import HoldoutSet
from harness.training.inputs import PRIVATE, Inputs
from harness.training.job import Folder, Job
from harness.training.loop import Series

Step = Callable[[], None]
CLIP, NOISE_MULTIPLIER, RATE = 0.5, 1.0, 2e-3
MANY = 1_000_000


@dataclass(frozen=True)
class Setting:
    """What all variants of a run have in common.

    Attributes:
        base: Folder of the base model.
        dtype: Of the frozen base.
        users: For each user, the tokens of each of their examples; all take part in every step.
        length: Most tokens of an example, and of a row.
        microbatch_tokens: Tokens of a micro-batch.
        device: ``cpu`` or ``cuda``.
        stage: ZeRO stage.
        rank: Of the adapters, on q and v.
    """

    base: Path
    dtype: str
    users: tuple[tuple[int, ...], ...]
    length: int
    microbatch_tokens: int
    device: str = "cpu"
    stage: int = 0
    rank: int = 8

    @property
    def tokens(self) -> int:
        """Of a step, padding not counted."""
        return sum(map(sum, self.users))


class MadeCorpus:
    """Random tokens in place of a `Corpus`: what a training reads of one."""

    def __init__(self, users: Sequence[Sequence[int]], vocabulary: int) -> None:
        generator = np.random.default_rng(0)
        self._firsts = np.cumsum([0, *(len(lengths) for lengths in users)])
        self._tokens = [generator.integers(3, vocabulary, n).astype(np.int32) for own in users for n in own]
        self.example_lengths: NDArray[np.int32] = np.array([len(t) for t in self._tokens], dtype=np.int32)
        self.example_targets: NDArray[np.int32] = self.example_lengths - 1
        self.n_users = len(users)

    def examples_of(self, user_index: int) -> tuple[int, int]:
        return int(self._firsts[user_index]), int(self._firsts[user_index + 1])

    def user_id(self, user_index: int) -> str:
        return str(user_index)

    def fetch(self, examples: Sequence[int]) -> None:
        pass

    def tokens(self, example_index: int) -> NDArray[np.int32]:
        return self._tokens[example_index]

    def targets(self, example_index: int) -> NDArray[np.bool_]:
        return np.arange(self.example_lengths[example_index]) > 0

    def stream(self) -> NDArray[np.int64]:
        """All tokens, one example after the other."""
        return np.concatenate(self._tokens).astype(np.int64)


def even_users(tokens: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Users of one example each, all as long."""
    return ((length,),) * max(1, tokens // length)


def ragged_users(tokens: int, length: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Users of one to 32 examples, most of them short, until there are so many tokens."""
    draw = random.Random(seed)
    users: list[tuple[int, ...]] = []
    while sum(map(sum, users)) < tokens:
        count = min(32, 1 + int(draw.expovariate(1 / 8)))
        users.append(tuple(max(8, min(length, round(draw.lognormvariate(3.7, 0.8)))) for _ in range(count)))
    return tuple(users)


def vocabulary(base: Path) -> int:
    """Tokens that the model knows."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base).get_text_config().vocab_size)


# --- the product's ------------------------------------------------------------------------------------------


def alone(device: str) -> None:
    """This process as a worker of its own, as a run's only worker is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join(0, 1, port, device)


def join(rank: int, world: int, port: int, device: str) -> None:
    """This process as one of several workers."""
    places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    os.environ.update({k: str(v) for k, v in places.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=world)
    from harness.training.process import prepare_process

    prepare_process(torch.get_num_threads())


def spec_of(setting: Setting) -> Spec:
    """The spec that asks for this training."""
    return Spec.model_validate(
        {
            "version": 1,
            "name": "bench",
            "data": {
                "name": "made",
                "source": {"type": "jsonl", "path": "none.jsonl"},
                "max_tokens": setting.length,
                "holdout": {"users": 0.0, "visibility": "public"},
            },
            "model": {
                "base": str(setting.base),
                "dtype": setting.dtype,
                "adapter": {"r": setting.rank, "alpha": 2 * setting.rank, "targets": ["q_proj", "v_proj"]},
            },
            "sampling": {"expected": float(len(setting.users))},
            "train": {"steps": MANY, "optimizer": {"type": "adamw", "lr": RATE}},
            "compute": {"deepspeed": {"stage": setting.stage}, "microbatch_tokens": setting.microbatch_tokens},
        }
    )


def mechanism_of(setting: Setting) -> Mechanism:
    """Everybody takes part in every step, with all examples."""
    most = max(map(len, setting.users))
    group = GroupMechanism("everybody", float(len(setting.users)), 1.0, CLIP, MANY, most)
    return Mechanism(MANY, CLIP * NOISE_MULTIPLIER, (group,), "zero_out")


class Product:
    """The product's own step."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.places = Folder(folder)
        self.places.private.mkdir(mode=0o700, exist_ok=True)
        mechanism = mechanism_of(setting)
        corpus: Any = MadeCorpus(setting.users, vocabulary(setting.base))
        job = Job(spec_of(setting), mechanism, ((0, 0.0),), folder, setting.base, setting.device)
        members = (np.arange(len(setting.users), dtype=np.int64),)
        inputs = Inputs(corpus, members, HoldoutSet((), (), ("everybody",)), Randomness(bytes(32)))
        self.series = Series(PRIVATE, job, self.places, inputs, mechanism, lambda row: None)
        self._next = 0

    def __call__(self) -> None:
        """Takes one step."""
        self.series._step(self._next)
        self._next += 1

    @property
    def model(self) -> Any:
        return self.series.engine.module

    def fed(self) -> int:
        """Places of the rows that the model is fed in a step, padding included."""
        counts: list[int] = []
        embeddings = self.model.get_input_embeddings()
        handle = embeddings.register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].numel()))
        try:
            self()
        finally:
            handle.remove()
        return sum(counts)


# --- ordinary training --------------------------------------------------------------------------------------


def peft_model(setting: Setting) -> Any:
    """The same model with the same adapter, from transformers and peft alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(setting.base, dtype=getattr(torch, setting.dtype))
    model.config.use_cache = False
    adapter = LoraConfig(
        r=setting.rank, lora_alpha=2 * setting.rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapter).train().to(setting.device)


def trained(model: Any) -> list[Tensor]:
    """The parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def dense_batches(setting: Setting, stream: NDArray[np.int64] | None = None) -> list[Tensor]:
    """All tokens one after the other in full rows, in micro-batches: no padding (a tail is left)."""
    found = MadeCorpus(setting.users, vocabulary(setting.base)).stream() if stream is None else stream
    width = min(setting.length, len(found))
    rows = torch.from_numpy(found[: len(found) // width * width].reshape(-1, width)).to(setting.device)
    return list(rows.split(max(1, setting.microbatch_tokens // width)))


class Ordinary:
    """What anybody's LoRA training does: ``model(input_ids=…, labels=…)``, backward, AdamW."""

    def __init__(self, setting: Setting) -> None:
        self.model = peft_model(setting)
        self.batches = dense_batches(setting)
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=RATE, weight_decay=0.0)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return sum(b.numel() for b in self.batches)

    def __call__(self) -> None:
        """Takes one step."""
        for batch in self.batches:
            (self.model(input_ids=batch, labels=batch).loss / len(self.batches)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class ShardedOrdinary:
    """The same under DeepSpeed at the setting's stage, as anybody would: each rank has its own rows."""

    def __init__(self, setting: Setting) -> None:
        import deepspeed

        from harness.training.engine import deepspeed_config

        rank, world = dist.get_rank(), dist.get_world_size()
        rows = torch.cat(dense_batches(setting))[rank::world]
        self.batches = list(rows.split(max(1, setting.microbatch_tokens // setting.length)))
        model = peft_model(setting)
        config = deepspeed_config(setting.stage) | {"gradient_accumulation_steps": len(self.batches)}
        optimizer = torch.optim.AdamW(trained(model), lr=RATE, weight_decay=0.0)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )

    def __call__(self) -> None:
        """Takes one step."""
        for batch in self.batches:
            self.engine.backward(self.engine(input_ids=batch, labels=batch).loss)
            self.engine.step()


# --- what else there is -------------------------------------------------------------------------------------


class OpacusHooks:
    """Opacus: a gradient per sample, by hooks. A user is a row."""

    def __init__(self, setting: Setting) -> None:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.batches = dense_batches(setting)
        self.model = GradSampleModule(peft_model(setting))
        self.optimizer: Any = DPOptimizer(**self._settings(self.model, len(setting.users)))

    @staticmethod
    def _settings(model: Any, users: int) -> dict[str, Any]:
        return {
            "optimizer": torch.optim.AdamW(trained(model), lr=RATE, weight_decay=0.0),
            "noise_multiplier": NOISE_MULTIPLIER,
            "max_grad_norm": CLIP,
            "expected_batch_size": users,
        }

    def _backward(self, batch: Tensor) -> None:
        self.model(input_ids=batch, labels=batch).loss.backward()

    def __call__(self) -> None:
        """Takes one step; all micro-batches but the last are Opacus's "virtual" ones."""
        for i, batch in enumerate(self.batches):
            self._backward(batch)
            self.optimizer.signal_skip_step(do_skip=i < len(self.batches) - 1)
            self.optimizer.step()
            self.optimizer.zero_grad()


class OpacusGhost(OpacusHooks):
    """Opacus: ghost clipping, which computes norms alone and goes back twice."""

    def __init__(self, setting: Setting) -> None:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.batches = dense_batches(setting)
        self.model = GradSampleModuleFastGradientClipping(
            peft_model(setting), max_grad_norm=CLIP, use_ghost_clipping=True
        )
        self.optimizer = DPOptimizerFastGradientClipping(**self._settings(self.model, len(setting.users)))
        self.loss = DPLossFastGradientClipping(self.model, self.optimizer, torch.nn.CrossEntropyLoss())

    def _backward(self, batch: Tensor) -> None:
        logits = self.model(input_ids=batch).logits[:, :-1].float()
        self.loss(logits.flatten(0, 1), batch[:, 1:].flatten(), shape=logits.shape).backward()


class Loop:
    """A user at a time: forward, backward, clip, add; then noise and AdamW."""

    def __init__(self, setting: Setting) -> None:
        self.model = peft_model(setting)
        self.rows = [row.unsqueeze(0) for batch in dense_batches(setting) for row in batch]
        self.parameters = trained(self.model)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)

    def __call__(self) -> None:
        """Takes one step."""
        sums = [torch.zeros_like(p) for p in self.parameters]
        for row in self.rows:
            gradients = torch.autograd.grad(self.model(input_ids=row, labels=row).loss, self.parameters)
            norm = torch.stack([g.norm() for g in gradients]).norm()
            factor = (CLIP / norm).clamp(max=1.0)
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient * factor)
        for parameter, total in zip(self.parameters, sums, strict=True):
            parameter.grad = (total + torch.randn_like(total) * CLIP * NOISE_MULTIPLIER) / len(self.rows)
        self.optimizer.step()


OTHERS: dict[str, Callable[[Setting], Step]] = {
    "opacus_hooks": OpacusHooks,
    "opacus_ghost": OpacusGhost,
    "loop": Loop,
}
