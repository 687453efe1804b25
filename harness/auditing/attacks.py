"""The attacks beside the one-run audit, on a trained run: each gets what it needs of the run, and its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.auditing import extraction, reconstruction, user_inference
from harness.auditing.losses import budget_of, example_losses
from harness.auditing.pair import Pair
from harness.data.canaries import Canary
from harness.data.holding_back import held_back
from harness.data.store import Corpus
from harness.data.synthetic.parameters import SyntheticParameters
from harness.data.synthetic.population import Population
from harness.spec.audit_block import AuditBlock, ExtractionBlock, ReconstructionBlock, UserInferenceBlock
from harness.training.job import Folder, Job

Note = Callable[[str], None]


def run(
    job: Job, block: AuditBlock, folder: Folder, drawn: tuple[Canary, ...], pair: Pair, note: Note
) -> dict[str, Any]:
    """All of a block's attacks but the one-run audit.

    Args:
        job: What was trained.
        block: Which attacks.
        folder: The run's folder.
        drawn: Its canaries.
        pair: Its models.
        note: Is told which one comes next.

    Returns:
        A document of each, by the block's key. That of `user_inference` is private where the data are.
    """
    found: dict[str, Any] = {}
    if block.extraction is not None:
        note("audit: asking for planted secrets")
        found["extraction"] = _extraction(job, block, block.extraction, drawn, pair)
    if block.user_inference is not None:
        note("audit: telling trained users from held-out ones")
        found["user_inference"] = _user_inference(job, block, block.user_inference, folder, pair)
    if block.reconstruction is not None:
        note("audit: looking for words in updates")
        found["reconstruction"] = _reconstruction(job, block, block.reconstruction, pair)
    return found


# --- planted secrets ----------------------------------------------------------------------------------------


def _extraction(
    job: Job, block: AuditBlock, wanted: ExtractionBlock, drawn: tuple[Canary, ...], pair: Pair
) -> dict[str, Any]:
    own = [canary for canary in drawn if canary.kind == "secret"]
    generator = np.random.default_rng(job.spec.seed)
    secrets = [_secret(canary, wanted, pair, generator) for canary in own]
    with pair.base() as base:
        apart = base if base is not pair.tuned else None
    found = extraction.extract(
        pair.tuned,
        secrets,
        pair.device,
        budget_of(pair.device),
        samples=wanted.samples,
        seed=job.spec.seed,
        confidence=block.confidence,
        base=apart,
    )
    return found.document()


def _secret(canary: Canary, wanted: ExtractionBlock, pair: Pair, generator: np.random.Generator) -> extraction.Secret:
    """A planted code and its rivals, as tokens: what all of them begin with is the prefix."""
    digits = generator.integers(10, size=(wanted.candidates, wanted.digits))
    codes = [canary.code, *("".join(map(str, row)) for row in digits.tolist())]
    rows = [pair.encode(canary.prefix + code) for code in codes]
    prefix = pair.encode(canary.prefix)
    # A tokenizer may join the last space of the prefix with the first digit.
    shared = 0
    while shared < len(prefix) and all(len(row) > shared + 1 and row[shared] == prefix[shared] for row in rows):
        shared += 1
    start, *others = [tuple(row[shared:]) for row in rows]
    return extraction.Secret(tuple(prefix[:shared]), start, tuple(others), canary.included)


# --- users --------------------------------------------------------------------------------------------------


def _user_inference(
    job: Job, block: AuditBlock, wanted: UserInferenceBlock, folder: Folder, pair: Pair
) -> dict[str, Any]:
    """Trained users against held-out ones, by the examples that the training left out. Private."""
    corpus = Corpus.load(job.corpus)
    groups = np.load(folder.members, mmap_mode="r")
    generator = np.random.default_rng(job.spec.seed)
    half = wanted.users // 2
    usable = corpus.n_examples >= (2 if wanted.fresh else 1)
    trained = _some(np.flatnonzero(usable & ~corpus.holdout & (groups >= 0)), half, generator)
    others = _some(np.flatnonzero(usable & corpus.holdout), half, generator)
    scores = _scores(corpus, np.concatenate([trained, others]), wanted, pair)
    names = [group.name for group in job.mechanism.groups]
    found = user_inference.compare_groups(
        scores[: len(trained)],
        np.asarray(groups[trained], dtype=np.int64),
        scores[len(trained) :],
        np.asarray(groups[others], dtype=np.int64),
        names,
        block.confidence,
        job.spec.seed,
    )
    return found.document() | {"fresh": wanted.fresh}


def _some(users: NDArray[np.int64], most: int, generator: np.random.Generator) -> NDArray[np.int64]:
    return users if len(users) <= most else np.sort(generator.choice(users, most, replace=False))


def _scores(corpus: Corpus, users: NDArray[np.int64], wanted: UserInferenceBlock, pair: Pair) -> NDArray[np.float64]:
    rows: list[list[int]] = []
    whose: list[int] = []
    for place, user in enumerate(users.tolist()):
        first, last = corpus.examples_of(user)
        count = held_back(last - first, wanted.examples) if wanted.fresh else min(last - first, wanted.examples)
        rows += [corpus.tokens(example).tolist() for example in range(last - count, last)]
        whose += [place] * count
    tuned = example_losses(pair.tuned, rows, pair.device, budget_of(pair.device))
    with pair.base() as model:
        base = example_losses(model, rows, pair.device, budget_of(pair.device))
    return user_inference.user_scores(np.array(whose), tuned.nats, base.nats, tuned.tokens, len(users))


# --- updates ------------------------------------------------------------------------------------------------


def _reconstruction(job: Job, block: AuditBlock, wanted: ReconstructionBlock, pair: Pair) -> dict[str, Any]:
    """Made texts in sums of clipped gradients at the trained weights, as the least protected group sends them."""
    # As many made users again, so that each text has its own company.
    users = wanted.texts + 2 * max(wanted.cohorts)
    made = Population(SyntheticParameters(scenario="support", users=users, seed=job.spec.seed))
    texts = [pair.encode(next(iter(made.texts(user))))[: wanted.tokens] for user in range(len(made))]
    mechanism = job.mechanism
    with pair.trainable() as model:
        found = reconstruction.attack(
            model,
            [text for text in texts if len(text) > 1],
            wanted.cohorts,
            max(group.clip_norm for group in mechanism.groups),
            mechanism.noise_std,
            pair.device,
            budget_of(pair.device),
            wanted=wanted.texts,
            seed=job.spec.seed,
            confidence=block.confidence,
        )
    return found.document()
