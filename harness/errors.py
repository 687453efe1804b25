"""What can go wrong in a way that the user can act on: one clear line and an exit code, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can act on.

    The message never holds a record's text, a user's id or a private count.
    """

    exit_code = 1
    run_id: str | None = None
    """The run that can go on, where one can."""


class ArgumentError(UserError):
    """The arguments or the data that they name are wrong."""

    exit_code = 2


class BudgetError(UserError):
    """The privacy budget refuses."""

    exit_code = 3


class MachineError(UserError):
    """This machine can't run it."""

    exit_code = 4


class StuckError(MachineError):
    """One training can't go on on this machine, by what it is itself; others may."""


class Interrupted(UserError):
    """Stopped by the user.

    Attributes:
        run_id: The run that can go on; None: nothing was begun.
    """

    exit_code = 130

    def __init__(self, message: str, *, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id
