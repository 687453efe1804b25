"""What this machine can run, for ``uudp doctor``: looks, and changes nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "ray")
HUB_SECONDS = 4.0
_LITTLE_MEMORY, _LITTLE_DISK = 6, 5
INSTALL = 'pip install "uudp[train]"'


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        what: Its name.
        state: ``ok``; ``note``: training works without it, or may be slow; ``missing``: training does not work.
        found: What there is, in words.
        advice: What to do about it; "" if nothing.
    """

    what: str
    state: Literal["ok", "note", "missing"]
    found: str
    advice: str = ""


def examine(cache: Path) -> list[Check]:
    """Everything that decides whether and how a model can be trained here.

    Args:
        cache: Where converted models and corpora are kept.
    """
    return [_python(), _cores(), _memory(), _disk(cache), _cache(cache), *_packages(), _device(), _compiler(), _hub()]


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info < (3, 11) or not sys.platform.startswith("linux"):
        return Check("python", "missing", f"{version} on {sys.platform}", "use Python 3.11 or later, on Linux")
    return Check("python", "ok", f"{version} on {platform.machine()}")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", "ok", f"{cores}")


def _memory() -> Check:
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    limit = _limit_of_container()
    size = min(size, limit) if limit else size
    if size < _LITTLE_MEMORY:
        return Check("memory", "note", f"{size:.1f} GiB", "enough for small models with one worker")
    return Check("memory", "ok", f"{size:.1f} GiB")


def _limit_of_container() -> float | None:
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(name).read_text()) / 2**30
        except (OSError, ValueError):
            continue
    return None


def _disk(cache: Path) -> Check:
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    if free < _LITTLE_DISK:
        return Check("disk", "note", f"{free:.1f} GiB free at {there}", "UUDP_CACHE can name a larger one")
    return Check("disk", "ok", f"{free:.1f} GiB free at {there}")


def _cache(cache: Path) -> Check:
    there = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(there, os.W_OK):
        return Check("cache", "missing", f"{there} can't be written", "UUDP_CACHE can name another folder")
    return Check("cache", "ok", str(cache))


def _packages() -> Iterator[Check]:
    for name in PACKAGES:
        try:
            yield Check(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "missing", "not installed", INSTALL)


def _device() -> Check:
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return Check("device", "missing", "unknown without torch", INSTALL)
    except Exception as error:
        return Check("device", "missing", f"torch does not load ({type(error).__name__})", "install torch again")
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return Check("device", "note", "no GPU: trains on the CPU", "small models only; model.dtype: float32")
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        found = f"{count} × {torch.cuda.get_device_name(0)}, {size:.0f} GiB, {half}"
    except Exception as error:
        return Check("device", "note", f"the GPU does not answer ({type(error).__name__})", "trains on the CPU")
    if half != "bfloat16":
        return Check("device", "note", found, "model.dtype: float32")
    return Check("device", "ok", found)


def _compiler() -> Check:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        return Check("compiler", "note", "none found", "installing packages from source needs one (g++)")
    return Check("compiler", "ok", found)


def _hub() -> Check:
    """Whether model ids can be fetched; one anonymous question, with a short patience."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        constants = importlib.import_module("huggingface_hub.constants")
    except Exception:
        return Check("hub", "note", "not asked: huggingface_hub is not installed", INSTALL)
    if constants.HF_HUB_OFFLINE:
        return Check("hub", "note", "not asked: HF_HUB_OFFLINE is set", "local folders and cached models work")
    if _within(HUB_SECONDS, lambda: _answers(str(constants.ENDPOINT))):
        return Check("hub", "ok", f"{constants.ENDPOINT} answers")
    return Check("hub", "note", "offline: no answer", "local folders, cached and packaged models work")


def _answers(url: str) -> bool:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def _within(seconds: float, ask: Callable[[], bool]) -> bool:
    """The answer, or False if it takes longer: looking a name up has no time limit of its own."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])
