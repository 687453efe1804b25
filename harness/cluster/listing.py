"""What there is to say of each job: its state in uudp's words, and its ε reserved and spent."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.cluster.client import Cluster, JobInfo
from harness.errors import UserError

WORDS = {"PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "finished", "STOPPED": "interrupted"}
CODES = {2: "refused", 3: "over budget", 4: "refused", 130: "interrupted"}
_SPENT = re.compile(r'^(?:\{"level": "info", "message": ")?private step \d+: ε spent (\d+\.\d+)', re.MULTILINE)


def status(job: JobInfo) -> str:
    """How far a job is."""
    return WORDS.get(job.status) or CODES.get(job.exit_code, "failed")


def rows(cluster: Cluster, jobs: Sequence[JobInfo]) -> list[dict[str, Any]]:
    """Plain data of all jobs, in their order."""
    return [
        {
            "id": job.id,
            "run": job.metadata.get("run", ""),
            "name": job.metadata.get("name", ""),
            "verb": job.metadata.get("verb", ""),
            "status": status(job),
            "exit_code": job.exit_code if job.ended else None,
            **_epsilon(cluster, job),
            "begun": None if job.begun is None else f"{datetime.fromtimestamp(job.begun, UTC):%Y-%m-%d %H:%M:%S}",
        }
        for job in jobs
    ]


def _epsilon(cluster: Cluster, job: JobInfo) -> dict[str, str | None]:
    """As the run's papers say where the storage is seen from here; else as it was submitted, and last printed."""
    reserved, spent = job.metadata.get("epsilon") or None, None
    if job.metadata.get("verb") == "bench":
        return {"epsilon_reserved": None, "epsilon_spent": None}
    try:
        found = _SPENT.findall(cluster.logs(job.id)) if job.status != "PENDING" else []
        spent = found[-1] if found else None
    except UserError:  # of a job whose log is gone with its machine
        pass
    try:
        papers = Path(job.metadata.get("storage", "")) / job.metadata.get("folder", "") / "privacy.json"
        stated = json.loads(papers.read_text(encoding="utf-8"))
        reserved = "NONE" if stated["epsilon"] is None else f"{float(stated['epsilon']):.4g}"
        spent = reserved if stated["status"] in ("finished", "trained") else spent
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"epsilon_reserved": reserved, "epsilon_spent": spent}
