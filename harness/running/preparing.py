"""Who prepares the data of a run: this process, or Ray's workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.data.preparing import Run, Sharding
from harness.data.sources.base import RecordSource
from harness.data.sources.files import FileSource
from harness.spec.compute_block import PrepareBlock

LARGE_BYTES = 1 << 30
"""Files of that size are worth starting Ray for."""


def sharding_of(block: PrepareBlock, source: RecordSource) -> Sharding | None:
    """How the data are prepared in parts and shards; None: by this process alone.

    Args:
        block: The spec's ``compute.prepare``.
        source: Of the data.
    """
    engine = block.engine
    if engine == "auto":
        engine = "ray" if _bytes_of(source) >= LARGE_BYTES else "single"
    if engine == "single":
        return None
    return Sharding(None if block.blocks == "auto" else block.blocks, ray_workers)


def _bytes_of(source: RecordSource) -> int:
    if not isinstance(source, FileSource):
        return 0
    return sum(path.stat().st_size for path in source.files if path.exists())


@contextlib.contextmanager
def ray_workers() -> Iterator[Run]:
    """Ray, started here or joined, for as long as data are prepared."""
    import ray

    from harness.data.preparing_ray import run
    from harness.training.ray_session import silent, start_ray

    started = start_ray()
    try:
        with silent(started):
            yield run
    finally:
        if started:
            ray.shutdown()
