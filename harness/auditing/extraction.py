"""Planted secrets, asked for (Carlini et al., 2019 and 2021): are made users' codes in the model?

Each made user has a code in their texts. The attacker knows what stands before it, and ranks the code among others of
the same form, takes the likeliest continuation, or draws some. Half of the codes were never trained on: what the attack
finds of those is what guessing finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.auditing.decoding import continuations
from harness.auditing.intervals import Interval, clopper_pearson, mean_interval
from harness.auditing.losses import base_of, micro_batches, still
from harness.auditing.trees import Asked, continuation_losses, nodes_of, plain_losses, understands_trees
from harness.training.batches import pad

ENOUGH = 32
"""Candidates likelier than the code after which its rank is estimated: it is known to a sixth, exposure to ¼ bit."""
_CHUNK = 64
_MOST_STEMS = 64


@dataclass(frozen=True)
class Secret:
    """A planted code.

    Attributes:
        prefix: Token ids of what stands before it, at least one.
        code: Its token ids, at least one.
        candidates: Token ids of other codes of the same form, in random order; the code itself is passed over.
        included: Whether its user was in the training. Private until the audit is over.
    """

    prefix: tuple[int, ...]
    code: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    included: bool


@dataclass(frozen=True)
class Finding:
    """What was found of one secret.

    Attributes:
        included: Whether its user was in the training.
        exposure: log₂(candidates + 1) − log₂(rank) under the trained model, bits, from 0 (the code is the unlikeliest)
            to log₂(candidates + 1) (it is the likeliest). A candidate as likely as the code ranks before it, to the
            attacker's disadvantage. A guess has 1.44 on average.
        base_exposure: The same under the base model.
        greedy: Whether the likeliest next tokens after the prefix are the code's, token by token.
        sampled: In how many drawn continuations the code appears.
    """

    included: bool
    exposure: float
    base_exposure: float
    greedy: bool
    sampled: int


@dataclass(frozen=True)
class Summary:
    """Of the secrets that were in, or of those that were left out.

    Attributes:
        secrets: Their number, at least 1.
        exposure: Mean, bits.
        exposure_interval: Of that mean (Student); None: one secret alone.
        base_exposure: Mean under the base model, bits.
        greedy: Share extracted by the likeliest continuation, in [0, 1].
        greedy_interval: Its Clopper–Pearson interval.
        sampled: Share that appears in at least one drawn continuation; None: none was drawn.
        sampled_interval: Its Clopper–Pearson interval.
    """

    secrets: int
    exposure: float
    exposure_interval: Interval | None
    base_exposure: float
    greedy: float
    greedy_interval: Interval
    sampled: float | None
    sampled_interval: Interval | None

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "secrets": self.secrets,
            "exposure": self.exposure,
            "exposure_interval": None if self.exposure_interval is None else list(self.exposure_interval),
            "base_exposure": self.base_exposure,
            "greedy": self.greedy,
            "greedy_interval": list(self.greedy_interval),
            "sampled": self.sampled,
            "sampled_interval": None if self.sampled_interval is None else list(self.sampled_interval),
        }


@dataclass(frozen=True)
class Extraction:
    """The attack on all secrets.

    Attributes:
        findings: One per secret, in their order.
        planted: Those that were in; None: there are none.
        left_out: Those that were not; None: there are none.
        samples: Continuations drawn per secret.
        most_exposure: The largest exposure there can be, log₂(candidates + 1), bits.
        confidence: Of every interval, in (0, 1).
    """

    findings: tuple[Finding, ...]
    planted: Summary | None
    left_out: Summary | None
    samples: int
    most_exposure: float
    confidence: float

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "planted": None if self.planted is None else self.planted.document(),
            "left_out": None if self.left_out is None else self.left_out.document(),
            "samples": self.samples,
            "most_exposure": self.most_exposure,
            "confidence": self.confidence,
        }


def extract(
    model: Any,
    secrets: Sequence[Secret],
    device: torch.device,
    budget: int,
    *,
    samples: int,
    seed: int,
    confidence: float,
    base: Any = None,
) -> Extraction:
    """Looks for all secrets in a trained model.

    Args:
        model: What was trained.
        secrets: At least one.
        device: Where the model is.
        budget: Tokens of a micro-batch.
        samples: Continuations drawn per secret; 0: none.
        seed: Of the draws; they repeat on the same machine.
        confidence: Of every interval, in (0, 1).
        base: The base model where all of the model was trained; None: the model without its adapter.

    Raises:
        ArgumentError: There is no base to compare with.
    """
    others = [[c for c in dict.fromkeys(s.candidates) if c != s.code] for s in secrets]
    exposures = _exposures(model, secrets, others, device, budget)
    with base_of(model, base) as untrained:
        base_exposures = _exposures(untrained, secrets, others, device, budget)
    generator = torch.Generator(device=device).manual_seed(seed)
    hits = _sampled(model, secrets, samples, generator, device, budget)
    greedy = _likeliest(model, secrets, device, budget)
    findings = tuple(
        Finding(s.included, exposures[i], base_exposures[i], greedy[i], hits[i]) for i, s in enumerate(secrets)
    )
    planted, left_out = (_summary([f for f in findings if f.included is i], samples, confidence) for i in (True, False))
    most = math.log2(max(len(o) for o in others) + 1)
    return Extraction(findings, planted, left_out, samples, most, confidence)


def _summary(findings: Sequence[Finding], samples: int, confidence: float) -> Summary | None:
    if not findings:
        return None
    n = len(findings)
    exposures = [f.exposure for f in findings]
    greedy, sampled = sum(f.greedy for f in findings), sum(f.sampled > 0 for f in findings)
    return Summary(
        n,
        float(np.mean(exposures)),
        mean_interval(exposures, confidence),
        float(np.mean([f.base_exposure for f in findings])),
        greedy / n,
        clopper_pearson(greedy, n, confidence),
        sampled / n if samples else None,
        clopper_pearson(sampled, n, confidence) if samples else None,
    )


# --- ranks --------------------------------------------------------------------------------------------------

LossesOf = Callable[[Sequence[Asked]], list[NDArray[np.float64]]]


def _exposures(
    model: Any,
    secrets: Sequence[Secret],
    others: Sequence[Sequence[tuple[int, ...]]],
    device: torch.device,
    budget: int,
) -> list[float]:
    first = secrets[0]
    trees = understands_trees(model, first.prefix, [first.code, *others[0][:7]], device)

    def losses(asked: Sequence[Asked]) -> list[NDArray[np.float64]]:
        return (continuation_losses if trees else plain_losses)(model, asked, device, budget)

    at_once = max(1, min(_CHUNK, budget // max(len(s.code) for s in secrets)))
    ranks = _ranks(losses, secrets, others, at_once)
    return [math.log2(len(c) + 1) - math.log2(rank) for c, rank in zip(others, ranks, strict=True)]


@dataclass
class _Race:
    """A code's rank as far as it is known.

    Attributes:
        own: Loss of the code, nats.
        left: Candidates that may be as likely.
        seen: How many of these were looked at.
        likelier: How many of those are at least as likely.
    """

    own: float
    left: list[tuple[int, ...]]
    seen: int = 0
    likelier: int = 0

    @property
    def is_over(self) -> bool:
        return self.seen == len(self.left) or self.likelier >= ENOUGH

    @property
    def rank(self) -> float:
        return 1 + self.likelier * (len(self.left) / self.seen if self.seen else 0.0)


def _ranks(
    losses: LossesOf, secrets: Sequence[Secret], others: Sequence[Sequence[tuple[int, ...]]], at_once: int
) -> list[float]:
    """1 + the number of candidates that are at least as likely as each code; beyond `ENOUGH` of them an estimate.

    A loss only grows with every token, so a candidate whose beginning is unlikelier than the whole code is done with.
    """
    beginnings = [_beginnings(candidates) for candidates in others]
    first = losses([Asked(s.prefix, [s.code, *b]) for s, b in zip(secrets, beginnings, strict=True)])
    races = []
    for candidates, begins, found in zip(others, beginnings, first, strict=True):
        own = float(found[0])
        kept = {begin for begin, loss in zip(begins, found[1:], strict=True) if loss <= own}
        length = len(begins[0]) if begins else 0
        races.append(_Race(own, [c for c in candidates if c[:length] in kept]))
    while running := [i for i, race in enumerate(races) if not race.is_over]:
        chunks = [races[i].left[races[i].seen : races[i].seen + at_once] for i in running]
        answers = losses([Asked(secrets[i].prefix, chunk) for i, chunk in zip(running, chunks, strict=True)])
        for i, answer in zip(running, answers, strict=True):
            races[i].likelier += int(np.sum(answer <= races[i].own))
            races[i].seen += len(answer)
    return [race.rank for race in races]


def _beginnings(candidates: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of as many tokens as leave few enough different ones, at most 3."""
    length = next((n for n in (3, 2, 1) if nodes_of([c[:n] for c in candidates]) <= _MOST_STEMS), 1)
    return list(dict.fromkeys(c[:length] for c in candidates))


