"""Groups of real worker processes (gloo, DeepSpeed) that stay up and run one check after the other.

Importing torch and DeepSpeed takes seconds: it is done once, and every process is forked from there.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

TIMEOUT = 240.0


class Workers:
    """`world` processes with torch.distributed up between them.

    A worker that fails, or ranks that wait for each other, end the group; the next call starts a fresh one.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, **kwargs: Any) -> list[Any]:
        """Runs a module-level function on every rank at once; returns what each rank returned.

        Raises:
            AssertionError: A rank raised, died, or was not done in time.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        results: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while len(results) < self.world:
            waiting = [p for i, p in enumerate(self._pipes) if i not in results]
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise AssertionError(f"ranks {sorted(set(range(self.world)) - set(results))} were not done in time")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    done, value = pipe.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    self.close()
                    raise AssertionError(f"rank {rank} died") from None
                if not done:
                    self.close()
                    raise AssertionError(f"rank {rank} of {self.world}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.world)]

    def _start(self) -> None:
        import multiprocessing

        # Forked from a server that has the libraries imported, and has run nothing.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.training.preload"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    @property
    def up(self) -> bool:
        """Whether all processes were started."""
        return len(self._processes) == self.world

    def kill(self, rank: int) -> None:
        """SIGKILL to a rank: the call that is under way fails, and the next one starts a fresh group."""
        self._processes[rank].kill()

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    import logging
    import warnings

    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
    )
    import torch
    import torch.distributed as dist

    from harness.training.process import prepare_process

    # As under Ray Train: it brings torch.distributed up, and then our worker prepares its process.
    dist.init_process_group("gloo", rank=rank, world_size=world)
    prepare_process(1)
    _shard_everything()
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        torch.manual_seed(1000 + rank)
        try:
            answer = (True, function(*args, **kwargs))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


def _shard_everything() -> None:
    """ZeRO 3 keeps parameters of fewer than 100,000 elements whole on every rank: all of a tiny model's."""
    from harness.training import engine

    real = engine.deepspeed_config

    def sharded(stage: int, offload: engine.Offload = "none") -> dict[str, Any]:
        config = real(stage, offload)
        if stage == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine.deepspeed_config = sharded
