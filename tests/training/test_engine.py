"""DeepSpeed shards, and does nothing else: it neither averages, clips, scales nor sees a raw gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.planning.footprint import BUCKET
from harness.spec.models import OptimizerBlock
from harness.training.engine import deepspeed_config, make_optimizer
from tests.tiny import make_mechanism
from tests.training import checks

SGD = {"type": "sgd", "lr": 0.5}


@pytest.fixture(scope="module")
def stepped(base: Path, workers: Callable[[int], Any]) -> Callable[[int, int], list[dict[str, Any]]]:
    """What each rank saw of two SGD steps with given gradients."""
    known: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def get(world: int, stage: int) -> list[dict[str, Any]]:
        if (world, stage) not in known:
            known[world, stage] = workers(world)(checks.stepped_engine, base, stage, SGD)
        return known[world, stage]

    return get


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
class TestTheEngine:
    """At every stage, with one worker and with two."""

    def test_steps_exactly_on_the_gradient_that_it_is_given(self, stepped: Any, world: int, stage: int) -> None:
        """Gradients of norm 3,000 and another loss on every rank. Broken by DeepSpeed's clipping, its averaging, or
        by backward leaving something in its buffers.
        """
        for rank in stepped(world, stage):
            for i in range(2):
                before, after, gradient = rank["weights"][i], rank["weights"][i + 1], rank["given"][i]
                assert np.linalg.norm(gradient) > 2000
                np.testing.assert_array_equal(rank["held"][i], gradient)
                for name, offset, size, shape in rank["layout"]:
                    own = gradient[offset : offset + size].reshape(shape)
                    np.testing.assert_allclose(after[name], before[name] - 0.5 * own, rtol=1e-6, atol=1e-5)

    def test_sees_raw_gradients_of_exactly_zero(self, stepped: Any, world: int, stage: int) -> None:
        """Broken by a layer whose ordinary weight gradient is computed after all."""
        for rank in stepped(world, stage):
            assert len(rank["raw"]) >= 2 * len(rank["layout"])
            assert set(rank["raw"]) == {0.0}
            assert rank["buffers"] == [0.0, 0.0]
            assert min(norm for norms in rank["norms"][1:] for norm in norms) > 0.1  # what was kept from it

    def test_has_its_own_ideas_switched_off(self, stepped: Any, world: int, stage: int) -> None:
        for rank in stepped(world, stage):
            assert (rank["clipping"], rank["fp16"], rank["stage"], rank["accumulation"]) == (0.0, False, stage, 1)

    def test_really_shards_the_weights_at_stage_3_alone(self, stepped: Any, world: int, stage: int) -> None:
        """Otherwise the tests of stage 3 would show nothing: small parameters stay whole unless told otherwise."""
        for rank in stepped(world, stage):
            assert rank["whole"] == (0 if stage == 3 else len(rank["layout"]))

    def test_gives_every_rank_the_same_weights(self, stepped: Any, world: int, stage: int) -> None:
        first, *others = stepped(world, stage)
        for other in others:
            for name, weight in first["weights"][-1].items():
                np.testing.assert_array_equal(other["weights"][-1][name], weight)


def test_an_engine_that_clips_is_refused(base: Path, workers: Callable[[int], Any]) -> None:
    (message,) = workers(1)(checks.engine_with_clipping, base)
    assert message == "DeepSpeed would change the mechanism: its clipping or loss scaling is on"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_configuration_has_nothing_that_touches_a_gradient(stage: int) -> None:
    config = deepspeed_config(stage)
    assert config["gradient_clipping"] == 0.0
    assert not config["fp16"]["enabled"]
    assert not config["bf16"]["enabled"]
    sharding = {"stage": stage, **({"reduce_bucket_size": BUCKET} if stage == 3 else {})}
    assert config["zero_optimization"] == sharding
    assert config["gradient_accumulation_steps"] == 1
    assert deepspeed_config(stage, "parameters") == config | {
        "zero_optimization": {
            **sharding,
            "offload_optimizer": {"device": "cpu"},
            "offload_param": {"device": "cpu"},
        }
    }
    assert "scheduler" not in config
    assert "optimizer" not in config


@pytest.mark.parametrize(
    ("block", "kind", "settings"),
    [
        ({"type": "sgd", "lr": 0.1}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}),
        ({"type": "sgd", "lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
        ({"type": "adamw", "lr": 0.1}, torch.optim.AdamW, {"weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}),
        (
            {"type": "adamw", "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2},
            torch.optim.AdamW,
            {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2},
        ),
        ({"type": "adam", "lr": 0.1, "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
    ],
)
def test_the_optimizer_is_the_one_of_the_spec(block: dict[str, Any], kind: type, settings: dict[str, Any]) -> None:
    optimizer = make_optimizer(OptimizerBlock(**block), [nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {k: group[k] for k in settings} == settings


def test_sharded_weights_are_gathered_once_a_step_after_an_evaluation(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """DeepSpeed keeps what it decided in passes without a backward one. Red without `_forget_other_orders`."""
    run_dir = new_run(
        mechanism=make_mechanism(steps=5, rates=(0.1, 0.1)),
        compute={"deepspeed": {"stage": 3}, "microbatch_tokens": 100_000},
        evaluation={"users": 5},
    )
    for gathered, weights in workers(2)(checks.gathered_in_last_step, run_dir, 5):
        assert gathered == weights > 1
