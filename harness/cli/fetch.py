"""``uudp fetch``: brings what a submitted run has released."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import console
from harness.cli.submit import ADDRESS


def fetch(
    job: Annotated[str, typer.Argument(metavar="ID", help="of the job, or its beginning")],
    address: Annotated[str | None, typer.Option("--address", metavar="URL", help=ADDRESS)] = None,
    to: Annotated[Path, typer.Option("--to", help="where runs are kept here")] = Path("runs"),
    python: Annotated[
        str | None, typer.Option("--python", help="the interpreter there that has uudp; left out: the job's own")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Bring what a submitted run has released so far.

    The run's folder without private/, which stays on the cluster. It is copied where compute.storage is seen from
    here, else sent through a small job (64 MiB at most); every file is verified by its digest.
    """
    from harness.cluster.client import Cluster, server
    from harness.cluster.fetching import fetch as bring
    from harness.cluster.submitting import find

    cluster = Cluster(server(address))
    folder, count = bring(cluster, find(cluster.jobs(), job), to, python)
    if json:
        console.emit_json({"run": str(folder), "files": count})
        return
    console.out(f"run: {folder} ({count} files)")
    if (folder / "report.html").exists():
        console.out(f"report: {folder / 'report.html'}")
