"""``uudp stop``: a submitted job stops with a checkpoint."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from harness.cli import console
from harness.cli.submit import ADDRESS


def stop(
    job: Annotated[str, typer.Argument(metavar="ID", help="of the job, or its beginning")],
    address: Annotated[str | None, typer.Option("--address", metavar="URL", help=ADDRESS)] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Stop a submitted job, with a checkpoint.

    It ends after its step, as after Ctrl-C, and has an hour for that; uudp submit SPEC --resume ID goes on with it.
    """
    from harness.cluster.client import Cluster, server
    from harness.cluster.submitting import find
    from harness.errors import ArgumentError

    cluster = Cluster(server(address))
    found = find(cluster.jobs(), job)
    run = found.metadata["run"]
    if found.ended or not cluster.stop(found.id):
        raise ArgumentError(f"{run} has ended already")
    if json:
        console.emit_json({"id": found.id, "run": run, "status": "stopping"})
        return
    console.out(f"stopping {run} after its step, with a checkpoint")
    console.out(f"see it end: {shlex.join(['uudp', 'logs', run, '-f', '--address', cluster.address])}")
