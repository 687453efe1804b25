"""Runs the stages of a preparation through Ray Data: the only file of `data` that knows Ray. Training never imports it.

Ray is told a folder and numbers, and tells numbers and messages of ours: its object store, its spilled files and its
logs are not private. So the shuffle is not Ray's own either; which would, besides, hold all of one user's records in
the memory of one worker.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cache import machine_errors
from harness.data.preparing import Stage, do, error_log
from harness.errors import ArgumentError, MachineError, UserError
from harness.files import append_private, private_folder

_TRIES, _MOST_TRIES = "tries", 4
"""So often a part or a shard is begun whose process dies: Ray Data itself would begin it for ever."""

_ERRORS: dict[int, type[UserError]] = {kind.exit_code: kind for kind in (ArgumentError, MachineError)}


def run(folder: Path, stage: Stage, numbers: Sequence[int]) -> None:
    """Does parts or shards on all cores that Ray has; Ray must be running.

    Args:
        folder: The workplace, on storage that all workers see.
        stage: What is done.
        numbers: Of the parts or shards.

    Raises:
        UserError: What the first that failed said.
        MachineError: A process of Ray's was lost, again and again.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    for name in ("enable_progress_bars", "enable_operator_progress_bars", "print_on_execution_start"):
        setattr(context, name, False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    asked = ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
    shutil.rmtree(folder / _TRIES, ignore_errors=True)
    told = asked.map(functools.partial(task, folder=str(folder), stage=stage), num_cpus=1)
    lost = ""
    try:
        for row in told.iter_rows():
            if row["failure"]:
                raise _ERRORS.get(int(row["exit_code"]), UserError)(str(row["failure"]))
    except RayError as error:
        lost = type(error).__name__
    if lost:
        raise MachineError(f"a process of Ray's that prepared data was lost ({lost}); run again to go on from there")


def task(row: dict[str, Any], folder: str, stage: Stage) -> dict[str, Any]:
    """What a worker of Ray's runs; it raises nothing, for Ray would log what was raised."""
    failure = _failure(Path(folder), stage, int(row["number"]))
    return {"failure": "" if failure is None else str(failure), "exit_code": failure.exit_code if failure else 0}


def _failure(folder: Path, stage: Stage, number: int) -> UserError | None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process for each core is enough
    try:
        _check_worker(folder)
        with machine_errors(f"the cache {folder.parent.parent}"):
            tries = private_folder(folder / _TRIES) / f"{stage}-{number}"
            append_private(tries, b".")
            if tries.stat().st_size > _MOST_TRIES:
                raise MachineError("a process that prepared data was killed again and again; it may lack memory")
            do(folder, stage, number)
        return None
    except UserError as error:
        return error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a library in another language raises what is no Exception
        log = error_log(folder)
        with contextlib.suppress(OSError):
            append_private(log, traceback.format_exc().encode(errors="replace"))
        return UserError(f"preparing the data failed ({type(error).__name__}); details are in {log}")


def _check_worker(folder: Path) -> None:
    from harness.packages import shadow

    for name in ("harness", "policies"):
        if found := shadow(name):
            raise ArgumentError(f"{found} shadows uudp's own package `{name}` on a Ray worker; rename it")
    if not folder.exists():
        raise MachineError(f"the cache {folder.parent.parent} is not on storage that all machines of the cluster see")
