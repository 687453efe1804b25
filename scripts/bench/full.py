"""All parameters trained: a private step, with its two passes, over an ordinary one on the same tokens.

    python scripts/bench/full.py [--model NAME] [--stage N] [--repeats N]

The ordinary one is what anybody does: ``model(input_ids=…, labels=…)``, backward, AdamW, float32. The private one is
the product's own step: it draws the cohort, cuts it into micro-batches, finds every unit's norm, goes backward once
more, adds noise and steps through DeepSpeed. Both take turns in one process. One JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _measure
import _models

TO_REACH = 0.55


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=_models.DEFAULT, help=f"{', '.join(_models.SHAPES)}, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--microbatch", type=int, default=1024)
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    _measure.prepare(options.threads)
    with _models.base_folder(options.model, "float32", options.device) as base, TemporaryDirectory() as place:
        _measure.publish(measured(options, base, Path(place)))


def measured(options: argparse.Namespace, base: Path, place: Path) -> dict[str, Any]:
    """The document."""
    import _training
    import torch

    _training.alone(options.device)
    setting = _training.Setting(
        base=base,
        dtype="float32",
        users=_training.even_users(options.tokens, options.length),
        length=options.length,
        microbatch_tokens=options.microbatch,
        device=options.device,
        stage=options.stage,
    )
    ordinary = Ordinary(setting)
    private = product(setting, place)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    seconds = _measure.in_turns({"private": private, "ordinary": ordinary}, options.repeats, wait=wait)
    memory = {}
    for name, step in (("private", private), ("ordinary", ordinary)):
        with _measure.peak_memory(options.device) as peak:
            step()
        memory[name] = peak.peak
    found = _measure.ratio(seconds["ordinary"], seconds["private"])
    tokens = {"private": setting.tokens, "ordinary": ordinary.tokens}
    return {
        "script": "full",
        "model": {"name": options.model, "dtype": "float32", "parameters": count(ordinary.model)},
        "tokens": options.tokens,
        "length": options.length,
        "microbatch_tokens": options.microbatch,
        "stage": options.stage,
        "repeats": options.repeats,
        "tokens_per_second": {n: _measure.median([tokens[n] / s for s in every]) for n, every in seconds.items()},
        "tokens_ratio": found,
        "peak_bytes_of_both_models": memory,
        "rows": [_measure.row("all parameters: private ÷ ordinary", found, TO_REACH)],
        "to_reach": {"tokens_ratio": TO_REACH},
        **_measure.machine(options.device),
    }


class Ordinary:
    """Ordinary training of all parameters."""

    def __init__(self, setting: Any) -> None:
        import _training
        import torch
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(setting.base, dtype=torch.float32).to(setting.device)
        self.model.config.use_cache = False
        self.model.train()
        self.batches = _training.dense_batches(setting)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return sum(b.numel() for b in self.batches)

    def __call__(self) -> None:
        """Takes one step."""
        for batch in self.batches:
            (self.model(input_ids=batch, labels=batch).loss / len(self.batches)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def product(setting: Any, place: Path) -> Any:
    """The product's step with all parameters trained."""
    from unittest import mock

    import _training

    plain = _training.spec_of

    def full(given: Any) -> Any:
        spec = plain(given)
        model = spec.model.model_dump() | {"adapter": {"type": "full"}}
        train = spec.train.model_dump() | {"optimizer": {"type": "adamw", "lr": 1e-5}}
        return type(spec).model_validate(spec.model_dump(mode="json") | {"model": model, "train": train}, strict=False)

    with mock.patch.object(_training, "spec_of", full):
        return _training.Product(dataclasses.replace(setting), place / "run")


def count(model: Any) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    main()
