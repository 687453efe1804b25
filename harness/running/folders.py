"""A run's folder is the whole truth about it: what was asked, what was computed, what was released, how far it is.

In `private/` lies what a resumed run needs to repeat the very same draws.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.data.store import Corpus
from harness.errors import ArgumentError, MachineError
from harness.files import as_json, hold, is_locked, write_private, write_released
from harness.planning import Plan
from harness.plugins import suggest
from harness.privacy.guarantee import Entered, Guarantee
from harness.privacy.mechanism import Mechanism
from harness.privacy.randomness import destroy_key
from harness.training.job import RUN_ID, Folder, new_run_id
from harness.training.model import Base

FINISHED, TRAINED, RUNNING, INTERRUPTED, FAILED = "finished", "trained", "running", "interrupted", "failed"
ENTRY = "ledger.json"
"""In the private folder: the run's entry in the ledger."""
SWEEP = "sweep"
"""In the private folder of a sweep: its trials."""
LEASE_SECONDS = 2.0
"""So long a run waits for its own lease: another command may be looking whether it is free."""


def create_folder(plan: Plan, out: Path, run_id: str | None = None) -> Folder:
    """Makes the folder of a new run, ``out/<name>/<run id>``, with its private part.

    Args:
        plan: With the run's name.
        out: Where runs are kept.
        run_id: Of a submitted run, which was told it; None: a new one.

    Raises:
        ArgumentError: There is such a run already, or this can be no run's id.
        MachineError: It can't be made.
    """
    run_id = run_id or new_run_id()
    folder = Folder((out / plan.spec.name / run_id).absolute())
    if not RUN_ID.fullmatch(run_id):
        raise ArgumentError("a run's id looks like 20260101-100000-a1b2c3")
    if folder.root.exists():
        raise ArgumentError(f"there is a run {run_id} already: {folder.root}")
    try:
        folder.private.mkdir(parents=True, mode=0o700)
        os.chmod(folder.private, 0o700)
    except OSError as error:
        raise MachineError(f"can't make the run's folder {folder.root}: {error.strerror}") from None
    return folder


def find_unfinished(plan: Plan, out: Path, run_id: str | None = None, *, sweep: bool = False) -> Folder:
    """The run, or the sweep, to go on with.

    Args:
        plan: What is asked for now.
        out: Where runs are kept.
        run_id: The run's id, or its beginning; None: the newest one that nobody works on, of the same mechanism if
            there is one.
        sweep: Whether a sweep is looked for, which only a sweep goes on with.

    Raises:
        ArgumentError: There is none.
    """
    below = out / plan.spec.name
    begun = sorted(below.glob("*/private/run.json"), reverse=True)
    found = [Folder(p.parents[1].absolute()) for p in begun if _is_sweep(p) == sweep]
    if run_id is not None:
        return _named(run_id, found, below)
    unfinished = [folder for folder in found if status_of(folder) not in (FINISHED, FAILED)]
    if not unfinished:
        raise ArgumentError(f"there is no unfinished {'sweep' if sweep else 'run'} of {plan.spec.name} in {out}")
    free = [folder for folder in unfinished if not is_locked(folder.lease)]
    same = [folder for folder in free if _is_of(folder, plan.mechanism)]
    return (same or free or unfinished)[0]


def is_begun(plan: Plan, out: Path) -> bool:
    """Whether there is an unfinished run with this very spec."""
    return any(status not in (FINISHED, FAILED) for _, status in _with_spec(plan, out))


def finished_last(plan: Plan, out: Path, run_id: str | None = None) -> Path | None:
    """The newest run with this very spec, if it is finished; None: it is not, or there is none.

    Args:
        plan: With the spec.
        out: Where runs are kept.
        run_id: Its id must begin like this.
    """
    found = ((folder, status) for folder, status in _with_spec(plan, out) if folder.name.startswith(run_id or ""))
    folder, status = next(found, (None, ""))
    return folder if status == FINISHED else None


