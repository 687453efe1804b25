"""Whether a run fits into memory: what is free, what is needed, and, where it does not fit, what would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cache import default_cache_dir
from harness.planning.footprint import RAY, Footprint, Setting, predict
from harness.planning.shapes import Shape, find_folder, read_shape
from harness.spec import LoadedSpec, Spec

GIB = 2**30
CLOSE = 0.8
"""Predictions are that good: what needs more than this share of what is free may not fit."""

CPU_TOKENS = 1024
"""Tokens of a micro-batch on a CPU, if nothing else is said: more per call gains nothing there, and needs memory."""

MOST_TOKENS = 32_768
"""Nothing is gained beyond, on the largest GPU."""


@dataclass(frozen=True)
class Room:
    """Memory that a run needs, and that there is. Public.

    Attributes:
        gpu: Whether a GPU computes.
        workers: Of the spec.
        tokens: Of a micro-batch: the spec's, or what was chosen.
        footprint: What a worker needs; None: unknown.
        available: Bytes free for all workers (of one GPU, where each worker has its own); None: unknown.
        reason: Why something is unknown.
        advice: What would fit, where it does not.
        who: Of a sweep, which candidate this is about; empty: the spec as it is written.
    """

    gpu: bool
    workers: int
    tokens: int
    footprint: Footprint | None = None
    available: int | None = None
    reason: str | None = None
    advice: str = ""
    who: str = ""

    @property
    def needed(self) -> int | None:
        """Bytes, to be compared with `available`."""
        if self.footprint is None:
            return None
        return self.footprint.total if self.gpu else self.workers * self.footprint.total + RAY

    @property
    def fits(self) -> bool | None:
        """Whether it does; None: unknown."""
        return None if self.needed is None or self.available is None else self.needed <= self.available

    @property
    def words(self) -> str:
        """In a line."""
        if self.footprint is None:
            return str(self.reason)
        where = "workers with a GPU each" if self.gpu else "workers here"
        count = f"{self.workers} {where if self.workers > 1 else where.replace('workers', 'worker')}"
        free = self.reason if self.available is None else f"{gib(self.available)} free"
        return f"{self.who}needs about {gib(self.footprint.total)} per worker, {count}; {free}"

    @property
    def refusal(self) -> str | None:
        """Why this machine can't run it, and what would fit; None: it can, or nobody knows."""
        if self.fits is not False:
            return None
        with_ray = "" if self.gpu else f" and Ray {gib(RAY)}"
        return f"memory: {self.words} ({self.tokens} tokens per micro-batch{with_ray}). {self.advice}"

    def notes(self) -> list[str]:
        """What a reader should know."""
        if self.refusal is not None:
            return [f"THIS MACHINE REFUSES: {self.refusal}"]
        if self.needed is not None and self.available is not None and self.needed > CLOSE * self.available:
            return ["Memory is close: predictions may be wrong by a fifth."]
        return []

    def document(self) -> dict[str, Any]:
        """Plain data for ``plan.json``."""
        known = self.footprint
        return {
            "device": "cuda" if self.gpu else "cpu",
            "workers": self.workers,
            "microbatch_tokens": self.tokens,
            "predicted": None if known is None else {**known.parts, "total": known.total},
            "host": None if known is None or not self.gpu else dict(known.host),
            "available": self.available,
            "fits": self.fits,
            "words": self.words,
        }


def look_at_memory(
    loaded: LoadedSpec, *, gpu: bool | None = None, folder: Path | None = None, smallest: bool = False
) -> Room:
    """Predicts what a run needs, and compares it with what is free here; loads nothing and asks no network.

    Args:
        loaded: The spec.
        gpu: Whether a GPU computes; None: by the spec and by what the driver's own tool says.
        folder: The base model's; None: looked for on this machine.
        smallest: Asks about the smallest micro-batch, of one example of full length.
    """
    spec = loaded.spec
    free_gpu = _free_on_gpu() if gpu is not False and spec.compute.accelerator != "cpu" else None
    if gpu is None:
        gpu = spec.compute.accelerator == "cuda" or (spec.compute.accelerator == "auto" and free_gpu is not None)
    available, reason = (free_gpu, "no GPU here tells how much is free") if gpu else (free_here(), "free: unknown")
    if os.environ.get("RAY_ADDRESS", "local") not in {"", "local"}:
        available, reason = None, "what is free on the cluster is unknown"
    place = folder or find_folder(spec.model.base, loaded.base_dir, default_cache_dir())
    shape = None if place is None else read_shape(place)
    workers, asked = spec.compute.fewest_workers, spec.compute.microbatch_tokens
    if shape is None:
        missing = "the base is not on this machine yet" if place is None else "the base's config.json says too little"
        fallback = asked if isinstance(asked, int) else max(CPU_TOKENS, spec.data.max_tokens)
        return Room(gpu, workers, fallback, None, available, f"can't be predicted: {missing}")
    tokens = choose_tokens(spec, shape, available, gpu=gpu)
    if smallest:
        tokens = min(tokens, spec.data.max_tokens)
    setting = Setting.of(spec, shape, tokens, gpu=gpu)
    room = Room(gpu, workers, tokens, predict(shape, setting), available, None if available is not None else reason)
    return replace(room, advice=advice(shape, setting, available)) if room.fits is False and available else room


