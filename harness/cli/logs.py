"""``uudp logs``: what a submitted job prints."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli import console
from harness.cli.submit import ADDRESS, followed


def logs(
    job: Annotated[str, typer.Argument(metavar="ID", help="of the job, or its beginning")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until it ends, and end with its exit code")] = False,
    address: Annotated[str | None, typer.Option("--address", metavar="URL", help=ADDRESS)] = None,
) -> None:
    """Show what a submitted job has printed.

    With -f, a dropped connection is taken up again where it was lost. Ctrl-C leaves the job alone. Nothing private is
    printed by a job.
    """
    from harness.cluster.client import Cluster, server
    from harness.cluster.following import printed
    from harness.cluster.submitting import find

    cluster = Cluster(server(address))
    found = find(cluster.jobs(), job)
    if not follow:
        printed(cluster, found.id, console.out)
        return
    raise typer.Exit(followed(cluster, found.id, found.metadata["run"]))
