"""With what a result was made: the version of the code, and what computed. No host, no path, no user."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from harness import __version__


def code() -> dict[str, str | None]:
    """``version`` of uudp, and ``commit``: what git says of a checkout; None: it is none."""
    root = Path(__file__).resolve().parents[2]
    commit = None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            commit = said if re.fullmatch(r"[A-Za-z0-9._/+-]{1,100}", said) else None
    return {"version": __version__, "commit": commit}


def machine(device: str) -> dict[str, Any]:
    """``cores``, and the name of what computes: the GPU's, or the CPU's model."""
    return {"cores": os.cpu_count() or 1, "device": _gpu() if device == "cuda" else _cpu()}


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def _cpu() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return " ".join(found[1].split())[:100]
    return os.uname().machine
