"""Ray itself: starting it here or joining a cluster, seeing that it is lost, and ending it.

Together with `ray`, which trains on it, the only file of training that knows Ray.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from harness.errors import MachineError
from harness.plugins import suggest
from harness.spec.compute_block import ComputeBlock

POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""Between two looks whether a machine of the cluster is lost."""
LOST_SECONDS = 30.0
"""So long Ray may take to see that its own processes have died."""
SMALLEST_SHARE = 0.1
"""Of a core, per worker."""
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of a core, per worker, where the number of workers varies."""


GPU_TYPE = "accelerator_type:"
"""Begins the name of Ray's resource of a machine with GPUs of a kind."""


def start_ray() -> bool:
    """Starts Ray on this machine, or joins the cluster that ``RAY_ADDRESS`` names; False if it was running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train looks after its workers every two seconds; at the end of a short run that is time lost.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of the workers, which inherit it
    import logging

    import ray

    if ray.is_initialized():
        return False
    where = address()
    if where == "local":
        # Nobody takes this machine away under us; a process less to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # An existing cluster has its dashboard or not; only a local one is ours to start without.
    dashboard = False if where == "local" else None
    # Ray starts its workers through a shell and does not quote the interpreter's path: a space in it hangs the run.
    quoted = shlex.quote(sys.executable)
    environment = {"py_executable": quoted} if where == "local" and quoted != sys.executable else None
    try:
        with _keeping_sigterm():
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=dashboard,
                runtime_env=environment,
            )
    except Exception as error:  # Ray raises a bare Exception where a busy machine is too slow for it
        ray.shutdown()
        why = " ".join(str(error).split())
        raise MachineError(f"Ray did not start; go on later with --resume ({type(error).__name__}: {why})") from error
    return True


def end_ray(thread: threading.Thread) -> None:
    """Shuts down the Ray that we started, also under a thread that uses it: whoever asks Ray for anything starts it."""
    import ray
    from ray._private import auto_init_hook as hook

    before, hook.enable_auto_connect = hook.enable_auto_connect, False
    try:
        ray.shutdown()
        if thread.ident is not None:
            thread.join(LOOK_SECONDS)
    finally:
        if not thread.is_alive():
            hook.enable_auto_connect = before


def address() -> str:
    """Of the cluster to join; ``local``: none."""
    return os.environ.get("RAY_ADDRESS") or "local"


def ray_is_gone() -> bool:
    """Whether what makes a node of the Ray that we started was killed; of another Ray nothing is known here."""
    from ray._private import worker as driver

    node = getattr(driver, "_global_node", None)
    dead: list[tuple[str, Any]] = getattr(node, "dead_processes", list)()
    return any(kind in ("raylet", "gcs_server") for kind, _ in dead)


def living_nodes() -> set[str]:
    """Ids of the machines that Ray has; none where it is gone."""
    import ray

    if ray_is_gone():
        return set()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM over when it starts, to end all its processes: the workers could not checkpoint any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_lost(nodes: set[str]) -> bool:
    """Whether Ray is gone, or one of these nodes; workers on others fail before Ray sees that it is."""
    patience = LOST_SECONDS if len(nodes) > 1 else 0.0
    while nodes <= living_nodes():
        if patience <= 0:
            return False
        time.sleep(POLL_SECONDS)
        patience -= POLL_SECONDS
    return True


@contextlib.contextmanager
def silent(ours: bool) -> Iterator[None]:
    """Ray prints the last lines of a dead raylet's log to stdout, where a command's JSON belongs; ours does not."""
    from ray._private import worker as driver

    printing = getattr(driver, "print_to_stdstream", None)
    if not ours or printing is None:
        yield
        return
    driver.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        driver.print_to_stdstream = printing


def check_resources(compute: ComputeBlock, device: str) -> None:
    """Refuses what would wait for ever.

    Raises:
        MachineError: Ray has not got room for the fewest workers.
    """
    import ray

    held = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fewest = compute.fewest_workers
    if device == "cuda" and held.get("GPU", 0) < fewest:
        raise MachineError(f"compute.workers: {fewest} workers need a GPU each; there are {held.get('GPU', 0):g}")
    if device == "cuda" and compute.gpu_type is not None and f"{GPU_TYPE}{compute.gpu_type}" not in held:
        kinds = sorted(name.removeprefix(GPU_TYPE) for name in held if name.startswith(GPU_TYPE))
        near = suggest(compute.gpu_type, kinds)
        there = f"; there are {', '.join(kinds)}" if kinds else ""
        raise MachineError(
            f"compute.gpu_type: Ray knows no {compute.gpu_type} here"
            + (there if near is None else f'; did you mean "{near}"?')
        )
    machines = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
    if compute.placement == "strict_spread" and fewest > machines:
        raise MachineError(f"compute.placement: strict_spread wants {fewest} machines; Ray has {machines}")
    most = int(held.get("CPU", 1) / (SMALLEST_SHARE if isinstance(compute.workers, int) else SHARES[-1]))
    if fewest > most:
        raise MachineError(f"compute.workers: {fewest} workers would never start here; at most {most} can")
