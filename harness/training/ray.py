"""The loop under Ray Train; with `ray_session`, the only file of training that knows Ray.

Ray gets the path of the run's folder and nothing else: its configuration, state files, logs and dashboard are not
private. Worker output is not brought to the console, and an exception of a worker goes to the run's private folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import ArgumentError, MachineError, UserError
from harness.files import is_unwritable, unwritable, write_private
from harness.spec.compute_block import ComputeBlock
from harness.training.job import Failure, Folder
from harness.training.process import prepare_process
from harness.training.ray_session import (
    LOOK_SECONDS,
    LOST_SECONDS,
    POLL_SECONDS,
    SHARES,
    SMALLEST_SHARE,
    address,
    check_resources,
    end_ray,
    is_lost,
    living_nodes,
    ray_is_gone,
    silent,
    start_ray,
)

PATIENCE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
ROOM_SECONDS, ELASTIC_ROOM_SECONDS = 300.0, 60.0
"""So long Ray waits for room for all workers: with a fixed number, for a lost machine to come back, or for another's
workers to end. Where their number varies, Ray may have asked for more than there is any more, and asks for less then.
"""
RESIZE_SECONDS = 60.0
"""Between two looks whether there is room for more workers: they all start again then, from the last checkpoint."""


def fit(
    run_dir: Path,
    compute: ComputeBlock,
    device: str,
    tick: Callable[[], None],
    note: Callable[[str], None],
    halvings: int = 0,
) -> None:
    """Trains a run on Ray workers and waits for the end.

    Args:
        run_dir: The run's folder, on storage that all workers see.
        compute: Workers, sharding and retries.
        device: ``cpu`` or ``cuda``.
        halvings: How often a micro-batch that does not fit can be halved; each is a restart of its own.
        tick: Called about twice a second while training goes on, in the calling thread; what it raises ends the wait.
        note: Called with what a user would wonder about: that a machine is waited for.

    Raises:
        UserError: A worker gave up for a reason that the user can act on, or training failed.
        MachineError: Ray has not got the resources.
    """
    check_shadows(Path.cwd())
    started = start_ray()
    Folder(run_dir).failure.unlink(missing_ok=True)
    # Ray would take up its own record of an earlier try; all state is in our checkpoints.
    shutil.rmtree(Folder(run_dir).private / "ray", ignore_errors=True)
    failures: list[BaseException] = []
    given_up: list[Failure] = []

    def body() -> None:
        try:
            with _patience(compute):
                told = trainer(run_dir, compute, device, compute.retries + halvings).fit().return_value
            given_up.extend([Failure(**told)] if told else [])
        except BaseException as error:
            failures.append(error)

    # Off the main thread, where Ray Train would take over Ctrl-C and kill the workers before they checkpoint.
    thread = threading.Thread(target=body, name="fit", daemon=True)
    lost = False
    try:
        check_resources(compute, device)
        nodes = living_nodes()
        missed = _Missed(nodes, compute, elsewhere=not started or address() != "local")
        with silent(started), missed:
            thread.start()
            patience = LOST_SECONDS
            while thread.is_alive() and patience > 0:
                thread.join(POLL_SECONDS)
                tick()
                while missed.said:
                    note(missed.said.popleft())
                patience -= POLL_SECONDS * ray_is_gone()
        lost = patience <= 0 or (bool(failures) and is_lost(nodes))
    finally:
        if started:
            end_ray(thread)
    _raise_failure(run_dir, given_up, failures, lost=lost)


def check_shadows(folder: Path) -> None:
    """Refuses a folder with packages of our names: Ray puts the current folder before the installed ones on workers.

    Raises:
        ArgumentError: ``harness`` or ``policies`` in `folder` would be imported in place of uudp's own.
    """
    from harness.packages import shadow

    for name in ("harness", "policies"):
        if found := shadow(name, folder):
            raise ArgumentError(f"{found} shadows uudp's own package `{name}` on Ray's workers; rename it")


def check_worker() -> None:
    """Refuses a worker that has imported policies, or parts of the harness, from elsewhere than this file's package.

    Raises:
        ArgumentError: Something in Ray's working folder shadows uudp's own packages.
    """
    from harness.packages import shadow

    for name in ("harness", "policies"):
        if found := shadow(name):
            raise ArgumentError(f"{found} shadows uudp's own package `{name}` on a Ray worker; rename it")


@contextlib.contextmanager
def _patience(compute: ComputeBlock) -> Iterator[None]:
    """Inside, Ray Train finds in the environment how long to wait for room, unless the user has set it."""
    if PATIENCE in os.environ:
        yield
        return
    os.environ[PATIENCE] = str(ROOM_SECONDS if isinstance(compute.workers, int) else ELASTIC_ROOM_SECONDS)
    try:
        yield
    finally:
        del os.environ[PATIENCE]


class _Missed:
    """Looks, in a thread of its own, for machines of the cluster that are lost while training goes on.

    Attributes:
        said: What is to be told, as it comes.
    """

    def __init__(self, nodes: set[str], compute: ComputeBlock, *, elsewhere: bool) -> None:
        self._nodes, self.said, self._over = nodes, deque[str](), threading.Event()
        self._elsewhere = elsewhere
        fixed = isinstance(compute.workers, int)
        patience = os.environ.get(PATIENCE, f"{ROOM_SECONDS:g}")
        room = f"wait up to {patience} s for room for all of them" if fixed else "go on with fewer, if enough are left"
        self._what = f"a machine of the Ray cluster was lost; if it held workers, they {room}"
        self._thread = threading.Thread(target=self._look, name="missed", daemon=True)

    def __enter__(self) -> None:
        if self._elsewhere:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._elsewhere:  # an interpreter must not end under a thread that asks Ray
            self._thread.join(LOOK_SECONDS)

    def _look(self) -> None:
        known = self._nodes
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # of a Ray that does not answer now, or never will
                living = living_nodes()
                if known - living:
                    self.said.append(self._what)
                known = living


def trainer(run_dir: Path, compute: ComputeBlock, device: str, restarts: int, room: float = 1.0) -> Any:
    """Ray Train's trainer of a run; may start again so often, and take so much of the cores."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cores = room * ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    fewest, most = compute.fewest_workers, compute.most_workers
    # Fractions let two workers start on one core; threads are set by the worker itself.
    if fewest == most:
        share = max(SMALLEST_SHARE, min(1.0, cores / most))
    else:
        # As many workers start as there is room for: one core each, but for the fewest that must. Ray divides by the
        # share and rounds down, so it must be exact.
        share = next((one for one in SHARES if cores / one >= fewest), SHARES[-1])
    # Ray's own defaults for the last two are endless; its stubs know only the first, and no elastic workers.
    limits = ("max_failures", "controller_failure_limit", "max_preemption_failures")
    failures: dict[str, Any] = dict.fromkeys(limits, restarts)
    scaling: dict[str, Any] = {
        "num_workers": most if fewest == most else (fewest, most),
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS,
        "placement_strategy": compute.placement.upper(),
    }
    if device == "cuda" and compute.gpu_type is not None:
        scaling["accelerator_type"] = compute.gpu_type
    return TorchTrainer(
        worker,  # type: ignore[arg-type]  # what it returns comes back, and Ray's type has not heard of it
        train_loop_config={"run_dir": str(run_dir)},
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(**scaling, use_gpu=device == "cuda", resources_per_worker={"CPU": share}),
        run_config=RunConfig(
            name=run_dir.name,
            storage_path=str(Folder(run_dir).private / "ray"),
            failure_config=FailureConfig(**failures),
        ),
    )


