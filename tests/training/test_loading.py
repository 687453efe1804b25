"""At ZeRO 3 a model is divided while it is loaded, and is the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.spec.adapter_block import AdapterBlock
from tests.tiny import copy_run, make_mechanism
from tests.training import checks
from tests.training.test_resume import last

ADAPTERS: dict[str, AdapterBlock] = {
    "lora": checks.BOTH_FACTORS,
    "lora and biases": AdapterBlock(freeze_a=False, bias="all"),
    "lora and all else": AdapterBlock(
        freeze_a=False,
        targets=("v_proj",),
        bias="lora_only",
        also=("embed_tokens", "norm", "input_layernorm", "q_proj"),
    ),
    "biases": AdapterBlock(type="bias"),
    "norms": AdapterBlock(type="norms"),
}
"""What is trained, in part of the base itself; its embeddings are tied."""
CASES = [("lora", "float32"), ("lora", "bfloat16"), ("lora and all else", "float32"), ("lora and all else", "bfloat16")]
CASES += [("lora and biases", "bfloat16"), ("biases", "bfloat16"), ("norms", "bfloat16")]


@pytest.fixture(scope="module")
def loaded(deep_base: Path, workers: Callable[[int], Any]) -> Callable[..., list[dict[str, Any]]]:
    """What each rank saw of a loading."""
    known: dict[tuple[int, int, str, str], list[dict[str, Any]]] = {}

    def get(world: int, stage: int, dtype: str, adapter: str) -> list[dict[str, Any]]:
        key = (world, stage, dtype, adapter)
        if key not in known:
            known[key] = workers(world)(checks.loaded, deep_base, stage, dtype, 5, ADAPTERS[adapter])
        return known[key]

    return get


@pytest.mark.parametrize(("adapter", "dtype"), CASES)
@pytest.mark.parametrize("world", [1, 2])
def test_a_divided_model_is_the_same_model(loaded: Any, world: int, dtype: str, adapter: str) -> None:
    """Base and adapter, in value and type; the adapter's first weights depend on neither stage nor workers.

    Red when the configuration leaves bf16 off: weights are float32 then, whatever `from_pretrained` is asked for. And
    when a layer is copied while its weights are elsewhere.
    """
    (plain,) = loaded(1, 0, dtype, adapter)
    for rank in loaded(world, 3, dtype, adapter):
        assert rank["types"] == plain["types"]
        assert rank["initial"] == plain["initial"]
        assert rank["values"].keys() == plain["values"].keys()
        for name, value in rank["values"].items():
            assert value.size
            np.testing.assert_array_equal(value, plain["values"][name])


@pytest.mark.parametrize(("adapter", "dtype"), CASES)
def test_each_worker_holds_its_part_and_never_the_whole(loaded: Any, dtype: str, adapter: str) -> None:
    """Of what is frozen; nobody but DeepSpeed's engine divides what is trained, which is small.

    Red when the model is loaded whole and divided by `deepspeed.initialize`.
    """
    (plain,) = loaded(1, 0, dtype, adapter)
    assert plain["own"] == plain["whole"]
    for rank in loaded(2, 3, dtype, adapter):
        assert rank["whole"] == plain["whole"]
        assert rank["own"] == pytest.approx(plain["whole"] / 2, rel=1e-3)
        assert rank["most"] < 0.75 * plain["whole"]


@pytest.mark.parametrize(
    ("world", "adapter"),
    [
        pytest.param(1, "lora", marks=pytest.mark.slow),
        (2, "lora"),
        (2, "lora and all else"),
        pytest.param(1, "lora and all else", marks=pytest.mark.slow),
        pytest.param(2, "biases", marks=pytest.mark.slow),
        pytest.param(2, "norms", marks=pytest.mark.slow),
    ],
)
def test_training_a_divided_model_changes_nothing(
    new_run: Callable[..., Path],
    workers: Callable[[int], Any],
    tmp_path: Path,
    deep_base: Path,
    world: int,
    adapter: str,
) -> None:
    """Whole at stage 0, divided at stage 3."""
    model = {"adapter": ADAPTERS[adapter].model_dump(mode="json")}
    plain = new_run(deep_base, mechanism=make_mechanism(noise_std=0.1), model=model)
    divided = copy_run(plain, tmp_path / "divided", compute={"deepspeed": {"stage": 3}})
    assert workers(1)(checks.train, plain) == [None]
    assert workers(world)(checks.train, divided) == [None] * world
    for name, value in last(plain).parameters.items():
        np.testing.assert_allclose(last(divided).parameters[name].numpy(), value.numpy(), rtol=0, atol=1e-5)
