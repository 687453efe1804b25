"""A run's model and the base that it began from, side by side on one device: what all attacks look at."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import MachineError
from harness.spec.models import ModelBlock
from harness.training.job import Folder
from harness.training.model import Base, quiet
from harness.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class _Loaded:
    """Both models.

    Attributes:
        tuned: The run's.
        base: The one before; None: `tuned` with its adapter off.
        adapted: Names of parameters that belong to the adapter.
    """

    tuned: Any
    base: Any
    adapted: frozenset[str]


class Pair:
    """Both models. Where only an adapter was trained, it is switched off for the base, which is in memory once.

    Nothing is loaded before it is asked for: some attacks need no model.
    """

    def __init__(self, run_dir: Path, base: Base, model: ModelBlock, device: str) -> None:
        """Notes where they lie.

        Args:
            run_dir: A trained run's folder.
            base: What it was trained on.
            model: The spec's block.
            device: ``cpu`` or ``cuda``.
        """
        self._folder, self._from, self._block, self._device = Folder(run_dir), base, model, device

    @property
    def device(self) -> Any:
        """Where the models are, as torch knows it."""
        import torch

        return torch.device(self._device)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Of both."""
        return load_tokenizer(self._from)

    @functools.cached_property
    def _loaded(self) -> _Loaded:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if not (self._from.folder / "config.json").is_file():
            raise MachineError(f"the base model that the run was trained on is not in {self._from.folder} any more")
        quiet()
        dtype, adapter = getattr(torch, self._block.dtype), self._block.adapter

        def load(folder: Path) -> Any:
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            return loaded.to(self.device).eval()

        # What PEFT writes into the base itself can't be switched off.
        inside = adapter.type == "lora" and adapter.bias == "none" and not adapter.also
        base = None if inside else load(self._from.folder)
        if self._folder.model.exists():
            tuned = load(self._folder.model)
        else:
            tuned = PeftModel.from_pretrained(load(self._from.folder), self._folder.adapter, is_trainable=True).eval()
        # PEFT knows best what is an adapter's.
        adapted = frozenset(name for name, parameter in tuned.named_parameters() if parameter.requires_grad)
        tuned.requires_grad_(False)
        return _Loaded(tuned, base, adapted)

    @property
    def tuned(self) -> Any:
        """The run's model."""
        return self._loaded.tuned

    @contextlib.contextmanager
    def base(self) -> Iterator[Any]:
        """Inside, the model before training; `tuned` must not be used meanwhile."""
        if self._loaded.base is not None:
            yield self._loaded.base
            return
        with self.tuned.disable_adapter():
            yield self.tuned

    @contextlib.contextmanager
    def trainable(self) -> Iterator[Any]:
        """Inside, the trained model, of which what the run trained, and nothing else, takes gradients."""
        for name, parameter in self.tuned.named_parameters():
            parameter.requires_grad_(self._is_trained(name))
        try:
            yield self.tuned
        finally:
            self.tuned.requires_grad_(False)

    def _is_trained(self, name: str) -> bool:
        adapter = self._block.adapter
        if adapter.type == "full":
            return True
        if ".lora_A." in name and adapter.freeze_a:
            return False
        return name in self._loaded.adapted

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special ones."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
