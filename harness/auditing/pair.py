"""A run's model and the base that it began from, side by side on one device: what all attacks look at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.spec.models import ModelBlock
from harness.training.job import Folder
from harness.training.model import Base, quiet
from harness.training.tokenizer import load_tokenizer


class Pair:
    """Both models. Where only an adapter was trained, it is switched off for the base, which is in memory once.

    Attributes:
        tokenizer: Of both.
        device: Where they are.
    """

    def __init__(self, run_dir: Path, base: Base, model: ModelBlock, device: str) -> None:
        """Loads them.

        Args:
            run_dir: A trained run's folder.
            base: What it was trained on.
            model: The spec's block.
            device: ``cpu`` or ``cuda``.
        """
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        quiet()
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer(base)
        dtype, adapter = getattr(torch, model.dtype), model.adapter

        def load(folder: Path) -> Any:
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            return loaded.to(self.device).eval()

        # What PEFT writes into the base itself can't be switched off.
        inside = adapter.type == "lora" and adapter.bias == "none" and not adapter.also
        self._base: Any = None if inside else load(base.folder)
        if Folder(run_dir).model.exists():
            self._tuned: Any = load(Folder(run_dir).model)
        else:
            self._tuned = PeftModel.from_pretrained(load(base.folder), Folder(run_dir).adapter, is_trainable=True)
            self._tuned.eval()
        self._adapter = adapter
        # PEFT knows best what is an adapter's.
        self._adapted = {name for name, parameter in self._tuned.named_parameters() if parameter.requires_grad}
        self._tuned.requires_grad_(False)

    @property
    def tuned(self) -> Any:
        """The run's model."""
        return self._tuned

    @contextlib.contextmanager
    def base(self) -> Iterator[Any]:
        """Inside, the model before training; `tuned` must not be used meanwhile."""
        if self._base is not None:
            yield self._base
            return
        with self._tuned.disable_adapter():
            yield self._tuned

    @contextlib.contextmanager
    def trainable(self) -> Iterator[Any]:
        """Inside, the trained model, of which what the run trained, and nothing else, takes gradients."""
        named = dict(self._tuned.named_parameters())
        before = {name: parameter.requires_grad for name, parameter in named.items()}
        for name, parameter in named.items():
            parameter.requires_grad_(self._is_trained(name))
        try:
            yield self._tuned
        finally:
            for name, parameter in named.items():
                parameter.requires_grad_(before[name])

    def _is_trained(self, name: str) -> bool:
        if self._adapter.type == "full":
            return True
        if ".lora_A." in name:
            return not self._adapter.freeze_a
        return name in self._adapted

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special ones."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
