"""A run's released files from the cluster's storage: copied where it is seen from here, else through a small job."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import tempfile
import time
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from harness import __version__
from harness.cache import machine_errors
from harness.cluster.bundle import Bundle
from harness.cluster.client import Cluster, JobInfo
from harness.cluster.results import Results, check_name
from harness.cluster.sending import LARGEST, MARK, digest, released
from harness.cluster.submitting import entrypoint
from harness.errors import ArgumentError, MachineError
from harness.files import write_released_bytes
from harness.spec.models import NAME

POLL_SECONDS = 0.5


def fetch(cluster: Cluster, job: JobInfo, to: Path, python: str | None) -> tuple[Path, int]:
    """Brings what a job has released so far.

    Args:
        cluster: Its job server.
        job: The job.
        to: Where runs are kept here.
        python: The cluster's interpreter; None: the job's own.

    Returns:
        The folder, and the number of files.

    Raises:
        ArgumentError: There is nothing, or it lies in this very place.
        MachineError: It did not arrive whole.
    """
    kept = _kept(job)
    target = to.joinpath(*kept.parts[1:])
    storage = Path(job.metadata["storage"])
    seen = storage / kept
    count = 0
    if os.path.isdir(seen):  # False, too, where it may not be looked at
        if target.exists() and target.samefile(seen):
            raise ArgumentError(f"{target} is the cluster's own folder; give another one with --to")
        found: Iterator[tuple[str, bytes]] = _read(seen)
    else:
        results = job.metadata.get("results")
        published = _published(Results(results, kept)) if results else iter(())
        first = next(published, None)
        found = (
            chain([first], published)
            if first is not None
            else _through_a_job(cluster, storage, kept, python or job.metadata.get("python", "python"))
        )
    for name, content in found:
        path = target / name
        with machine_errors(f"the folder {target}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_released_bytes(path, content)
            written = path.read_bytes()
        if digest(written) != digest(content):
            raise MachineError(f"{path} was not written whole")
        count += 1
    if not count:
        raise ArgumentError(f"{job.id} has released nothing yet")
    return target, count


def _read(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What a folder that is seen from here holds."""
    with machine_errors(f"the folder {folder}"):
        files = list(released(folder))
    for name, path in files:
        with machine_errors(f"the folder {folder}"):
            content = path.read_bytes()
        yield name, content


def _published(results: Results) -> Iterator[tuple[str, bytes]]:
    """What was copied to an object store; nothing where it is not reached from here, or holds none of the run yet."""
    files = results.files()
    try:
        first = next(files, None)
    except MachineError:
        return
    if first is not None:
        yield first
        yield from files


def _kept(job: JobInfo) -> PurePosixPath:
    """Where a job's runs lie below its storage. Others on the cluster can say anything of their jobs."""
    kept, storage = PurePosixPath(job.metadata.get("folder", "")), job.metadata.get("storage", "")
    named = all(re.fullmatch(NAME, part) for part in kept.parts)
    if not 2 <= len(kept.parts) <= 3 or kept.parts[0] != "runs" or not named or not storage.startswith("/"):
        raise ArgumentError(f"{job.id} does not say where its runs lie: it was not submitted by uudp")
    return kept


def _through_a_job(cluster: Cluster, storage: Path, kept: PurePosixPath, python: str) -> Iterator[tuple[str, bytes]]:
    submission = f"uudp-fetch-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="uudp-fetch-") as folder:
        bundle = Bundle(Path(folder), storage)
        bundle.finish(submission, ["harness.cluster.sending", str(storage / kept)])
        # Without the key `uudp` it is none of the user's jobs.
        cluster.submit(submission, entrypoint(python), Path(folder), {"uudp-fetch": __version__}, 3)
    while not (info := cluster.info(submission)).ended:
        time.sleep(POLL_SECONDS)
    text = cluster.logs(submission)
    cluster.forget(submission)
    if info.exit_code != 0:
        lines = [line for line in text.splitlines() if line.startswith("uudp: ")]
        why = (
            lines[-1].removeprefix("uudp: ") if lines else info.message.splitlines()[0] if info.message else "it failed"
        )
        if info.exit_code == 2:
            raise ArgumentError(f"there is nothing to fetch yet: {why}")
        raise MachineError(f"could not be fetched: {why}; copy it from the cluster's storage: {storage / kept}")
    return received(text)


def received(text: str) -> Iterator[tuple[str, bytes]]:
    """The files that a job printed, each as it left.

    Raises:
        MachineError: They are not whole, or not what a run releases.
    """
    lines = [line[len(MARK) :] for line in text.splitlines() if line.startswith(MARK)]
    if len(lines) < 2 or lines[-1]:
        raise MachineError("what the cluster sent is not whole")
    try:
        files = [(str(name), int(size), str(sha)) for name, size, sha in json.loads(lines[0])]
        inflating = zlib.decompressobj()
        content = inflating.decompress(base64.b64decode("".join(lines[1:]), validate=True), LARGEST + 1)
    except (ValueError, TypeError, binascii.Error, zlib.error):
        raise MachineError("what the cluster sent is not whole") from None
    if sum(size for _, size, _ in files) != len(content):
        raise MachineError("what the cluster sent is not whole")
    found, start = [], 0
    for name, size, sha in files:
        part, start = content[start : start + size], start + size
        check_name(name)
        if digest(part) != sha:
            raise MachineError(f"{name} did not arrive as it was sent")
        found.append((name, part))
    return iter(found)
