"""``uudp account``: the accountant alone."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from harness.cli import completion, console


def account(
    noise_multiplier: Annotated[float, typer.Option("--noise-multiplier", help="σ: noise std / clip norm")],
    rate: Annotated[float, typer.Option("--rate", help="probability that a user takes part in a step")],
    steps: Annotated[int, typer.Option("--steps", help="number of steps")],
    delta: Annotated[float, typer.Option("--delta", help="δ")],
    accountant: Annotated[
        str, typer.Option("--accountant", help="pld or rdp", autocompletion=completion.accountants)
    ] = "pld",
    examples_per_user: Annotated[
        int | None, typer.Option("--examples-per-user", help="example sampling (not built yet)")
    ] = None,
    trials: Annotated[str | None, typer.Option("--trials", help="price of a search (not built yet)")] = None,
    trials_mean: Annotated[float | None, typer.Option("--trials-mean", help="(not built yet)")] = None,
    trials_shape: Annotated[float | None, typer.Option("--trials-shape", help="(not built yet)")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Compute ε of a mechanism given by its numbers.

    For one group under user sampling: in each step, every user takes part with probability RATE, and noise of SIGMA
    times the clip norm is added to the sum. Neighbours differ by one user, added or removed.
    """
    from harness.errors import ArgumentError
    from harness.plugins import suggest
    from harness.spec.models import LARGEST_DELTA, MOST_PLD_STEPS, MOST_STEPS, SMALLEST_DELTA, SMALLEST_RATE

    unbuilt = {
        "--examples-per-user": examples_per_user,
        "--trials": trials,
        "--trials-mean": trials_mean,
        "--trials-shape": trials_shape,
    }
    for option, value in unbuilt.items():
        if value is not None:
            raise ArgumentError(f"{option} is not built yet in this version")
    if accountant not in ("pld", "rdp"):
        near = suggest(accountant, ("pld", "rdp"))
        raise ArgumentError(
            f'--accountant: must be pld or rdp, found "{accountant}"' + (f'; did you mean "{near}"?' if near else "")
        )
    most = MOST_PLD_STEPS if accountant == "pld" else MOST_STEPS
    for name, value, low, high in (
        ("--noise-multiplier", noise_multiplier, 1e-6, 1e6),
        ("--rate", rate, SMALLEST_RATE, 1),
        ("--steps", steps, 1, most),
        ("--delta", delta, SMALLEST_DELTA, LARGEST_DELTA),
    ):
        if not low <= value <= high:
            more = "; --accountant rdp takes more" if name == "--steps" and most < value <= MOST_STEPS else ""
            raise ArgumentError(f"{name}: must be from {low:g} to {high:g}, found {value}{more}")
    from harness.privacy.accounting import Accountant, answering, group_epsilon
    from harness.privacy.mechanism import GroupMechanism, Mechanism

    group = GroupMechanism("users", 1.0, rate, 1.0, steps, 1)
    mechanism = Mechanism(steps, noise_multiplier, (group,), "add_or_remove")
    try:
        asked: Accountant = "rdp" if accountant == "rdp" else "pld"
        value = group_epsilon(mechanism, 0, delta, asked)
        accountant = answering(mechanism.event(0), delta, asked)
    except (ArithmeticError, ValueError, MemoryError):
        more = "; try --accountant rdp" if accountant == "pld" else ""
        raise ArgumentError(f"the accountant can't settle on these numbers{more}") from None
    if not math.isfinite(value):
        raise ArgumentError("no finite ε: this mechanism protects nobody")
    if json:
        console.emit_json({"epsilon": value, "delta": delta, "accountant": accountant})
    else:
        instead = "" if accountant == asked else ", a looser bound: ε is too large for pld"
        console.out(f"ε = {value:.5f} at δ = {delta:g} ({accountant}{instead})")
