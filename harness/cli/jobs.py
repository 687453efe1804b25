"""``uudp jobs``: what was submitted to a cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cli import console
from harness.cli.submit import ADDRESS

COLUMNS = (
    ("id", "ID"), ("name", "NAME"), ("status", "STATUS"), ("epsilon_reserved", "ε RESERVED"),
    ("epsilon_spent", "ε SPENT"), ("begun", "BEGUN (UTC)"),
)  # fmt: skip


def jobs(
    address: Annotated[str | None, typer.Option("--address", metavar="URL", help=ADDRESS)] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """List the jobs that uudp submitted to a cluster.

    ε reserved is what the ledger is charged as soon as a run has begun, however it ends; ε spent is what the released
    steps amount to so far.
    """
    from harness.cluster.client import Cluster, server
    from harness.cluster.listing import rows

    cluster = Cluster(server(address))
    found = rows(cluster, cluster.jobs())
    if json:
        console.emit_json({"jobs": found})
        return
    for line in _table(found):
        console.out(line)


def _table(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return ["no jobs"]
    cells = [[title for _, title in COLUMNS]]
    cells += [[console.shortened(str(row[key] or "-"), 40) for key, _ in COLUMNS] for row in found]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
