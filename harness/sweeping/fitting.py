"""Whether every candidate of a sweep fits into this machine's memory: by arithmetic, before anything is spent.

Candidates differ in what they train, so the one that needs most is looked for. It is found and refused before the first
trial: a trial that were refused later would end by what the machine does at that moment, and not by its own draws.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cache import default_cache_dir
from harness.errors import UserError
from harness.planning.footprint import Setting, predict
from harness.planning.room import Room, choose_tokens, look_at_memory
from harness.planning.shapes import find_folder, read_shape
from harness.spec.conditions import Space, ordered, owner
from harness.spec.sweep_block import PriorBlock
from harness.sweeping.space import Candidate, base_values, draw

if TYPE_CHECKING:
    from harness.sweeping.costing import SweepPlan

DECIDING = ("model.adapter", "sampling.unit", "sampling.examples_per_user", "train.optimizer")
"""Keys that decide about memory, with all below them; no other one that can be searched does (`Setting.of`)."""
MOST_SETTINGS = 100
"""Beyond, they are not all looked at: key by key, the value that needs most."""


def neediest(sweep: SweepPlan, *, gpu: bool | None = None, folder: Path | None = None, smallest: bool = False) -> Room:
    """Memory for the candidate that needs most of it, as many times as trials are to run at a time.

    Args:
        sweep: The plan.
        gpu: As for `look_at_memory`; so are `folder` and `smallest`.
        folder: The base model's.
        smallest: Asks about the smallest micro-batch.

    Returns:
        Of the spec as it is written, where no candidate needs more, or it can't be predicted.
    """
    loaded = sweep.untuned.loaded
    room = look_at_memory(loaded, gpu=gpu, folder=folder, smallest=smallest)
    place = folder or find_folder(loaded.spec.model.base, loaded.base_dir, default_cache_dir())
    shape = None if place is None else read_shape(place)
    if room.footprint is None or shape is None:
        return room

    def needed(candidate: Candidate) -> int:
        try:
            spec = sweep.load(candidate).spec
        except UserError:
            return 0  # as a trial it will be a failed one
        tokens = choose_tokens(spec, shape, room.available, gpu=room.gpu)
        return predict(shape, Setting.of(spec, shape, tokens, gpu=room.gpu)).total

    most = max(_settings(sweep, needed), key=lambda found: found[0], default=None)
    if most is not None and most[0] > room.footprint.total:
        room = look_at_memory(sweep.load(most[1]), gpu=room.gpu, folder=folder, smallest=smallest)
        words = " ".join(most[1].overrides)
        fits = f"{room.advice}; or" if room.advice.startswith("What would fit") else "What would fit:"
        room = dataclasses.replace(room, who=f"the candidate {words} ", advice=f"{fits} leave it out of sweep.space")
    return _side_by_side(room, sweep.block.concurrent)


def _side_by_side(room: Room, asked: object) -> Room:
    """The same for as many trials at a time as the spec asks for, all in one machine's memory."""
    most = at_a_time(room)
    if room.gpu or not isinstance(asked, int) or most is None or room.fits is False:
        return room
    if asked <= most:
        return room
    who = f"{asked} trials at a time: {room.who}"
    advice = f"What would fit: sweep.concurrent: {most}"
    return dataclasses.replace(room, workers=room.workers * asked, advice=advice, who=who)


def at_a_time(room: Room | None) -> int | None:
    """How many trials a machine's memory holds at a time; None: unknown, or each has a GPU of its own."""
    if room is None or room.gpu or room.footprint is None or room.available is None:
        return None
    one = room.workers * room.footprint.total
    rest = room.available - (room.needed or 0) + one
    return max(1, rest // one)


# --- which candidate ----------------------------------------------------------------------------------------------


def _settings(sweep: SweepPlan, needed: Any) -> Iterator[tuple[int, Candidate]]:
    """(bytes, candidate) of what may need most."""
    space = _bounded(sweep.block.space)
    if not space:
        return
    base, keys = base_values(sweep.untuned.loaded.resolved), ordered(space)
    count = math.prod(len(space[key].values or ()) for key in keys)
    if count <= MOST_SETTINGS:
        seen = set()
        for chosen in itertools.product(*(range(len(space[key].values or ())) for key in keys)):
            candidate = _at(space, dict(zip(keys, chosen, strict=True)), base)
            if str(candidate) not in seen:
                seen.add(str(candidate))
                yield needed(candidate), candidate
        return
    best = {key: len(space[key].values or ()) - 1 for key in keys}
    for key in keys:
        tried = {n: _at(space, best | {key: n}, base) for n in range(len(space[key].values or ()))}
        sizes = {n: needed(candidate) for n, candidate in tried.items()}
        best[key] = max(sizes, key=lambda n: sizes[n])
        yield sizes[best[key]], tried[best[key]]


def _bounded(space: Space) -> dict[str, PriorBlock]:
    """The part of a space that decides about memory, and what its conditions name; of ranges, their two ends."""
    kept = [key for key in space if any(_related(key, one) for one in DECIDING)]
    for key in kept:  # grows on the way
        for name in space[key].conditions:
            above = owner(name, space)
            if above is not None and above not in kept:
                kept.append(above)
    found = {}
    for key in (key for key in space if key in kept):
        prior = space[key]
        found[key] = prior if prior.ends is None else PriorBlock(choice=tuple(prior.ends), when=prior.when)
    return found


def _related(key: str, deciding: str) -> bool:
    return f"{key}.".startswith(f"{deciding}.") or f"{deciding}.".startswith(f"{key}.")


def _at(space: Space, chosen: Mapping[str, int], base: Mapping[str, Any]) -> Candidate:
    """The candidate with the so-manyth value of each key."""

    def quantile(key: str) -> float:
        values: Sequence[Any] = space[key].values or ()
        return (chosen[key] + 0.5) / len(values)

    return draw(space, quantile, base)
