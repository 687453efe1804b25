"""What `uudp plan --on` knows of devices: figures from their makers' data sheets, and of CPUs what was measured here.

No prices: they differ by place and week, and are for the user to give.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from harness.errors import ArgumentError

MOST = 512
"""Devices; nobody has looked at what comes beyond."""

GB = 10**9


@dataclass(frozen=True)
class Device:
    """One device, which one worker has to itself.

    Attributes:
        name: As users write it.
        bfloat16: Peak of its matrix units without sparsity, FLOP/s; 0: it is measured, not computed from a peak.
        float32: The same in float32 (without TF32, which training switches off).
        memory: Bytes; None: unknown.
        link: Bytes per second to the other devices of its node, one way; 0: measured.
        network: Bytes per second to other nodes, one way, of the servers that these devices are sold in.
        per_node: Devices of such a server.
    """

    name: str
    bfloat16: float = 0.0
    float32: float = 0.0
    memory: int | None = None
    link: float = 0.0
    network: float = 0.0
    per_node: int = 8

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.bfloat16 > 0


DEVICES: dict[str, Device] = {
    one.name: one
    for one in (
        Device("cpu", per_node=MOST),
        Device("B200", 2250e12, 75e12, 180 * GB, 900e9, 50e9),
        Device("H200", 989e12, 67e12, 141 * GB, 450e9, 50e9),
        Device("H100", 989e12, 67e12, 80 * GB, 450e9, 50e9),
        Device("A100", 312e12, 19.5e12, 80 * GB, 300e9, 25e9),
        Device("A100-40GB", 312e12, 19.5e12, 40 * GB, 300e9, 25e9),
        Device("L40S", 362e12, 91.6e12, 48 * GB, 32e9, 12.5e9),
        Device("A10", 125e12, 31.2e12, 24 * GB, 32e9, 12.5e9, 4),
        Device("L4", 121e12, 30.3e12, 24 * GB, 32e9, 12.5e9),
    )
}
"""By name. `cpu` is one core of the machine that the constants of `simulating` were measured on."""


@dataclass(frozen=True)
class Target:
    """So many devices of a kind, with a worker each."""

    count: int
    device: Device

    @property
    def name(self) -> str:
        """As it is written: ``64xH100``."""
        return f"{self.count}x{self.device.name}"


def parse_target(text: str) -> Target:
    """What ``--on`` names.

    Args:
        text: ``COUNTxDEVICE``; upper and lower case are the same.

    Raises:
        ArgumentError: It names nothing that is known.
    """
    shown = text if len(text) <= 40 else text[:39] + "…"
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×*]\s*(\S+)\s*", text)
    names = {name.lower(): name for name in DEVICES}
    if match is None:
        alone = names.get(text.strip().lower())
        tail = f'; did you mean "1x{alone}"?' if alone else f" (there are: {', '.join(DEVICES)})"
        raise ArgumentError(f"--on {shown}: must be COUNTxDEVICE, as 64xH100{tail}")
    count, wanted = int(match[1]), match[2].lower()
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, 1, 0.5)
        tail = f'; did you mean "{count}x{names[near[0]]}"?' if near else f" (there are: {', '.join(DEVICES)})"
        raise ArgumentError(f"--on {shown}: no such device{tail}")
    if not 1 <= count <= MOST:
        raise ArgumentError(f"--on {shown}: 1 to {MOST} devices")
    return Target(count, DEVICES[names[wanted]])
