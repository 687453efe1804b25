"""What models write after the spec's prompts: whatever their length, on whatever model, and the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.auditing.samples import continuations
from harness.training.model import Base
from harness.training.tokenizer import load_tokenizer
from tests.families import make_model
from tests.tiny import save_tokenizer


class Same:
    """A run that has learnt nothing."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.tuned, self.device = model, torch.device("cpu")
        self.tokenizer = load_tokenizer(Base(folder, ""))

    def base(self) -> Any:
        from contextlib import nullcontext

        return nullcontext(self.tuned)

    def encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3_text"])
@pytest.mark.parametrize(("letters", "tokens"), [(300, 4), (250, 20), (256, 1000), (3, 1000), (0, 4)])
def test_a_prompt_beyond_the_models_positions_ends_no_run(
    family: str, letters: int, tokens: int, tmp_path: Path
) -> None:
    """Of 256 learned positions. The run is trained and charged by then. Break: `_fitting` that returns what it gets."""
    save_tokenizer(tmp_path)
    pair = Same(make_model(family), tmp_path)
    (found,) = continuations(pair, ["x" * letters], tokens, seed=1)  # type: ignore[arg-type]
    assert found["base"] == found["tuned"]
    assert bool(found["tuned"]) == bool(letters)
