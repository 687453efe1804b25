"""What the scripts here share: taking turns, medians, peak memory, and what a figure holds for.

Every figure is a ratio inside one run. The variants take turns (A B C A B C …), so that a machine that gets busy slows
all alike; a ratio is the median over the rounds of one round's ratio.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("uudp", "torch", "transformers", "peft", "deepspeed", "accelerate", "opacus", "numpy")


_stdout = 1


def prepare(threads: int | None = None, *, trains: bool = True) -> None:
    """To be called first: no network, no telemetry, so many threads (None: as it comes), and a stdout for us alone.

    Args:
        threads: Of torch.
        trains: Whether torch and what trains are needed at all.
    """
    global _stdout  # noqa: PLW0603
    if _stdout == 1:
        # Whatever libraries print goes to stderr.
        _stdout = os.dup(1)
        os.dup2(2, 1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if trains:
        _prepare_training(threads)


def _prepare_training(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # it would say on stdout that it finds no other
    import logging
    import warnings

    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    from harness.training.model import quiet

    quiet()


def in_turns(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round.

    Args:
        variants: What is measured, by name, in this order in every round.
        repeats: Rounds that count.
        warm_up: Rounds before, that do not.
        wait: Returns when everything that was asked for is done (a GPU works on after a call).
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(warm_up + repeats):
        for name, variant in variants.items():
            wait()
            begin = time.perf_counter()
            variant()
            wait()
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over the rounds of one round's ratio: what slowed a whole round is in both and cancels."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 4)


def median(values: Sequence[float], digits: int = 4) -> float:
    """Their median, rounded."""
    return round(statistics.median(values), digits)


@dataclass
class Peak:
    """Peak memory of a stretch.

    Attributes:
        before: Bytes in use when it began.
        peak: Most bytes in use inside.
    """

    before: int
    peak: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measures the peak of what is done inside: a GPU's allocated memory, or this process's resident memory."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        found = Peak(torch.cuda.memory_allocated())
        yield found
        torch.cuda.synchronize()
        found.peak = torch.cuda.max_memory_allocated()
        return
    # Sets the kernel's high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    found = Peak(resident("VmRSS"))
    yield found
    found.peak = resident("VmHWM")


def resident(line: str = "VmRSS") -> int:
    """This process's resident memory in bytes.

    Args:
        line: ``VmRSS``: now; ``VmHWM``: the most since it was last set back; ``RssAnon``: now, without mapped files;
            ``RssFile``: of mapped files.
    """
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(line + ":"):
            return int(text.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs this very script in a process of its own; returns the JSON document that it prints.

    A process that fails gives ``{"failed": reason}``.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        return {"failed": errors[-1] if errors else f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures hold for."""
    found: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }
    if "torch" in sys.modules:
        import torch

        found["threads"] = torch.get_num_threads()
        if device == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def reason(error: BaseException) -> dict[str, str]:
    """Why a variant could not be measured."""
    text = " ".join(str(error).split())
    return {"failed": f"{type(error).__name__}: {text[:300]}"}


def row(what: str, figure: float | None, to_reach: float, *, at_most: bool = False, unit: str = "") -> dict[str, Any]:
    """A line of the README's table; see `table.py`.

    Args:
        what: What was measured.
        figure: What was found; None: it could not be measured.
        to_reach: What it is to reach.
        at_most: Less is better.
        unit: Behind both numbers.
    """
    reached = figure is not None and (figure <= to_reach if at_most else figure >= to_reach)
    sign = "≤" if at_most else "≥"
    return {
        "what": what,
        "figure": "—" if figure is None else f"{figure:.3g}{unit}",
        "to_reach": f"{sign} {to_reach:.3g}{unit}",
        "reached": reached,
    }


def publish(document: Mapping[str, Any]) -> None:
    """Prints the document, the only thing on stdout."""
    sys.stdout.flush()
    os.write(_stdout, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
