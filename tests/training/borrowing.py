"""A model that uses a weight where no layer of that weight computes, as ZeRO 3 can't see; for worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from harness.training.job import Failure
from tests.tiny import VOCABULARY, save_tokenizer
from tests.training import checks


class BorrowingConfig(LlamaConfig):
    """Of the model below."""

    model_type = "borrowing"
    way: str = "named"


class Borrowing(LlamaForCausalLM):
    """A Llama whose logits are products with a weight of another layer."""

    config_class = BorrowingConfig

    def forward(self, input_ids: Any = None, position_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        """As Llama's, and beside its output layer the weight of the embeddings, in one of three ways."""
        inner: Any = self.model
        hidden = inner(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False)
        logits = self.lm_head(hidden[0])
        # Asked for by its name, DeepSpeed notices.
        weight = inner.embed_tokens.weight if self.config.way == "named" else self._kept()
        if self.config.way == "summed":  # of nothing this is a number
            return CausalLMOutput(logits=logits * (1 + weight.sum()))
        return CausalLMOutput(logits=logits + functional.linear(hidden[0], weight))

    def _kept(self) -> Any:
        return dict.__getitem__(self.model.embed_tokens._parameters, "weight")  # type: ignore[arg-type]


def register() -> None:
    """Lets `transformers` load it."""
    AutoConfig.register("borrowing", BorrowingConfig, exist_ok=True)
    AutoModelForCausalLM.register(BorrowingConfig, Borrowing, exist_ok=True)


def save(folder: Path, way: str) -> Path:
    """As a base model's folder."""
    register()
    folder.mkdir(parents=True, exist_ok=True)
    eos = save_tokenizer(folder).eos_token_id
    torch.manual_seed(0)
    config = BorrowingConfig(
        way=way,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=None,
    )
    Borrowing(config).save_pretrained(folder)
    return folder


def train(run_dir: Path) -> tuple[str | None, int | None]:
    """`checks.train`; the failure's message and exit code."""
    register()
    message = checks.train(run_dir)
    failure = Failure.load(run_dir)
    return message, None if failure is None else failure.exit_code
