"""Trains a run with little memory, as ``python -m tests.training.starved RUN_DIR MIB [try]``: what a test starts."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def main() -> int:
    """0: it was trained, or (with ``try``) the size that fits was printed; 3: a micro-batch was too large."""
    run_dir, mib = Path(sys.argv[1]), int(sys.argv[2])
    import torch.distributed as dist

    from harness.training.process import prepare_process

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    prepare_process(1)
    from harness.training import loop
    from harness.training.job import Folder, Job
    from harness.training.memory import MicroBatchTooLarge, try_out

    job, folder = Job.load(run_dir), Folder(run_dir)
    series = loop.Series(loop.PRIVATE, job, folder, loop.Inputs.load(job, folder), job.mechanism, lambda row: None)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + mib * 2**20, resource.RLIM_INFINITY))
    if sys.argv[3:] == ["try"]:
        print(
            try_out(
                series.engine,
                series.update.sink,  # type: ignore[attr-defined]
                8192,
                job.spec.data.max_tokens,
            )
        )
        return 0
    try:
        assert series.run()
    except MicroBatchTooLarge:
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
