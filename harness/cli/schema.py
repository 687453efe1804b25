"""``uudp schema``: the JSON schema of a spec."""

from __future__ import annotations

from harness.cli import console


def schema() -> None:
    """Print the JSON schema of a spec.

    The parameters of all plugins are in it, those of installed packages included. An editor with a YAML language
    server completes and checks a spec that begins with "# yaml-language-server: $schema=schema.json".
    """
    from harness.spec.schema import json_schema

    console.emit_json(json_schema())