def _with_spec(plan: Plan, out: Path) -> Iterator[tuple[Path, str]]:
    """Runs of this name with this very spec, the newest first, and how far they are."""
    for path in sorted((out / plan.spec.name).glob("*/private/run.json"), reverse=True):
        folder = Folder(path.parents[1].absolute())
        with contextlib.suppress(OSError, ValueError, KeyError):
            if yaml.safe_load((folder.root / "spec.yaml").read_text()) == plan.loaded.resolved:
                yield folder.root, status_of(folder)


def _is_sweep(path: Path) -> bool:
    """Whether a ``run.json`` is that of a sweep."""
    try:
        return "sweep" in json.loads(path.read_text())["parts"]
    except (OSError, ValueError, KeyError):
        return False


def _named(run_id: str, found: Sequence[Folder], below: Path) -> Folder:
    hits = [folder for folder in found if folder.root.name.startswith(run_id)]
    if len(hits) > 1:
        raise ArgumentError(f'--run: several runs begin with "{run_id}": {", ".join(f.root.name for f in hits)}')
    if not hits:
        near = suggest(run_id, [folder.root.name for folder in found])
        raise ArgumentError(
            f'--run: there is no run "{run_id}" in {below}' + (f'; did you mean "{near}"?' if near else "")
        )
    if status_of(hits[0]) in (FINISHED, FAILED):
        raise ArgumentError(f"--run: {hits[0].root.name} is {status_of(hits[0])}: there is nothing to go on with")
    return hits[0]


def _is_of(folder: Folder, mechanism: Mechanism) -> bool:
    try:
        parts = json.loads((folder.private / "run.json").read_text())["parts"]
        return bool(parts["mechanism"] == _sha256(mechanism.digest))
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def lease(folder: Folder) -> Iterator[None]:
    """One process at a time works on a run; the lease ends with the process, however it ends.

    Raises:
        ArgumentError: Another process has it.
        MachineError: The file system has no locks.
    """
    with hold(folder.lease, seconds=LEASE_SECONDS) as held:
        if not held:
            raise ArgumentError(f"another process is working on {folder.root}")
        yield


def remove_unbegun(folder: Folder) -> None:
    """Removes a run that has not begun, and its key in any case; what says why records or plugins failed stays."""
    destroy_key(folder.key)
    shutil.rmtree(folder.views, ignore_errors=True)
    known = {folder.lease.name, "job.json", ENTRY, folder.members.name, SWEEP}
    # A kill in the middle of a file leaves the beginning of it, under a name that begins with a dot.
    if all(path.name in known or path.name.startswith(".") for path in folder.private.iterdir()):
        shutil.rmtree(folder.root, ignore_errors=True)
    else:
        folder.lease.unlink(missing_ok=True)


def run_parts(plan: Plan, corpus: Corpus, base: Base) -> dict[str, str]:
    """Identifies everything that decides a run's releases, part by part: a resumed run must have the same.

    Workers and ZeRO stage are not in it; they may change. The data's part is keyed.
    """
    spec = plan.spec
    parts: dict[str, Any] = {
        "mechanism": plan.mechanism.digest,
        "guarantee": plan.guarantee.document("", 0),
        "data": corpus.fingerprint,
        "segmentation": spec.segmentation.model_dump(mode="json"),
        "sensitivity": spec.sensitivity.model_dump(mode="json") if spec.sensitivity else None,
        "model": base.digest,
        "tokenizer": base.tokenizer_digest,
        "adapter": spec.model.model_dump(mode="json"),
        "optimizer": spec.train.optimizer.model_dump(mode="json"),
        "schedule": spec.train.schedule.model_dump(mode="json"),
        "checkpoint_every": spec.train.checkpoint_every,
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "audit": _audit_of(plan),
        "seed": spec.seed,
    }
    return {name: _sha256(part) for name, part in parts.items()}


def _audit_of(plan: Plan) -> dict[str, Any] | None:
    return None if plan.spec.audit is None else plan.spec.audit.model_dump(mode="json")


def run_digest(parts: Mapping[str, str]) -> str:
    """All parts in one."""
    return _sha256(dict(parts))


