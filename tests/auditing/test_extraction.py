"""Extraction: ranks by brute force, and secrets that were learnt by heart are found while others are not."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from harness.auditing import decoding, extraction
from harness.auditing.extraction import Secret, extract
from harness.auditing.intervals import clopper_pearson
from harness.auditing.losses import example_losses
from harness.auditing.trees import Asked, continuation_losses, nodes_of, plain_losses, understands_trees
from tests.auditing.models import CPU, adapted, train
from tests.families import make_model

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "granite"]
PREFIX = [5, 99, 17, 3, 64, 40]


def codes(count: int, seed: int, length: int = 4) -> list[tuple[int, ...]]:
    """Different codes of tokens 10 … 19."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(rng.integers(10, 20, length).tolist())] = None
    return list(found)


def secrets_of(count: int, candidates: int = 60) -> list[Secret]:
    """Half of them planted; prefixes of two lengths."""
    all_codes = codes(count + candidates, 0)
    return [
        Secret((*PREFIX, 70 + i, *range(i % 2)), all_codes[i], tuple(all_codes[count:]), i % 2 == 0)
        for i in range(count)
    ]


@functools.cache
def attacked() -> tuple[Any, list[Secret]]:
    """A model that has learnt the planted ones by heart."""
    secrets = secrets_of(8)
    model = adapted(targets="all-linear", r=8, alpha=16, freeze_a=False)
    return train(model, [[*s.prefix, *s.code] for s in secrets if s.included], steps=60, lr=1e-2), secrets


