"""Words of a user, found in their update: what noise and company are for.

A simulation on made texts: each text's clipped gradient is what its user would send. Those of a small cohort are
summed, without noise or with as much as the run's, and the attacker looks for the tokens. Nothing of a run's own sums
or noise is used, so nothing of it is private.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.auditing.dictionary import Dictionary, dictionary
from harness.auditing.intervals import Interval, share_interval
from harness.auditing.losses import still
from harness.auditing.pursuit import Block, pursue
from harness.errors import ArgumentError
from harness.training.batches import pad, token_losses

Update = Mapping[str, Tensor]
"""Parts of a sum of clipped gradients by parameter, float32, each as large as the parameter."""
_KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class Share:
    """How much is found at one cohort size.

    Attributes:
        cohort: Users whose clipped gradients are summed.
        noise_std: Of the noise on each number of the sum, in units of a gradient; 0: none.
        texts: Texts that were looked for, one in each cohort.
        found: Mean share of such a text's distinct tokens among the top n, n being the cohort's distinct tokens.
        interval: Of that mean (Student, over texts); None: one text alone.
        chance: What n tokens drawn at random find.
        frequent: What the n tokens find that are most frequent in the made texts outside of the cohort.
    """

    cohort: int
    noise_std: float
    texts: int
    found: float
    interval: Interval | None
    chance: float
    frequent: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "cohort": self.cohort,
            "noise": self.noise_std > 0,
            "noise_std": self.noise_std,
            "texts": self.texts,
            "found": self.found,
            "interval": None if self.interval is None else list(self.interval),
            "chance": self.chance,
            "frequent": self.frequent,
        }


@dataclass(frozen=True)
class Reconstruction:
    """The attack at all cohort sizes.

    Attributes:
        looked_at: What of the update is looked at: ``embedding``, ``linear layers``, or None.
        shares: Per cohort size, without noise and then with.
        reason: "does not apply: …", or None.
        confidence: Of every interval, in (0, 1).
    """

    looked_at: str | None
    shares: tuple[Share, ...]
    reason: str | None
    confidence: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "looked_at": self.looked_at,
            "shares": [s.document() for s in self.shares],
            "reason": self.reason,
            "confidence": self.confidence,
        }


def reconstruct(update: Update, known: Dictionary, count: int, noise_std: float = 0.0) -> list[int]:
    """The tokens that an update is most probably made of, the surest first.

    Args:
        update: The parts of a sum of clipped gradients that `known.names` names.
        known: The dictionary, which applies (its `reason` is None).
        count: How many tokens are wanted.
        noise_std: Of the noise that the attacker knows to be on each number.

    Returns:
        `count` different token ids.
    """
    if known.reason is not None:
        raise ArgumentError(f"reconstruction does not apply: {known.reason}")
    count = min(count, known.vocabulary)
    if known.embedding is not None:
        sizes = torch.linalg.vector_norm(update[known.embedding].float(), dim=1)
        largest: list[int] = sizes.argsort(descending=True, stable=True)[:count].tolist()
        return largest
    blocks = []
    for source in known.sources:
        rows = [update[n].T if flip else update[n] for n, flip in zip(source.names, source.transposed, strict=True)]
        blocks.append(Block(torch.cat(rows).float(), source.entries, noise_std))
    return pursue(blocks, count)


def attack(
    model: Any,
    texts: Sequence[Sequence[int]],
    cohorts: Sequence[int],
    clip_norm: float,
    noise_std: float,
    device: torch.device,
    budget: int,
    *,
    wanted: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> Reconstruction:
    """Looks for texts in sums of clipped gradients of small cohorts.

    Args:
        model: At the weights that the gradient is taken at; what is trained, and nothing else, requires gradients.
        texts: Made texts, token ids, at least two each; at least as many as the largest cohort has users.
        cohorts: Numbers of users.
        clip_norm: C, of each text's whole gradient.
        noise_std: s, of the noise on each number of the sum; 0: only without noise.
        device: Where the model is.
        budget: Tokens of the vocabulary that are looked at together.
        wanted: The first so many texts are looked for, each with company drawn from all others; None: all.
        seed: Of the company and of the noise, which are this simulation's own.
        confidence: Of every interval, in (0, 1).

    Raises:
        ArgumentError: There are too few texts, or one is too short.
    """
    if len(texts) < max(cohorts) or any(len(t) < 2 for t in texts):
        raise ArgumentError(f"reconstruction needs {max(cohorts)} texts of two tokens or more")
    known = dictionary(model, device, budget)
    if known.reason is not None:
        return Reconstruction(None, (), f"does not apply: {known.reason}", confidence)
    gradients = _Gradients(model, texts, clip_norm, known.names, device)
    draws = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    targets = range(len(texts) if wanted is None else min(wanted, len(texts)))
    shares = []
    for size in cohorts:
        members = []
        for target in targets:
            others = [i for i in range(len(texts)) if i != target]
            members.append([target, *draws.choice(others, size - 1, replace=False).tolist()])
        shares += _at_size(gradients, texts, members, known, noise_std, noise, confidence)
    return Reconstruction("embedding" if known.embedding else "linear layers", tuple(shares), None, confidence)


def _at_size(
    gradients: _Gradients,
    texts: Sequence[Sequence[int]],
    members: Sequence[Sequence[int]],
    known: Dictionary,
    noise_std: float,
    noise: torch.Generator,
    confidence: float,
) -> list[Share]:
    levels = (0.0, noise_std) if noise_std else (0.0,)
    found: dict[float, list[float]] = {level: [] for level in levels}
    chances, frequent = [], []
    for cohort in members:
        looked_for = set(texts[cohort[0]])
        n = len({t for i in cohort for t in texts[i]})
        chances.append(min(1.0, n / known.vocabulary))
        frequent.append(_share(looked_for, _most_frequent(texts, cohort, n)))
        total = gradients.summed(cohort)
        for level in levels:
            noisy = total
            if level:
                noisy = {k: v + level * torch.randn(v.shape, generator=noise).to(v.device) for k, v in total.items()}
            found[level].append(_share(looked_for, reconstruct(noisy, known, n, level)))
    return [
        Share(
            len(members[0]),
            level,
            len(members),
            float(np.mean(found[level])),
            share_interval(found[level], confidence),
            float(np.mean(chances)),
            float(np.mean(frequent)),
        )
        for level in levels
    ]


def _share(looked_for: set[int], guesses: Sequence[int]) -> float:
    return len(looked_for & set(guesses)) / len(looked_for)


def _most_frequent(texts: Sequence[Sequence[int]], cohort: Sequence[int], count: int) -> list[int]:
    counts = Counter(t for i, text in enumerate(texts) if i not in cohort for t in text)
    return [t for t, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:count]]


class _Gradients:
    """Clipped gradients of made texts: the parts that are looked at. Small ones are kept."""

    def __init__(
        self, model: Any, texts: Sequence[Sequence[int]], clip_norm: float, names: Sequence[str], device: torch.device
    ) -> None:
        self._model = model
        self._texts = texts
        self._clip_norm = clip_norm
        self._device = device
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._names = names
        size = 4 * len(texts) * sum(self._parameters[n].numel() for n in names)
        self._kept: dict[int, dict[str, Tensor]] | None = {} if size <= _KEPT_BYTES else None

    def summed(self, cohort: Sequence[int]) -> dict[str, Tensor]:
        """The sum over some texts."""
        total: dict[str, Tensor] = {}
        for i in cohort:
            for name, part in self._of(i).items():
                total[name] = total[name] + part if name in total else part
        return total

    def _of(self, text: int) -> dict[str, Tensor]:
        if self._kept is None:
            return self._compute(text)
        if text not in self._kept:
            self._kept[text] = self._compute(text)
        return self._kept[text]

    def _compute(self, text: int) -> dict[str, Tensor]:
        rows = pad([self._texts[text]], self._device)
        with torch.enable_grad(), still(self._model):
            loss = token_losses(self._model, rows).sum() / (len(self._texts[text]) - 1)
            parts = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        given = {n: g.float() for n, g in zip(self._parameters, parts, strict=True) if g is not None}
        norm = torch.stack([g.double().square().sum() for g in given.values()]).sum().sqrt()
        factor = float(torch.clamp(self._clip_norm / norm.clamp_min(1e-30), max=1.0))
        parameters = self._parameters
        return {n: factor * given.get(n, torch.zeros_like(parameters[n], dtype=torch.float32)) for n in self._names}
