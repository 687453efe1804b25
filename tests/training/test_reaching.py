"""At ZeRO 3 a weight is whole only while its layer computes: a model that uses it elsewhere is told so in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import copy_run, make_mechanism, make_run
from tests.training import borrowing
from tests.training.test_resume import last

LORA = {"adapter": {"r": 2, "targets": ["v_proj"]}}
FULL = {"adapter": {"type": "full"}}
WEIGHT = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model that uses its embeddings' weight elsewhere, in this way."""
    return lambda way: borrowing.save(tmp_path_factory.mktemp("bases") / way, way)


def new(target: Path, base: Path, cache: Path, model: Any, stage: int) -> Path:
    return make_run(
        target,
        base,
        cache=cache,
        mechanism=make_mechanism(steps=1, noise_std=0.1, examples_per_user=1),
        model=model,
        compute={"deepspeed": {"stage": stage}},
    )


@pytest.mark.parametrize(("way", "world"), [("kept", 1), ("kept", 2), ("summed", 2)])
def test_a_frozen_weight_that_is_elsewhere_is_named(
    base: Any, cache: Path, tmp_path: Path, workers: Callable[[int], Any], way: str, world: int
) -> None:
    """By all ranks, before training; and stage 2, which is advised, trains it.

    Seen red: without the look ("kept": a traceback; "summed": it trains on other logits, silently).
    """
    run_dir = new(tmp_path / "run", base(way), cache, LORA, 3)
    at_two = copy_run(run_dir, tmp_path / "at-two", compute={"deepspeed": {"stage": 2}})
    said = (
        f"compute.deepspeed.stage: 3 can't run this model: it uses {WEIGHT} outside of its layer, where no worker has "
        "it whole; take stage: 2"
    )
    assert workers(world)(borrowing.train, run_dir) == [(said, 2)] * world
    assert not (run_dir / "metrics.jsonl").exists()
    assert workers(world)(borrowing.train, at_two) == [(None, None)] * world


@pytest.mark.parametrize("world", [1, 2])
def test_a_weight_that_deepspeed_gathers_by_itself_is_trained_beside(
    base: Any, cache: Path, tmp_path: Path, workers: Callable[[int], Any], world: int
) -> None:
    """As at stage 0."""
    plain = new(tmp_path / "plain", base("named"), cache, LORA, 0)
    divided = copy_run(plain, tmp_path / "divided", compute={"deepspeed": {"stage": 3}})
    assert workers(1)(borrowing.train, plain) == [(None, None)]
    assert workers(world)(borrowing.train, divided) == [(None, None)] * world
    for name, value in last(plain).parameters.items():
        np.testing.assert_allclose(last(divided).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["named", "kept"])
def test_a_trained_weight_is_refused_as_it_is_at_every_stage(
    base: Any, cache: Path, tmp_path: Path, workers: Callable[[int], Any], way: str
) -> None:
    """Seen red: without the look (a traceback)."""
    run_dir = new(tmp_path / "run", base(way), cache, FULL, 3)
    said = (
        f"{WEIGHT} can't be trained privately: the model uses it outside of its layer, where users' gradients can't be "
        "kept apart; an adapter (type: lora) trains without it"
    )
    assert workers(2)(borrowing.train, run_dir) == [(said, 2)] * 2