def worker(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What each Ray worker runs; returns the `Failure` for which it gave up, if any."""
    import ray.train

    if not ray.train.get_context().get_world_size():
        raise RuntimeError("not a Ray Train worker")
    run_dir = Path(config["run_dir"])
    try:
        check_worker()
    except ArgumentError as error:
        failure = Failure(str(error), error.exit_code)
        failure.save(run_dir)
        return asdict(failure)
    prepare_process(own_threads())
    from harness.training.loop import train

    try:
        gave_up = train(run_dir, lambda row: ray.train.report(dict(row)))
    except BaseException as error:
        # Raised on as a bare name: the message and the frames may hold private values, and Ray logs both.
        rank = ray.train.get_context().get_world_rank()
        with contextlib.suppress(OSError):  # of a full disk
            write_private(Folder(run_dir).private / f"worker-{rank}-error.log", traceback.format_exc().encode())
        raise RuntimeError(f"{type(error).__name__} in a worker; details are in the run's private folder") from None
    return None if gave_up is None else asdict(gave_up)


def own_threads() -> int:
    """This worker's part of its node's cores, which all workers of the node share."""
    import ray
    import ray.train

    own = ray.get_runtime_context().get_node_id()
    cores = next((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == own), 1)  # type: ignore[no-untyped-call]
    return max(1, int(cores // ray.train.get_context().get_local_world_size()))


def _raise_failure(run_dir: Path, given_up: list[Failure], failures: list[BaseException], *, lost: bool) -> None:
    left = Failure.load(run_dir)
    for failure in [left] if left is not None else given_up:
        error = UserError(failure.message)
        error.exit_code = failure.exit_code
        raise error
    if not failures and not lost:
        return
    details = Folder(run_dir).private / "error.log"
    try:
        text = "".join(line for failure in failures for line in traceback.format_exception(failure))
        write_private(details, text.encode())
    except OSError as error:
        raise unwritable(error, details) from None
    if failures and is_unwritable(failures[0]):  # Ray's own state lies in the run's folder
        raise unwritable(failures[0], Folder(run_dir).private)
    if lost or _died(failures[0]):
        raise MachineError(
            f"a process of Ray's was killed, or its machine was lost; go on with --resume (details are in {details})"
        )
    raise UserError(f"training failed; details are in {details}")


def _died(failure: BaseException) -> bool:
    """Whether training ended because a process of Ray's did, and not with an exception of ours."""
    from ray.exceptions import RayActorError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(failure, WorkerGroupError):
        # When a worker dies, the others fail too: in the middle of a collective.
        return any(isinstance(one, RayActorError) for one in failure.worker_failures.values())
    # An exception that the controller itself raised is a task's; anything else of Ray says that it has gone.
    return isinstance(failure, ControllerError) or not isinstance(failure, RayTaskError)
