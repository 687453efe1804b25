"""Standard normal noise as tensors, any slice of it alone, fast enough for all parameters of a model.

On a CPU: Box–Muller in float64 over AES words, a pure function of (key, purpose, step, name, coordinate); the values
are those of `Randomness.normals` to rounding. The tails reach 8.5 standard deviations (53 bits).

On a GPU: its own generator, in blocks of `BLOCK` coordinates, each keyed by the cryptographic generator from (purpose,
step, name, block), so that a shard draws only the blocks that it touches, and every rank with the same kind of GPU
draws the same. Philox is no cryptographic generator: with it, privacy rests on nobody inverting it from noisy sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from harness.privacy.randomness import Randomness

BLOCK = 1 << 20
"""Coordinates under one key of a device's generator. Part of the draws' definition: another size, other noise."""
_CHUNK = 1 << 18
"""Coordinates that are drawn at once on a CPU: what fits into its caches. Changes no value."""
_LANES = 16
"""Draws on a CPU begin and end at multiples of it, so that a coordinate is always in the same place of a vector."""


def normals(
    randomness: Randomness, purpose: str, step: int, name: str, start: int, count: int, device: torch.device
) -> Tensor:
    """Standard normal draws number `start` to `start + count` at this address.

    Args:
        randomness: The run's draws.
        purpose: Part of the address.
        step: 0 ≤ step; part of the address.
        name: Part of the address.
        start: 0 ≤ start.
        count: How many.
        device: Where they are drawn, and returned. CPUs and GPUs draw differently (see above).

    Returns:
        float64, shape [count]. As secret as the key while the run lasts.
    """
    if device.type != "cpu":
        return device_normals(randomness, purpose, step, name, start, count, device)
    drawn = torch.empty(count, dtype=torch.float64)
    for number, inside, place in _pieces(start, count, _CHUNK):
        piece = _from_words(randomness, purpose, step, name, number * _CHUNK, inside)
        drawn[place : place + len(piece)] = piece
    return drawn


def device_normals(
    randomness: Randomness, purpose: str, step: int, name: str, start: int, count: int, device: torch.device
) -> Tensor:
    """The same by the device's own generator, whatever the device is; see `normals`."""
    drawn = torch.empty(count, dtype=torch.float64, device=device)
    for number, inside, place in _pieces(start, count, BLOCK):
        # A purpose of its own: these words are seeds, and never used as draws themselves.
        seed, offset = (int(w) for w in randomness.words(f"{purpose}/device", step, name, 2 * number, 2))
        generator = torch.Generator(device).manual_seed(seed & ((1 << 63) - 1))
        if device.type == "cuda":
            # A secret place in the stream besides the secret key: 61 bits more. It has to be a multiple of 4.
            generator.set_offset(offset >> 3 << 2)
        # The whole block, because a device's draws depend on how many are asked for.
        block = torch.randn(BLOCK, dtype=torch.float64, device=device, generator=generator)
        drawn[place : place + inside.stop - inside.start] = block[inside]
    return drawn


def _pieces(start: int, count: int, size: int) -> Iterator[tuple[int, slice, int]]:
    """The fixed blocks that a slice touches: number, what of the block is wanted, and where that goes."""
    place = start
    while place < start + count:
        number, first = divmod(place, size)
        last = min(size, first + start + count - place)
        yield number, slice(first, last), place - start
        place += last - first


def _from_words(randomness: Randomness, purpose: str, step: int, name: str, base: int, inside: slice) -> Tensor:
    first = inside.start // _LANES * _LANES
    last = -(-inside.stop // _LANES) * _LANES
    words = randomness.words(purpose, step, name, base + first, last - first)
    # The upper 53 bits, as `Randomness.uniforms` takes them.
    bits = torch.from_numpy(words.view(np.int64) >> 11).bitwise_and_((1 << 53) - 1)
    pairs = bits.view(-1, 2).t().contiguous().double().add_(1.0).mul_(2.0**-53)
    radius = pairs[0].log_().mul_(-2.0).sqrt_()
    angle = pairs[1].mul_(2.0 * math.pi)
    drawn = torch.stack([torch.cos(angle), angle.sin_()], dim=1).mul_(radius.unsqueeze(1)).view(-1)
    return drawn[inside.start - first :][: inside.stop - inside.start]