def choose_tokens(spec: Spec, shape: Shape, available: int | None, *, gpu: bool) -> int:
    """Tokens of a micro-batch: what the spec says, or for ``auto``, the best number that is predicted to fit.

    On a CPU that is `CPU_TOKENS` where it fits, on a GPU a power of two up to `MOST_TOKENS`; never less than one
    example of full length.
    """
    asked = spec.compute.microbatch_tokens
    if isinstance(asked, int):
        return asked
    longest = spec.data.max_tokens
    tokens = max(longest, MOST_TOKENS if gpu and available is not None else CPU_TOKENS)
    if available is None:
        return tokens
    while tokens > longest:
        if _needed(shape, Setting.of(spec, shape, tokens, gpu=gpu)) <= CLOSE * available:
            return tokens
        tokens = max(longest, tokens // 2)
    return tokens


def _needed(shape: Shape, setting: Setting) -> int:
    total = predict(shape, setting).total
    return total if setting.gpu else setting.workers * total + RAY


def advice(shape: Shape, setting: Setting, available: int) -> str:
    """What would fit into so many bytes: one change of the spec, or several together."""
    found, together = [], setting
    for words, change in _changes(shape, setting, available):
        if _needed(shape, change(setting)) <= available:
            found.append(words)
    if found:
        return "What would fit: " + "; or ".join(found)
    words_of_all = []
    for words, change in _changes(shape, setting, available):
        if _needed(shape, change(together)) < _needed(shape, together):
            together = change(together)
            words_of_all.append(words)
        if _needed(shape, together) <= available:
            return "What would fit: " + ", with ".join(words_of_all)
    return "Nothing that the spec can say would fit: a smaller model, or a larger machine"


def _changes(shape: Shape, setting: Setting, available: int) -> Iterator[tuple[str, Any]]:
    if setting.tokens > setting.longest:
        tokens = setting.longest
        while 2 * tokens < setting.tokens and _needed(shape, replace(setting, tokens=2 * tokens)) <= available:
            tokens *= 2
        yield f"compute.microbatch_tokens: {tokens}", lambda s: replace(s, tokens=tokens)
    if not setting.checkpointing:
        yield "compute.gradient_checkpointing: true", lambda s: replace(s, checkpointing=True)
    if not setting.gpu and setting.workers > 1:
        yield "compute.workers: 1", lambda s: replace(s, workers=1)
    if setting.gpu and setting.workers > 1 and setting.stage != 3:
        yield "compute.deepspeed.stage: 3", lambda s: replace(s, stage=3)
    if setting.gpu and setting.stage == 3 and setting.offload != "parameters":
        yield "compute.deepspeed.offload: parameters", lambda s: replace(s, offload="parameters")


# --- what is free -------------------------------------------------------------------------------------------


def free_here() -> int | None:
    """Bytes that this machine can still give: what the system says, or what the container's limit leaves of it."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            # Pages of files count as used, but are given back.
            stat = dict(line.split() for line in Path(used).with_name("memory.stat").read_text().splitlines())
            idle = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            found.append(int(Path(limit).read_text()) - max(0, int(Path(used).read_text()) - idle))
    return max(0, min(found)) if found else None


def _free_on_gpu() -> int | None:
    """Bytes free on the GPU with the least, as the driver's own tool says; None: there is none, or it does not say."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def gib(size: int) -> str:
    """Bytes, to be read."""
    gib = size / GIB
    return f"{gib:.1f} GiB" if gib < 9.95 else f"{gib:.0f} GiB"
