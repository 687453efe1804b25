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
    for name, ok, rule in (
        ("--noise-multiplier", math.isfinite(noise_multiplier) and 0 < noise_multiplier <= 1e6, "above 0, at most 1e6"),
        ("--rate", 0 < rate <= 1, "in (0, 1]"),
        ("--steps", 1 <= steps <= 10**9, "from 1 to 1e9"),
        ("--delta", 0 < delta < 1, "in (0, 1)"),
    ):
        if not ok:
            raise ArgumentError(f"{name}: must be {rule}")
    from harness.privacy.accounting import group_epsilon
    from harness.privacy.mechanism import GroupMechanism, Mechanism

    group = GroupMechanism("users", 1.0, rate, 1.0, steps, 1)
    mechanism = Mechanism(steps, noise_multiplier, (group,), "add_or_remove")
    try:
        value = group_epsilon(mechanism, 0, delta, "rdp" if accountant == "rdp" else "pld")
    except (ValueError, MemoryError, OverflowError):
        raise ArgumentError("the PLD accountant can't settle on these numbers; try --accountant rdp") from None
    if not math.isfinite(value):
        raise ArgumentError("no finite ε: this mechanism protects nobody")
    if json:
        console.emit_json({"epsilon": value, "delta": delta, "accountant": accountant})
    else:
        console.out(f"ε = {value:.5f} at δ = {delta:g} ({accountant})")
