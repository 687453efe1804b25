"""The base model: found, loaded, given an adapter; and the adapter, saved.

`model.base` is a folder or a hub id. A hub id is looked up in the local hub cache, then among the models that
installed packages ship (so that the quickstart needs no hub), then on the hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ArgumentError, MachineError
from harness.files import locked, private_folder, release_folder, sync_folder
from harness.planning.shapes import PACKAGED
from harness.spec.compute_block import DeepspeedBlock
from harness.spec.models import ModelBlock
from harness.training.loading import load_base

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
_HASHED_WHOLE = 1 << 20
_FIRST_FACTOR = ".lora_A."


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        folder: Where `from_pretrained` finds it.
        origin: Where it came from, in words.
    """

    folder: Path
    origin: str

    @property
    def digest(self) -> str:
        """Identifies the weights and configuration: names, sizes and both ends of every file."""
        digest = hashlib.sha256()
        for path in sorted(p for p in self.folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin", ".model"}):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_HASHED_WHOLE))
                file.seek(max(0, size - _HASHED_WHOLE))
                digest.update(file.read())
        return digest.hexdigest()

    @property
    def tokenizer_digest(self) -> str:
        """Identifies the tokenizer."""
        digest = hashlib.sha256()
        for name in TOKENIZER_FILES:
            path = self.folder / name
            if path.exists():
                digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


def find_base(name: str, beside: Path, cache: Path) -> Base:
    """Finds a base model and, if need be, fetches or converts it.

    Args:
        name: A folder (relative to the current directory or to `beside`) or a hub id.
        beside: The spec's folder.
        cache: Where converted models are kept.

    Raises:
        ArgumentError: There is no such folder, or the name is no hub id.
        MachineError: The hub can't be reached.
    """
    for folder in (Path(name).expanduser(), beside / name):
        if (folder / "config.json").exists():
            return Base(folder.resolve(), "a local folder")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        form = "" if "/" in name else ", which is OWNER/NAME, as openai-community/gpt2"
        raise ArgumentError(f'model.base: "{name}" is neither a folder with a config.json nor a hub id{form}')
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when the library is imported
    from huggingface_hub import snapshot_download

    try:
        return Base(Path(snapshot_download(name, local_files_only=True)), "the local hub cache")
    except (OSError, ValueError):
        pass
    if name in PACKAGED and importlib.util.find_spec(PACKAGED[name][0]) is not None:
        package, file = PACKAGED[name]
        return Base(_from_package(package, file, cache), f"package {package} (4-bit weights, dequantised)")
    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
        return Base(Path(snapshot_download(name, allow_patterns=patterns)), "the hub")
    except Exception as error:
        hint = f" (package {PACKAGED[name][0]} ships a copy)" if name in PACKAGED else ""
        raise MachineError(f'model.base: the hub has no answer for "{name}" ({type(error).__name__}){hint}') from None


def _from_package(package: str, file: str, cache: Path) -> Path:
    """Converts the GGUF file that a package ships into a folder that loads in a moment; once."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    target = private_folder(cache) / "models" / file.removesuffix(".gguf")
    private_folder(target.parent)
    with locked(target.with_suffix(".lock")):
        if target.exists():
            return target
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        quiet()
        source = spec.submodule_search_locations[0]
        # The conversion has a progress bar of its own that no switch turns off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        # What stays of the quantisation would make `save_pretrained` try to quantise again.
        model.hf_quantizer = None
        del model.config.quantization_config
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            model.save_pretrained(partial)
            AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(partial)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(target.parent)
    return target


def quiet() -> None:
    """No progress bars and no advice from libraries: a tokenizer's length warning alone would leak."""
    import warnings

    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module="transformers|peft|deepspeed|torch")


def build_model(folder: Path, block: ModelBlock, seed: int, sharding: DeepspeedBlock | None = None) -> nn.Module:
    """The base model with a fresh adapter, the same on every rank; or, to train all of it, in float32.

    At ZeRO 3 it is collective, and the base is divided from the start.

    The base is frozen in its dtype and in evaluation mode, so nothing of it depends on the batch; adapters are
    float32.

    Raises:
        ArgumentError: The adapter doesn't fit the model.
    """
    import torch

    from harness.training.adapters import add_adapter, check_supported
    from harness.training.whole_model import prepare

    quiet()
    base = load_base(folder, block.dtype, sharding)
    check_supported(base, block)
    # The adapter's first factor is drawn at random, and must be the same on every rank and after a resume, at any
    # stage: what loading draws, which differs, comes before.
    torch.manual_seed(seed)
    if block.adapter.type == "full":
        return prepare(base)  # type: ignore[no-any-return]
    model = add_adapter(base, block.adapter)
    model.get_base_model().config.use_cache = False
    model.eval()
    if block.adapter.dropout:
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
    return model  # type: ignore[no-any-return]


def frozen_factors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights that stay as they were drawn, by name, whole, float32, on the CPU.

    Must be called before DeepSpeed partitions the parameters.
    """
    import torch

    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in model.named_parameters()
        if _FIRST_FACTOR in name and not parameter.requires_grad
    }


def save_adapter(model: Any, parameters: Mapping[str, Tensor], base: str, folder: Path) -> None:
    """Saves the adapter as PEFT does, whole or not at all, from full float32 weights: those that stay included."""
    from safetensors.torch import save_file

    from harness.training.adapters import adapter_state

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = adapter_state(model, parameters)
    save_file(
        {k: v.contiguous() for k, v in state.items()}, str(partial / "adapter_model.safetensors"), {"format": "pt"}
    )
    config = model.peft_config["default"]
    config.inference_mode = True
    config.base_model_name_or_path = base
    config.save_pretrained(str(partial))
    # Durable, since the checkpoints that could make it again go right after it.
    release_folder(partial, folder)
