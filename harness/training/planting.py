"""Canaries whose gradient is a direction of their own: put into the sum like anybody's, and looked for in its release.

Coordinate j belongs to the canary j mod m, with a secret sign: directions don't touch each other, and a release is
projected on all of them at the cost of reading it once. Only the sum as it is released is looked at, so that what is
seen costs no privacy beyond what was accounted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.canaries import Planted
from harness.data.cohorts import Unit
from harness.errors import ArgumentError
from harness.files import append_private
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import Randomness
from harness.training.adapting import bits_of
from harness.training.gradients import UnitGradients
from harness.training.job import Folder

LOUD = 10.0
"""Norm of a canary's gradient over its clip norm: were it not clipped, it would be seen."""


class Directions:
    """The directions of a run's gradient canaries."""

    def __init__(self, planted: Planted, size: int, randomness: Randomness, device: torch.device) -> None:
        """Draws the signs.

        Args:
            planted: The run's canaries.
            size: Trained coordinates.
            randomness: The run's draws.
            device: Where gradients are summed.

        Raises:
            ArgumentError: There are more canaries than coordinates.
        """
        self._planted = planted
        self.numbers = [i for i, canary in enumerate(planted.canaries) if canary.kind == "gradient"]
        self._place = {number: place for place, number in enumerate(self.numbers)}
        self.count = len(self.numbers)
        if self.count > size:
            raise ArgumentError(f"audit.one_run.canaries: {self.count} directions, but {size} trained coordinates")
        words = randomness.words("canaries", 0, "directions", 0, -(-size // 64))
        bits = np.unpackbits(words.view(np.uint8))[:size]
        self._signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1).to(device)
        # How many coordinates each has.
        self._widths = np.array([len(range(place, size, self.count)) for place in range(self.count)], dtype=np.float64)

    def add(self, units: Sequence[Unit], sink: UnitGradients, clip_norms: Tensor) -> float:
        """Puts the drawn canaries' gradients into the sum, clipped where everybody's are.

        Args:
            units: Of gradient canaries alone.
            sink: What sums up.
            clip_norms: C_{p,t} of every group, float64, shape [groups].

        Returns:
            Sum of their bits ``1[norm ≤ C] − ½``, where the clip norms follow such bits.
        """
        bits = 0.0
        for unit in units:
            number = self._planted.number(unit.user)
            assert number is not None
            place, limit = self._place[number], float(clip_norms[unit.group])
            where = slice(place, None, self.count)
            gradient = self._signs[where] * (LOUD * limit / float(np.sqrt(self._widths[place])))
            own = torch.tensor([limit], dtype=torch.float64, device=gradient.device)
            bits += float(bits_of(sink.add(gradient.unsqueeze(0), own, where), own))
        return bits

    def seen(self, noisy_sum: Tensor) -> NDArray[np.float64]:
        """A release's length along each direction, float64, shape [canaries]."""
        size = len(noisy_sum)
        padded = torch.zeros(-(-size // self.count) * self.count, dtype=torch.float64, device=noisy_sum.device)
        padded[:size] = noisy_sum.double() * self._signs.double()
        sums: NDArray[np.float64] = padded.view(-1, self.count).sum(dim=0).cpu().numpy()
        return np.asarray(sums / np.sqrt(self._widths), dtype=np.float64)


class Witness:
    """Notes what each release shows of the canaries, in units of their clip norm. One rank does."""

    def __init__(self, directions: Directions, planted: Planted, mechanism: Mechanism, folder: Folder) -> None:
        """Takes what was planted."""
        self.directions, self._mechanism, self._folder = directions, mechanism, folder
        self._groups = [planted.canaries[number].group for number in directions.numbers]

    def note(self, released: Tensor, step: int, factor: float) -> None:
        """Writes what a step showed; of a step that is repeated after a crash, the very same.

        Args:
            released: The private mean gradient, shape [coordinates].
            step: Its number.
            factor: c_t of an adaptive clip.
        """
        clip_norms = np.array(self._mechanism.clip_norms_at(step, factor))[self._groups]
        seen = self.directions.seen(released) * self._mechanism.denominator(step) / clip_norms
        row = {"step": step, "seen": [round(value, 6) for value in seen.tolist()]}
        with suppress(OSError):  # of a full disk, of which the next checkpoint tells; the audit says that it saw less
            # Whatever half a line a kill has left ends first, or it would take this one with it.
            append_private(self._folder.observed, ("\n" + json.dumps(row) + "\n").encode())


def observed(folder: Folder) -> dict[int, NDArray[np.float64]]:
    """What was noted, by step, shape [canaries] each; half a line, which a kill leaves, is none.

    Of a step that was repeated, the last one counts: that is what the weights were made of.
    """
    found: dict[int, NDArray[np.float64]] = {}
    with suppress(FileNotFoundError), folder.observed.open() as file:
        for line in file:  # the file may be larger than memory; numbers are smaller than their texts
            # A line that was cut off is no JSON, or has no end.
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line) if line.endswith("\n") else {}
                found[int(row["step"])] = np.array(row["seen"], dtype=np.float64)
    return found