def _sha256(part: object) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def check_same(folder: Folder, parts: Mapping[str, str], *, draws: bool = True) -> None:
    """A draw is never used on anything but what it was first used on.

    Args:
        folder: What was begun.
        parts: What is asked for now.
        draws: Whether there is anything left to draw.

    Raises:
        ArgumentError: The run was begun with something else, or its key is gone.
    """
    before = json.loads((folder.private / "run.json").read_text())
    if before["run_digest"] != run_digest(parts):
        changed = [name for name, part in parts.items() if before["parts"].get(name) != part]
        raise ArgumentError(
            f"{folder.root} was begun with another {' and '.join(changed)}: it can't be resumed with this spec (a draw "
            "is never used on anything else); start a new run without --resume"
        )
    if draws and not folder.key.exists():
        raise ArgumentError(f"the key of {folder.root} is gone: it can't be resumed")


def check_trained(folder: Folder, mechanism: Mechanism) -> None:
    """What noisy answers decided is not in the digest of a run's parts: it must not have changed since either.

    Raises:
        ArgumentError: The run trained another mechanism before it was interrupted.
    """
    path = folder.private / "job.json"
    if not path.exists():
        return
    if Mechanism.from_dict(json.loads(path.read_text())["mechanism"]).digest != mechanism.digest:
        raise ArgumentError(
            f"{folder.root} was trained with another mechanism than its noisy answers lead to now: it can't be resumed "
            "(a draw is never used on anything else); start a new run without --resume"
        )


def check_promise(plan: Plan, folder: Folder) -> None:
    """What is left of a trained run is to state its guarantee: it must be the one it was trained under."""
    stated = json.loads((folder.root / "privacy.json").read_text())
    planned = guarantee_of(plan, folder).document(stated["status"], stated["steps_completed"])
    before, now = json.loads((folder.root / "plan.json").read_text()), json.loads(json.dumps(plan.document()))
    for part in ("model", "train"):
        if any(before[part].get(key) != value for key, value in now[part].items()):
            raise ArgumentError(
                f"{folder.root} was trained with another {part} block: it can't be finished with this spec"
            )
    trained = json.loads((folder.private / "run.json").read_text()).get("parts", {})
    if trained.get("audit") != _sha256(_audit_of(plan)):
        raise ArgumentError(
            f"{folder.root} was trained with another audit block: it can't be finished with this spec (what is guessed "
            "is fixed before anything is known of the answers)"
        )
    if stated != json.loads(json.dumps(planned)):
        raise ArgumentError(f"{folder.root} was trained under another guarantee: it can't be finished with this spec")


def guarantee_of(plan: Plan, folder: Folder) -> Guarantee:
    """A run's guarantee, with its entry in the ledger if it has one."""
    return dataclasses.replace(plan.guarantee, ledger=entry_of(folder))


def entry_of(folder: Folder) -> Entered | None:
    """A run's entry in the ledger, as it was noted when the run reserved."""
    path = folder.private / ENTRY
    return Entered(**json.loads(path.read_text())) if path.exists() else None


def save_entry(folder: Folder, entered: Entered) -> None:
    """Notes a run's entry in the ledger."""
    write_private(folder.private / ENTRY, as_json(dataclasses.asdict(entered)).encode())


def status_of(folder: Folder) -> str:
    """How far a run is, as its driver last said."""
    return str(json.loads((folder.private / "run.json").read_text())["status"])


def set_status(plan: Plan, folder: Folder, status: str, parts: Mapping[str, str] | None = None) -> None:
    """Notes how far a run is, and states its guarantee as far as it has come."""
    path = folder.private / "run.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update({"status": status} | ({"run_digest": run_digest(parts), "parts": dict(parts)} if parts else {}))
    write_private(path, as_json(known).encode())
    write_privacy(plan, folder, status)


def write_privacy(plan: Plan, folder: Folder, status: str) -> None:
    """States the guarantee, and how many steps were released under it."""
    steps = plan.mechanism.steps if status in (TRAINED, FINISHED) else _released_steps(folder)
    write_released(folder.root / "privacy.json", as_json(guarantee_of(plan, folder).document(status, steps)))


def _released_steps(folder: Folder) -> int:
    rows = released_rows(folder.metrics)
    return max((int(r["step"]) for r in rows if r["series"] == "private"), default=0)


def released_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of metrics; half a line, which a kill leaves, is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
