"""Weights and optimizer states that are never all there at once: one at a time, gathered from all ranks or read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.planning.footprint import FILE_BYTES
from harness.training.ranks import own_ranks


class Gathered(Mapping[str, Tensor]):
    """Tensors by name, each made whole when it is looked up, and kept by nobody.

    Looking one up may be collective: all ranks look up the same ones in the same order. What is found holds until the
    weights move.
    """

    def __init__(self, names: Sequence[str], gather: Callable[[str], Tensor]) -> None:
        """Takes the names, and what makes one whole."""
        self._names, self._gather = dict.fromkeys(names), gather

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._gather(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Stored(Mapping[str, Tensor]):
    """Tensors in safetensors files, each read when it is looked up."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads what is where.

        Raises:
            OSError: A file can't be read.
            SafetensorError: One is not whole.
        """
        self._places = {name: path for path in paths for name in _open(path).keys()}  # noqa: SIM118
        self._last: tuple[Path, Any] | None = None

    def __getitem__(self, name: str) -> Tensor:
        path = self._places[name]
        if self._last is None or self._last[0] != path:
            self._last = (path, _open(path))  # one at a time: a file stays mapped while it is open
        tensor: Tensor = self._last[1].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def _open(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(str(path), framework="pt")


def in_parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors a few at a time, by their sizes alone: at most `FILE_BYTES`, or one. At least one part, maybe empty.

    Collective, if looking them up is: every rank must go to the end.

    Returns:
        Each part, float32, on the CPU, until the next is asked for; on ranks but the first the parts are empty.
    """
    keeps = own_ranks().rank == 0
    part: dict[str, Tensor] = {}
    held = 0
    for name in tensors:
        tensor = tensors[name]
        size = 4 * tensor.numel()
        if held and held + size > FILE_BYTES:
            yield part
            part.clear()
            held = 0
        held += size
        if keeps:
            part[name] = tensor.detach().to("cpu", torch.float32, copy=True)
        del tensor
    yield part
