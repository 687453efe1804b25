"""Which of how many workers this is, and what they have to agree on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from harness.errors import MachineError
from harness.files import hold, unwritable

WORKERS_GONE_SECONDS = 30.0
"""So long the workers of a resumed run wait for those of the interrupted one to end."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many workers this is."""

    rank: int
    world: int


def own_ranks() -> Ranks:
    """This worker's place."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks(0, 1)


def any_rank(happened: bool, device: torch.device) -> bool:
    """Whether something happened on any rank; collective."""
    flag = torch.tensor([float(happened)], device=device)
    if own_ranks().world > 1:
        dist.all_reduce(flag)
    return bool(flag.item())


def tell(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What rank 0 has of a tensor whose shape all know, on the CPU; collective.

    Args:
        values: What this rank has.
        device: Of the collective.
    """
    if own_ranks().world == 1:
        return values.cpu()
    told = values.to(device)
    dist.broadcast(told, src=0)
    return told.cpu()


class First:
    """Rank 0 writes, a piece at a time; where it can't, all ranks give up together, and none waits for another.

    After a failure nothing more is written, but all go on to the end, where they `agree`: what is written may be
    gathered from all of them on the way.
    """

    def __init__(self, place: Path) -> None:
        """Takes what is written, for the message."""
        self._place = place
        self._problem: MachineError | None = None

    def do(self, write: Callable[[], None]) -> None:
        """One piece of the work, of rank 0 alone."""
        from safetensors import SafetensorError

        if own_ranks().rank != 0 or self._problem is not None:
            return
        try:
            write()
        except MachineError as error:
            self._problem = error
        except (OSError, SafetensorError) as error:
            self._problem = unwritable(error, self._place)

    def agree(self, device: torch.device) -> None:
        """Whether all was written; collective.

        Args:
            device: Of the collective.

        Raises:
            MachineError: The disk is full or not writable.
        """
        if any_rank(self._problem is not None, device):
            raise self._problem or MachineError("the first worker could not write")


def write_first(write: Callable[[], None], folder: Path, device: torch.device) -> None:
    """Rank 0 writes; where it can't, all ranks give up together, and none waits for another. Collective.

    Args:
        write: What rank 0 does.
        folder: Where, for the message.
        device: Of the collective.

    Raises:
        MachineError: The disk is full or not writable.
    """
    first = First(folder)
    first.do(write)
    first.agree(device)


@contextlib.contextmanager
def alone(lease: Path) -> Iterator[None]:
    """Nobody else trains this run meanwhile: workers can outlive their driver on a cluster. Collective.

    Raises:
        MachineError: Workers of an earlier try are still at work.
    """
    problem = ""
    with contextlib.ExitStack() as stack:
        if own_ranks().rank == 0:
            try:
                if not stack.enter_context(hold(lease, seconds=WORKERS_GONE_SECONDS)):
                    problem = "workers of an earlier try of this run are still at work; wait until they have ended"
            except MachineError as error:
                problem = str(error)
        if any_rank(bool(problem), _collective_device()):
            raise MachineError(problem or "the first worker could not begin")
        yield


def _collective_device() -> torch.device:
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda") if nccl else torch.device("cpu")
