"""Secrets of a submitted job: ``NAME=value`` lines in a file of the cluster's storage, for its owner's eyes.

What is sent with a job, or named in its runtime environment, is shown to whoever may look at the cluster. So each
process that needs a secret reads it here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from harness.errors import MachineError

FILE = "UUDP_SECRETS"
"""The environment variable that tells a job's workers where that file lies."""
_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_STORES = re.compile(r"AWS_[A-Z0-9_]+")


def secrets_in(path: Path) -> dict[str, str]:
    """The variables of a file; none where there is no file.

    Raises:
        MachineError: It can't be read, others may, or a line is something else. Nothing of it is quoted.
    """
    try:
        if not os.path.lexists(path):
            return {}
        mode = path.stat()
        if stat.S_IMODE(mode.st_mode) & 0o077 or mode.st_uid != os.geteuid():
            raise MachineError(f"{path} must be yours alone: chmod 600")
        content = path.read_bytes()
    except OSError as error:  # passed over, another ledger would be charged
        raise MachineError(f"{path} can't be read ({error.strerror})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        name, mark, value = (part.strip() for part in line.partition("="))
        if not line.strip() or name.startswith("#"):
            continue
        # Of a line that were passed over (`export UUDP_LEDGER=…`), another ledger would be charged.
        if not mark or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            raise MachineError(f"{path}: line {number} is not NAME=value (without export)")
        found[name] = value
    return found


def added(own: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """What a process takes of these secrets: what it hasn't. A key's parts belong together, and come all or none."""
    keyed = any(name in own for name in _KEY)
    return {name: value for name, value in secrets.items() if name not in own and not (keyed and name in _KEY)}


def take_keys() -> None:
    """Sets this process's keys of object stores from the job's file, those that are not set.

    Raises:
        MachineError: As of `secrets_in`.
    """
    if (path := os.environ.get(FILE)) is not None:
        found = added(os.environ, secrets_in(Path(path)))
        os.environ.update({name: value for name, value in found.items() if _STORES.fullmatch(name)})
