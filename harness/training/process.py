"""A worker's process, before anything is imported into it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os


def release_memory() -> None:
    """Gives back what a training has left that is over, before the next one in the same process.

    An engine and its model hold each other in circles, and the C library keeps what threads had that are gone.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)


def prepare_process(threads: int, *, alone: bool = False) -> None:
    """Sets up a worker process before anything imports DeepSpeed or the hub's library; a second time changes nothing.

    Args:
        threads: Of a CPU worker.
        alone: Whether nobody else has made this worker's process group, of which it is the only member.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of a cluster that was there before
    # When DeepSpeed takes a model it imports an optimizer that is compiled, which takes a second; nothing here is.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads)
    if alone and not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed looks for them
    import deepspeed

    # Compiling DeepSpeed's shared-memory collectives takes a minute, and a kill in it hangs the next start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False)
