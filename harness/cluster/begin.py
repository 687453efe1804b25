"""Begins a submitted job on the cluster. Sent along as a script, it uses the standard library alone until it has looked
whether the same uudp is here.

Before anything private is touched it looks whether the same uudp is installed here, and whether the storage is there.
It then moves what was sent into the storage, to its owner alone, and becomes the command itself.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

JOB = "job.json"
SECRETS = "secrets.env"
"""In the storage, 0600: ``NAME=value`` lines, set for the job unless the cluster sets them."""
CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
KEPT = ("uudp_job.py", JOB)


def main() -> None:
    """Checks, moves and becomes ``python -m …``."""
    here = Path(__file__).resolve().parent
    job = json.loads((here / JOB).read_text(encoding="utf-8"))
    _check_versions(job["uudp"], here)
    storage = Path(job["storage"])
    if not storage.is_dir():
        refuse(f"compute.storage: there is no folder {storage} on the cluster")
    environment = {**os.environ, "UUDP_SUBMITTED": "1"}
    environment.setdefault("UUDP_CACHE", str(storage / "cache"))
    environment.update(_secrets(storage / SECRETS, environment))
    environment.setdefault("UUDP_LEDGER", f"sqlite:///{storage}/ledger.db")
    if job.get("default_ledger"):
        _check_ledger(environment["UUDP_LEDGER"], storage)
    try:
        place = _moved(here, storage, job["id"])
    except OSError as error:
        refuse(f"compute.storage: {storage} can't be written on the cluster ({error.strerror})")
    _own_workers(environment, place, storage / SECRETS, named=bool(job.get("named_python")))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), environment.get("PYTHONPATH")]))
    os.chdir(place)
    print(f"uudp {job['uudp']} on the cluster, in {storage}", flush=True)
    os.execve(sys.executable, [sys.executable, "-m", *job["arguments"]], environment)


def refuse(line: str) -> NoReturn:
    """Ends the job before it touched anything. What was sent goes: Ray unpacks for everybody's eyes."""
    for path in _sent(Path(__file__).resolve().parent):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"uudp: {line}", flush=True)
    sys.exit(4)


def _check_versions(wanted: str, here: Path) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  # the cluster's Python may be any
        refuse(f"the cluster's Python is {sys.version.split()[0]}; uudp needs 3.11 or newer there")
    sys.path[:] = [place for place in sys.path if place and Path(place).resolve() != here]
    try:
        import harness

        found = str(harness.__version__)
    except Exception:  # a package of another project may be called so
        refuse(f'the cluster has no uudp for {sys.executable}: pip install "uudp[train]=={wanted}" there')
    if found != wanted:
        refuse(f"the cluster has uudp {found}, and this was submitted by uudp {wanted}: install the same on both")


def _secrets(path: Path, environment: dict[str, str]) -> dict[str, str]:
    """What the job takes of them."""
    from harness.environment import added, secrets_in  # of the same version: looked at before
    from harness.errors import UserError

    try:
        return added(environment, secrets_in(path))
    except UserError as error:
        refuse(str(error))


def _check_ledger(url: str, storage: Path) -> None:
    """A file that goes with the machine would give each data set its budget anew. The URL is never quoted."""
    if not url.startswith("sqlite"):
        return
    file = Path(os.path.realpath(os.path.expanduser(url.partition("://")[2][1:])))
    if not file.is_relative_to(os.path.realpath(storage)):
        refuse(f"UUDP_LEDGER on the cluster names an sqlite: file that is not in {storage}, where it would be kept")


def _moved(here: Path, storage: Path, submission: str) -> Path:
    """What was sent, in the storage, where all machines see it and its owner alone."""
    place = storage / "submitted" / submission
    place.parent.mkdir(mode=0o700, exist_ok=True)
    number = 1
    while place.exists():  # of a job that the cluster's head has forgotten, when it was restarted
        number += 1
        place = place.with_name(f"{submission}.{number}")
    place.mkdir(mode=0o700)
    for path in _sent(here):
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place / path.name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in place.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return place


def _sent(here: Path) -> list[Path]:
    """What of the folder that Ray unpacked is the user's."""
    return [path for path in sorted(here.iterdir()) if path.name not in (*KEPT, "__pycache__")]


def _own_workers(environment: dict[str, str], place: Path, secrets: Path, *, named: bool) -> None:
    """The job's workers look for plugins in the storage: Ray need not unpack what was sent on their machines too.

    They are told where secrets lie, and nothing of them: this is shown to whoever may look at the cluster.

    Where an interpreter was named, they are started by it too: the one that Ray runs in may have no uudp.
    """
    config: dict[str, Any] = json.loads(environment.get(CONFIG) or "{}")
    runtime = dict(config.get("runtime_env") or {})
    runtime.pop("working_dir", None)
    variables = dict(runtime.get("env_vars") or {})
    runtime["env_vars"] = {**variables, "PYTHONPATH": f"{place}:${{PYTHONPATH}}", "UUDP_SECRETS": str(secrets)}
    if named:
        runtime["py_executable"] = shlex.quote(sys.executable)
    environment[CONFIG] = json.dumps({**config, "runtime_env": runtime})


if __name__ == "__main__":
    main()