def in_trees(model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> np.ndarray:
    return continuation_losses(model, [Asked(prefix, continuations)], CPU, 1000)[0]


def in_rows(model: Any, prefix: Sequence[int], continuations: Sequence[Sequence[int]], budget: int = 100) -> np.ndarray:
    return plain_losses(model, [Asked(prefix, continuations)], CPU, budget)[0]


def rank_of(losses: Any, code: tuple[int, ...], candidates: Sequence[tuple[int, ...]]) -> float:
    """Of one code, where `losses` is of continuations alone."""
    of_all = lambda asked: [losses(one.continuations) for one in asked]  # noqa: E731
    return extraction._ranks(of_all, [Secret((1,), code, (), True)], [candidates], 64)[0]


# --- trees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_gives_what_single_rows_give(family: str) -> None:
    """Broken by letting nodes see others than their ancestors, or by counting positions along the row."""
    model = make_model(family, "eager" if family == "gemma2" else "sdpa")
    continuations = [*codes(30, 1), (3,), (10, 11), codes(30, 1)[0][:3]]
    if not understands_trees(model, PREFIX, continuations[:4], CPU):
        pytest.fail(f"{family} computes trees otherwise")
    expected = [
        example_losses(model, [[*PREFIX, *c]], CPU, 100).nats[0] - example_losses(model, [PREFIX], CPU, 100).nats[0]
        for c in continuations
    ]
    assert in_trees(model, PREFIX, continuations) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert in_rows(model, PREFIX, continuations, 50) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_window_that_slides_over_the_row_is_found_out() -> None:
    """Mistral's counts along the row; where it is wider than prefix and code, that makes no difference."""
    assert not understands_trees(make_model("mistral", sliding_window=4), PREFIX, codes(4, 1), CPU)
    assert understands_trees(make_model("mistral", sliding_window=64), PREFIX, codes(4, 1), CPU)


def test_a_prefix_of_one_token_is_one() -> None:
    model, given = make_model("llama"), codes(5, 2)
    expected = example_losses(model, [[7, *c] for c in given], CPU, 100).nats
    assert in_trees(model, [7], given) == pytest.approx(expected, rel=1e-4)
    assert in_rows(model, [7], given) == pytest.approx(expected, rel=1e-4)


def test_shared_beginnings_are_there_once() -> None:
    assert nodes_of([(1, 2, 3), (1, 2, 4), (1, 5, 3), (6,)]) == 3


def test_a_model_that_ignores_the_mask_is_found_out_and_attacked_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, secrets = attacked()
    expected = extract(model, secrets, CPU, 400, samples=0, seed=0, confidence=0.95)
    inner = model.forward

    def deaf(attention_mask: Any = None, position_ids: Any = None, **given: Any) -> Any:
        return inner(**given)

    monkeypatch.setattr(model, "forward", deaf)
    assert not understands_trees(model, PREFIX, codes(4, 1), CPU)
    found = extract(model, secrets, CPU, 400, samples=0, seed=0, confidence=0.95)
    assert [f.exposure for f in found.findings] == pytest.approx([f.exposure for f in expected.findings])


# --- ranks --------------------------------------------------------------------------------------------------


def test_exposure_is_the_rank_among_all_by_brute_force() -> None:
    """Ranks up to `ENOUGH` are exact, under the tuned model and under its base."""
    model, secrets = attacked()
    found = extract(model, secrets, CPU, 400, samples=0, seed=0, confidence=0.95)
    for secret, finding in zip(secrets, found.findings, strict=True):
        for on, exposure in ((True, finding.exposure), (False, finding.base_exposure)):
            rows = [[*secret.prefix, *c] for c in (secret.code, *secret.candidates)]
            if on:
                nats = example_losses(model, rows, CPU, 400).nats
            else:
                with model.disable_adapter():
                    nats = example_losses(model, rows, CPU, 400).nats
            rank = 1 + int(np.sum(nats[1:] <= nats[0]))
            assert exposure == pytest.approx(math.log2(61) - math.log2(rank))


def test_many_likelier_candidates_are_estimated() -> None:
    """20 secrets nobody knows among 900: mean exposure near that of uniform ranks, from few of the candidates."""
    looked_at = []
    rng = np.random.default_rng(0)

    def losses(continuations: Any) -> np.ndarray:
        looked_at.append(len(continuations))
        return np.array([values[c] for c in continuations])

    ratios = []
    for seed in range(20):
        given = [(i, 1, 1, 1) for i in range(901)]
        values = dict(zip(given, rng.permutation(901) / 10.0 + 1, strict=True))
        values |= {c[:1]: 0.0 for c in given}
        rank = rank_of(losses, given[seed], given[:seed] + given[seed + 1 :])
        ratios.append(rank / (1 + sum(v < values[given[seed]] for c, v in values.items() if len(c) == 4)))
    assert sum(looked_at) < 20 * 901 * 1.5
    assert np.exp(np.mean(np.log(ratios))) == pytest.approx(1, abs=0.12)
    assert max(np.abs(np.log2(ratios))) < 1.0


def test_unlikely_beginnings_are_not_looked_at_further() -> None:
    seen = []

    def losses(continuations: Any) -> np.ndarray:
        seen.extend(continuations)
        return np.array([sum(c) / 10 for c in continuations])

    candidates = [(a, b, c, d) for a in range(1, 6) for b in range(1, 6) for c in (1, 2) for d in (1, 2)]
    rank = rank_of(losses, (1, 1, 2, 2), candidates[1:])
    assert rank == 1 + sum(sum(c) <= 6 for c in candidates[1:])
    assert (5, 5, 1, 1) not in seen


def test_candidates_as_likely_as_the_code_rank_before_it() -> None:
    """To the attacker's disadvantage. Broken by < for ≤."""
    equal = rank_of(lambda c: np.ones(len(c)), (9, 9), [(1, 1), (2, 2)])
    assert equal == 3


def test_the_code_among_its_candidates_is_passed_over() -> None:
    model, secrets = attacked()
    one = Secret(secrets[0].prefix, secrets[0].code, (secrets[0].code, *secrets[0].candidates[:7]), True)
    found = extract(model, [one], CPU, 400, samples=0, seed=0, confidence=0.95)
    assert found.most_exposure == found.findings[0].exposure == 3.0


# --- what is found ------------------------------------------------------------------------------------------


def test_secrets_learnt_by_heart_are_extracted_and_others_are_not() -> None:
    model, secrets = attacked()
    found = extract(model, secrets, CPU, 200, samples=5, seed=0, confidence=0.9)
    assert found.planted is not None
    assert found.left_out is not None
    assert (found.planted.secrets, found.left_out.secrets) == (4, 4)
    assert found.planted.exposure == found.most_exposure == pytest.approx(math.log2(61))
    assert found.planted.greedy == 1.0 == found.planted.sampled
    assert found.planted.greedy_interval == clopper_pearson(4, 4, 0.9)
    assert found.left_out.greedy == 0.0 == found.left_out.sampled
    assert found.left_out.exposure < 4
    assert found.planted.base_exposure < 4
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["planted"]["sampled"] == 1.0
    assert "findings" not in document


def test_greedy_is_what_generation_begins_with() -> None:
    """For prefixes of several lengths, in micro-batches of one and of many. Broken by counting from the padded end."""
    model, secrets = attacked()
    found = extraction._likeliest(model, secrets, CPU, 1)
    assert found == extraction._likeliest(model, secrets, CPU, 1000)
    for secret, likeliest in zip(secrets, found, strict=True):
        ids = torch.tensor([secret.prefix])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
        began = tuple(out[0, len(secret.prefix) :].tolist()) == secret.code
        assert likeliest == began


def test_draws_repeat_with_their_seed_and_have_the_models_probabilities() -> None:
    """400 draws of one next token; the largest deviation of a share has false-alarm rate below 1e-4."""
    model = make_model("llama")
    rows = [
        decoding.continuations(model, [PREFIX], 400, 2, torch.Generator().manual_seed(s), CPU, 1 << 12)[0]
        for s in (1, 1, 2)
    ]
    assert rows[0] == rows[1] != rows[2]
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([PREFIX])).logits[0, -1], -1).numpy()
    counts = np.bincount([r[0] for r in rows[0]], minlength=128)
    assert np.all(np.abs(counts / 400 - expected) < 5 * np.sqrt(expected * (1 - expected) / 400) + 0.01)
    # The second token follows the first: drawn from the same model.
    after = [[*PREFIX, *r] for r in rows[0]]
    loss = example_losses(model, after, CPU, 4000).nats - example_losses(model, [r[:-1] for r in after], CPU, 4000).nats
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([r[:-1] for r in after])).logits[:, -1], -1)
    assert loss.mean() == pytest.approx(float(-(logs.exp() * logs).sum(-1).mean()), abs=0.3)


@pytest.mark.parametrize(("budget", "samples"), [(1, 4), (200, 60), (100_000, 60)])
def test_codes_are_drawn_as_often_as_they_are_likely(budget: int, samples: int) -> None:
    """Whatever the micro-batches; a share of draws that is off by 5 standard deviations has probability below 1e-6."""
    model, secrets = attacked()
    hits = extraction._sampled(model, secrets, samples, torch.Generator().manual_seed(0), CPU, budget)
    for secret, hit in zip(secrets, hits, strict=True):
        chance = math.exp(-in_rows(model, secret.prefix, [secret.code])[0])
        assert abs(hit - samples * chance) <= 5 * math.sqrt(samples * chance * (1 - chance)) + 0.5


def test_without_samples_or_left_out_secrets_nothing_is_said_of_them() -> None:
    model, secrets = attacked()
    found = extract(model, [s for s in secrets if s.included][:1], CPU, 400, samples=0, seed=0, confidence=0.95)
    assert found.left_out is None
    assert found.planted is not None
    assert (found.planted.sampled, found.planted.sampled_interval, found.planted.exposure_interval) == (
        None,
        None,
        None,
    )
    json.dumps(found.document(), allow_nan=False)
