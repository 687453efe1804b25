"""``uudp schema``: the JSON schema of a spec."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli import console


def schema(
    suite: Annotated[bool, typer.Option("--suite", help="that of a leaderboard suite instead")] = False,
) -> None:
    """Print the JSON schema of a spec.

    The parameters of all plugins are in it, those of installed packages included. An editor with a YAML language
    server completes and checks a spec that begins with "# yaml-language-server: $schema=schema.json".
    """
    if suite:
        from harness.benchmarking.suite import suite_schema

        console.emit_json(suite_schema())
        return
    from harness.spec.schema import json_schema

    console.emit_json(json_schema())
