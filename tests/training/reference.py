"""The mechanism in the plainest words: one user at a time, float64, no DeepSpeed, no padding, no micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.data.cohorts import draw_cohort
from harness.data.store import Corpus
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import load_key
from harness.spec.models import OptimizerBlock, Spec, TrainBlock
from harness.training.job import Folder, Job


@dataclass(frozen=True)
class Reference:
    """What a run must come to.

    Attributes:
        initial: The adapter's weights before the first step.
        final: And after the last, float64.
        norms: Per step, the unclipped gradient norm of every unit, with its clip norm.
        factors: c_t before each step and after the last, where the clip is adaptive.
    """

    initial: dict[str, Tensor]
    final: dict[str, Tensor]
    norms: list[list[tuple[float, float]]]
    factors: list[float]


def plain_model(base: Path, spec: Spec) -> Any:
    """The base with a fresh adapter, made with transformers and peft alone, in float64."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(spec.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapter = spec.model.adapter
    if adapter.type == "full":
        return model.eval().double()
    config = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, target_modules=list(adapter.targets), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config).eval().double()
    for name, parameter in model.named_parameters():
        if adapter.freeze_a and ".lora_A." in name:
            parameter.requires_grad_(False)
    return model


def unit_gradient(model: Any, texts: list[list[int]], masks: list[list[bool]] | None = None) -> Tensor:
    """The gradient of the mean loss per predicted token over all texts of one user; flat, in the model's order.

    `masks` says which tokens are predicted; None: all but each text's first.
    """
    masks = masks or [[False] + [True] * (len(text) - 1) for text in texts]
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for text, mask in zip(texts, masks, strict=True):
        ids = torch.tensor(text)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        each = functional.cross_entropy(logits[:-1].to(torch.float64), ids[1:], reduction="none")
        losses.append(each[torch.tensor(mask[1:])].sum())
    loss = torch.stack(losses).sum() / sum(map(sum, masks))
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])


def _optimizer(block: OptimizerBlock, parameters: list[Any]) -> torch.optim.Optimizer:
    if block.type == "sgd":
        return torch.optim.SGD(
            parameters, lr=block.lr, momentum=block.momentum or 0.0, weight_decay=block.weight_decay or 0.0
        )
    assert block.type == "adamw"
    return torch.optim.AdamW(parameters, lr=block.lr, weight_decay=block.weight_decay or 0.0)


def _learning_rate(train: TrainBlock, step: int) -> float:
    """The learning rate of a step, in plain words."""
    warmup, falling = train.schedule.warmup, train.steps - train.schedule.warmup
    if step < warmup:
        return train.optimizer.lr / warmup * (step + 1)
    left = (train.steps - step) / falling
    shapes = {"constant": 1.0, "linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2}
    return train.optimizer.lr * shapes[train.schedule.type]


def _rules(mechanism: Mechanism, step: int) -> tuple[float, float, float]:
    """The multiples of the first step's noise and clip norms, and what the sum is divided by, in plain words."""
    noise, clip, end = 1.0, 1.0, 0
    for stretch in mechanism.schedule:
        if end <= step < end + stretch.steps:
            noise, clip = stretch.noise, stretch.clip
        end += stretch.steps
    expected = 0.0
    for group in mechanism.groups:
        if step in {k * mechanism.steps // group.steps for k in range(group.steps)}:
            units = group.users * (group.examples_per_user if mechanism.sampling_unit == "example" else 1)
            expected += units * group.sampling_rate
    return noise, clip, expected


def train_plainly(run_dir: Path) -> Reference:
    """Trains a run in this process, with the noise of its key."""
    job, folder = Job.load(run_dir), Folder(run_dir)
    mechanism, corpus, randomness = job.mechanism, Corpus.load(job.corpus), load_key(folder.key)
    groups = np.load(folder.members)
    members = [
        np.array([u for u in range(corpus.n_users) if groups[u] == g and not corpus.holdout[u]], dtype=np.int64)
        for g in range(len(mechanism.groups))
    ]
    model = plain_model(job.base, job.spec)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = _optimizer(job.spec.train.optimizer, [p for _, p in named])
    initial = {n: p.detach().clone() for n, p in named}
    norms: list[list[tuple[float, float]]] = []
    factors = [1.0]
    for step in range(mechanism.steps):
        total = torch.zeros(sum(p.numel() for _, p in named), dtype=torch.float64)
        norms.append([])
        noise, clip, denominator = _rules(mechanism, step)
        bits = 0.0
        for unit in draw_cohort(mechanism, members, corpus, randomness, step):
            clip_norm = mechanism.groups[unit.group].clip_norm * clip * factors[-1]
            gradient = unit_gradient(model, [corpus.tokens(e).tolist() for e in unit.examples])
            norm = float(gradient.norm())
            norms[-1].append((norm, clip_norm))
            if math.isfinite(norm):
                total += gradient * min(1.0, clip_norm / norm) if norm else 0.0
                bits += 0.5 if norm <= clip_norm else -0.5
        offset = 0
        for name, parameter in named:
            own = total[offset : offset + parameter.numel()].clone()
            normals = torch.from_numpy(randomness.normals("noise", step, name, 0, len(own)))
            own += mechanism.noise_std * noise * factors[-1] * normals
            parameter.grad = (own / denominator).view_as(parameter)
            offset += parameter.numel()
        for settings in optimizer.param_groups:
            settings["lr"] = _learning_rate(job.spec.train, step)
        optimizer.step()
        if mechanism.adaptive is not None:
            rule = mechanism.adaptive
            noisy = bits + rule.bit_noise_std * float(randomness.normals("clip", step, "bits", 0, 1)[0])
            share = noisy / denominator + 0.5
            factors.append(factors[-1] * math.exp(-rule.learning_rate * (share - rule.quantile)))
    return Reference(initial, {n: p.detach().clone() for n, p in named}, norms, factors)
