"""``uudp schema``: the JSON schema of a spec."""

from __future__ import annotations

from harness.cli import console


def schema() -> None:
    """Print the JSON schema of a spec."""
    from harness.spec.schema import json_schema

    console.emit_json(json_schema())