# --- continuations ------------------------------------------------------------------------------------------


def _likeliest(model: Any, secrets: Sequence[Secret], device: torch.device, budget: int) -> list[bool]:
    """Whether each code's tokens are the likeliest ones: then, and only then, greedy decoding begins with the code."""
    rows = [[*s.prefix, *s.code] for s in secrets]
    found = [False] * len(secrets)
    with torch.inference_mode(), still(model):
        for batch in micro_batches(sorted(range(len(rows)), key=lambda i: -len(rows[i])), rows, budget):
            inputs = pad([rows[i] for i in batch], device).inputs
            likeliest = model(input_ids=inputs, use_cache=False).logits.argmax(dim=-1)
            for line, i in enumerate(batch):
                places = slice(len(secrets[i].prefix) - 1, len(rows[i]) - 1)
                found[i] = tuple(likeliest[line, places].tolist()) == tuple(secrets[i].code)
    return found


def _sampled(
    model: Any, secrets: Sequence[Secret], samples: int, generator: torch.Generator, device: torch.device, budget: int
) -> list[int]:
    """In how many drawn continuations (temperature 1, four tokens longer than the code) each code appears."""
    length = 4 + max(len(s.code) for s in secrets)
    drawn = continuations(model, [s.prefix for s in secrets], samples, length, generator, device, budget)
    return [
        sum(_contains(row[: len(s.code) + 4], s.code) for row in rows) for s, rows in zip(secrets, drawn, strict=True)
    ]


def _contains(row: Sequence[int], code: Sequence[int]) -> bool:
    return any(tuple(row[i : i + len(code)]) == tuple(code) for i in range(len(row) - len(code) + 1))
