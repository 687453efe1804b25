"""A finished run's model at work: to generate, and written out whole for those who serve models."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError, MachineError
from harness.files import sync_folder, write_released
from harness.training.job import Folder
from harness.training.model import Base, find_base, quiet
from harness.training.tokenizer import load_tokenizer


def base_of(run_dir: Path, cache: Path) -> Base:
    """The base model that a run was trained on; of a run that trained all of it, what it made, which needs no base.

    Args:
        run_dir: The run's folder.
        cache: Where converted models are kept.

    Raises:
        ArgumentError: It is not on this machine any more.
        MachineError: The hub can't be reached.
    """
    if Folder(run_dir).model.exists():
        return Base(Folder(run_dir).model, "what the run made")
    job = Folder(run_dir).private / "job.json"
    if job.exists():
        folder = Path(json.loads(job.read_text())["base"])
        if (folder / "config.json").exists():
            return Base(folder, "where the run had it")
    return find_base(json.loads((run_dir / "plan.json").read_text())["model"]["base"], run_dir, cache)


def generate(
    run_dir: Path, base: Base, prompt: str, *, tokens: int, temperature: float, seed: int | None = None
) -> str:
    """What the trained model writes after a prompt.

    Args:
        run_dir: A finished run's folder.
        base: Its base model.
        prompt: The beginning of the text.
        tokens: At most so many tokens are added.
        temperature: 0 takes the likeliest token each time; larger is more varied.
        seed: Repeats a draw; None: another one each time.

    Returns:
        The text without the prompt.
    """
    import torch

    tokenizer = load_tokenizer(base)
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    if not encoded["input_ids"].shape[1]:
        raise ArgumentError("--prompt: is empty")
    model = _trained(run_dir, base, torch.float32).eval()
    room, read = positions(model), encoded["input_ids"].shape[1]
    if room is not None and read + tokens > room:
        raise ArgumentError(
            f"the model holds {room} tokens; the prompt has {read}, and --tokens asks for {tokens} more"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(secrets.randbits(63) if seed is None else seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.no_grad():
        out = model.to(device).generate(
            **{k: v.to(device) for k, v in encoded.items() if k in ("input_ids", "attention_mask")},
            max_new_tokens=tokens,
            pad_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return str(tokenizer.decode(out[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))


def positions(model: Any) -> int | None:
    """How many tokens a model can hold, prompt and continuation together; None: its configuration does not say."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 1 else None


def merge(run_dir: Path, base: Base, target: Path, card: str) -> None:
    """Writes the trained model whole, an adapter merged into its base: safetensors, tokenizer and model card.

    Whole or not at all; the sum is taken in float32 and kept in the dtype of the run's base.

    Args:
        run_dir: A finished run's folder.
        base: Its base model.
        target: The folder to make; there must be none.
        card: The text of its README.md.

    Raises:
        ArgumentError: `target` exists.
        MachineError: It can't be written.
    """
    import torch

    if target.exists():
        raise ArgumentError(f"{target} exists already; --to names another folder")
    dtype = json.loads((run_dir / "plan.json").read_text())["model"]["dtype"]
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir(parents=True)
        model = _trained(run_dir, base, torch.float32)
        model = model.merge_and_unload() if Folder(run_dir).adapter.exists() else model
        model.to(getattr(torch, dtype)).save_pretrained(partial)
        load_tokenizer(base).save_pretrained(partial)
        write_released(partial / "README.md", card)
        for path in partial.iterdir():
            path.chmod(0o644)
        os.rename(partial, target)
        sync_folder(target.parent)
    except OSError as error:
        raise MachineError(f"the merged model can't be written to {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _trained(run_dir: Path, base: Base, dtype: Any) -> Any:
    """What the run made: its own model, or its adapter on the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet()
    if Folder(run_dir).model.exists():
        return AutoModelForCausalLM.from_pretrained(Folder(run_dir).model, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype)
    return PeftModel.from_pretrained(model, Folder(run_dir).adapter)
