"""Runs side by side: what there is in a folder of runs, and where two of them differ. Reads released files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import is_locked
from harness.reporting.audited import audited
from harness.reporting.records import RunRecord, block, number, read_run
from harness.reporting.summary import summarize_record

FINISHED, INTERRUPTED = "finished", "interrupted"
UNDER_WAY = ("running", "trained")


@dataclass(frozen=True)
class ListedRun:
    """One run in a folder of runs. All of it is public.

    Attributes:
        id: Name of its folder.
        name: Of its spec.
        status: ``running``, ``interrupted``, ``finished``, or ``damaged`` where a file can't be read.
        private: Whether it claims a guarantee.
        epsilon: What it claims; None without privacy.
        delta: The same.
        loss: Hold-out loss after training, in nats per token; None where nothing was evaluated.
        begun: When, in UTC, as ISO 8601; "" where the folder's name doesn't tell.
        folder: Where it is.
        search: How its hyperparameters were searched: ``random``, ``predicted``, …; None: they were not.
        public_trials: Whether it is no run, but the trials of a search on a public data set.
        audited: The largest lower bound on ε that a test of its audit gives; None: ε was not tested.
        verdict: What its audit says of its claim: ``violated``, ``inconclusive`` or ``consistent``; None as before.
    """

    id: str
    name: str
    status: str
    private: bool
    epsilon: float | None
    delta: float | None
    loss: float | None
    begun: str
    folder: str
    search: str | None = None
    public_trials: bool = False
    audited: float | None = None
    verdict: str | None = None


def list_runs(out: Path) -> list[ListedRun]:
    """Every run below a folder, finished or not, the oldest first; those of a suite's cells lie one folder deeper."""
    folders = {path.parent for name in ("privacy.json", "plan.json") for path in run_files(out, name)}
    return [_listed(folder) for folder in sorted(folders, key=lambda p: (p.name, p.parent.name))]


def run_files(out: Path, name: str) -> list[Path]:
    """The files of this name of all runs below a folder."""
    return [*out.glob(f"*/*/{name}"), *(p for p in out.glob(f"*/*/*/{name}") if p.parent.name != "private")]


def status_of(folder: Path) -> str:
    """How far a run is, as its released files say; what nobody works on any more is ``interrupted``.

    Raises:
        UserError: The folder holds no run that can be read.
    """
    status = str(read_run(folder).privacy.get("status"))
    # None: of somebody else's run, whose private part is theirs, only what it says can be known.
    if status in UNDER_WAY and is_locked(folder / "private" / "lease") is False:
        return INTERRUPTED
    return "running" if status in UNDER_WAY else status


def are_public_trials(record: RunRecord) -> bool:
    """Whether a folder holds the trials of a search on a public data set: no model, and no claim."""
    return record.privacy.get("public_trials") is True


def is_sweep(record: RunRecord) -> bool:
    """Whether a folder is that of a sweep which has not released its best trial yet."""
    return bool(block(record.spec, "sweep")) and bool(block(record.privacy, "search"))


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Two runs side by side, as plain data.

    Returns:
        ``runs`` (two, as `list_runs` lists them), ``differences`` (of the resolved specs: ``key``, ``first``,
        ``second``; None for a key that a spec lacks) and ``losses`` (per group, ``all`` first: the pair of losses of
        the base model and after training).

    Raises:
        UserError: A folder holds no run that can be read.
    """
    records = read_run(first), read_run(second)
    flat = [dict(_flat(record.spec)) for record in records]
    keys = [*flat[0], *(key for key in flat[1] if key not in flat[0])]
    differing = [key for key in keys if flat[0].get(key) != flat[1].get(key)]
    losses = [_losses(record) for record in records]
    groups = list(dict.fromkeys([*losses[0], *losses[1]]))
    nothing = {"base": None, "trained": None}
    return {
        "runs": [asdict(_listed(folder)) for folder in (first, second)],
        "differences": [{"key": k, "first": flat[0].get(k), "second": flat[1].get(k)} for k in differing],
        "losses": [
            {"group": g, "first": losses[0].get(g, nothing), "second": losses[1].get(g, nothing)} for g in groups
        ],
    }


def _listed(folder: Path) -> ListedRun:
    try:
        record, status = read_run(folder), status_of(folder)
    except UserError:
        return ListedRun(folder.name, folder.parent.name, "damaged", False, None, None, None, "", str(folder))
    audit = audited(record)
    return ListedRun(
        id=folder.name,
        name=str(record.plan.get("name")),
        status=status,
        private=record.private,
        epsilon=record.epsilon if record.private else None,
        delta=number(record.privacy.get("delta")) if record.private else None,
        loss=summarize_record(record).overall.trained_loss,
        begun=_begun(folder.name),
        folder=str(folder),
        search=str(block(record.sweep, "search").get("type", "search")) if record.sweep else None,
        public_trials=are_public_trials(record),
        audited=audit.bound if audit is not None else None,
        verdict=audit.verdict if audit is not None else None,
    )


def _begun(run_id: str) -> str:
    try:
        return datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return ""


def _flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in spec.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value, default=str))


def _losses(record: RunRecord) -> dict[str, dict[str, float | None]]:
    summary = summarize_record(record)
    every = {"all": summary.overall, **summary.groups}
    return {name: {"base": found.base_loss, "trained": found.trained_loss} for name, found in every.items()}
