"""Planted secrets, asked for (Carlini et al., 2019 and 2021): are made users' codes in the model?

Each made user has a code in their texts. The attacker knows what stands before it, and ranks the code among others of
the same form, takes the likeliest continuation, or draws some. Half of the codes were never trained on: what the attack
finds of those is what guessing finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.auditing.intervals import Interval, clopper_pearson, mean_interval
from harness.auditing.losses import base_of, still
from harness.auditing.trees import continuation_losses, nodes_of, plain_losses, understands_trees

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
    findings = tuple(
        Finding(s.included, exposures[i], base_exposures[i], _is_likeliest(model, s, device), hits[i])
        for i, s in enumerate(secrets)
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


def _exposures(
    model: Any,
    secrets: Sequence[Secret],
    others: Sequence[Sequence[tuple[int, ...]]],
    device: torch.device,
    budget: int,
) -> list[float]:
    first = secrets[0]
    trees = understands_trees(model, first.prefix, [first.code, *others[0][:7]], device)

    def losses(prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        if not trees:
            return plain_losses(model, prefix, continuations, device, budget)
        return continuation_losses(model, prefix, continuations, device)

    found = []
    for secret, candidates in zip(secrets, others, strict=True):
        rank = _rank(losses, secret, candidates, max(1, min(_CHUNK, budget // len(secret.code))))
        found.append(math.log2(len(candidates) + 1) - math.log2(rank))
    return found


def _rank(losses: Any, secret: Secret, candidates: Sequence[tuple[int, ...]], at_once: int) -> float:
    """1 + the number of candidates that are at least as likely as the code; beyond `ENOUGH` of them an estimate.

    A loss only grows with every token, so a candidate whose beginning is unlikelier than the whole code is done with.
    """
    own = float(losses(secret.prefix, [secret.code])[0])
    left = _with_likely_beginnings(losses, secret.prefix, candidates, own)
    likelier, seen = 0, 0
    while seen < len(left) and likelier < ENOUGH:
        chunk = left[seen : seen + at_once]
        likelier += int(np.sum(losses(secret.prefix, chunk) <= own))
        seen += len(chunk)
    return 1 + likelier * (len(left) / seen if seen else 0.0)


def _with_likely_beginnings(
    losses: Any, prefix: Sequence[int], candidates: Sequence[tuple[int, ...]], own: float
) -> list[tuple[int, ...]]:
    length = next((n for n in (3, 2, 1) if nodes_of([c[:n] for c in candidates]) <= _MOST_STEMS), 1)
    stems = list(dict.fromkeys(c[:length] for c in candidates))
    if not stems:
        return []
    kept = {s for s, loss in zip(stems, losses(prefix, stems), strict=True) if loss <= own}
    return [c for c in candidates if c[:length] in kept]


# --- continuations ------------------------------------------------------------------------------------------


def _is_likeliest(model: Any, secret: Secret, device: torch.device) -> bool:
    """Whether the code's tokens are the likeliest ones: then, and only then, greedy decoding begins with the code."""
    row = torch.tensor([[*secret.prefix, *secret.code]], device=device)
    with torch.inference_mode(), still(model):
        logits = model(input_ids=row, use_cache=False).logits[0, len(secret.prefix) - 1 : -1]
    return bool((logits.argmax(dim=-1) == row[0, len(secret.prefix) :]).all())


def _sampled(
    model: Any, secrets: Sequence[Secret], samples: int, generator: torch.Generator, device: torch.device, budget: int
) -> list[int]:
    """In how many drawn continuations (temperature 1, four tokens longer than the code) each code appears."""
    hits = [0] * len(secrets)
    queue = [i for i in sorted(range(len(secrets)), key=lambda i: len(secrets[i].prefix)) for _ in range(samples)]
    while queue:
        width = len(secrets[queue[0]].prefix)
        batch: list[int] = []
        length = 4 + max(len(s.code) for s in secrets)
        while queue and len(secrets[queue[0]].prefix) == width and (len(batch) + 1) * (width + length) <= budget:
            batch.append(queue.pop(0))
        batch = batch or [queue.pop(0)]
        prefixes = torch.tensor([secrets[i].prefix for i in batch], device=device)
        for i, row in zip(batch, _continue(model, prefixes, length, generator), strict=True):
            hits[i] += _contains(row[: len(secrets[i].code) + 4], secrets[i].code)
    return hits


def _continue(model: Any, prefixes: Tensor, length: int, generator: torch.Generator) -> list[list[int]]:
    drawn: list[Tensor] = []
    tokens, past = prefixes, None
    with torch.inference_mode(), still(model):
        for _ in range(length):
            out = model(input_ids=tokens, past_key_values=past, use_cache=True)
            past = out.past_key_values
            tokens = torch.multinomial(torch.softmax(out.logits[:, -1].float(), dim=-1), 1, generator=generator)
            drawn.append(tokens)
    rows: list[list[int]] = torch.cat(drawn, dim=1).tolist()
    return rows


def _contains(row: Sequence[int], code: Sequence[int]) -> bool:
    return any(tuple(row[i : i + len(code)]) == tuple(code) for i in range(len(row) - len(code) + 1))
