"""``uudp doctor``: what this machine can run, and what to install."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli import console


def doctor(json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False) -> None:
    """Say what this machine can run, and what to install.

    Looks at Python, cores, memory, disk, packages, the GPU, and whether the model hub answers. Changes nothing.
    """
    from harness.cache import default_cache_dir
    from harness.training.machine import examine

    checks = examine(default_cache_dir())
    can_train = all(check.state != "missing" for check in checks)
    if json:
        verbs = {"plan": True, "train": can_train}
        console.emit_json({"can": verbs, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            console.out(f"{check.state:<9}{check.what:<14}{check.found}")
            if check.advice:
                console.out(f"{'':<23}→ {check.advice}")
        console.out("this machine can validate, plan and account; it can " + ("train" if can_train else "NOT train"))
    if not can_train:
        raise typer.Exit(4)
