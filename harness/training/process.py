"""A worker's process, before anything is imported into it."""

from __future__ import annotations

import os


def prepare_process(threads: int) -> None:
    """Sets up a worker process before anything imports DeepSpeed or the hub's library."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of a cluster that was there before
    # When DeepSpeed takes a model it imports an optimizer that is compiled, which takes a second; nothing here is.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads)
    import deepspeed

    # Compiling DeepSpeed's shared-memory collectives takes a minute, and a kill in it hangs the next start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False)
