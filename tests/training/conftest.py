"""Tiny base models, and worker groups that stay up for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_run, save_base, save_tokenizer
from tests.training.workers import Workers


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model."""
    return save_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one matrix for input and output embeddings."""
    return save_base(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="session")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose single layers are small: 8 MB in float32, of which the largest matrix is 2 %."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "deep"
    folder.mkdir()
    eos = save_tokenizer(folder).eos_token_id
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], Workers]]:
    """The group of so many worker processes."""
    groups: dict[int, Workers] = {}

    def group(world: int) -> Workers:
        return groups.setdefault(world, Workers(world))

    yield group
    for each in groups.values():
        each.close()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where corpora are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_run(tmp_path: Path, base: Path, cache: Path) -> Callable[..., Path]:
    """Makes a run's folder, ready to train."""
    made: list[Path] = []

    def make(of: Path | None = None, **options: Any) -> Path:
        made.append(make_run(tmp_path / f"run-{len(made)}", of or base, cache=cache, **options))
        return made[-1]

    return make
