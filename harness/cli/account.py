"""``uudp account``: the accountant alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, cast

import typer

from harness.cli import completion, console

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dp_accounting.dp_event import DpEvent

    from harness.privacy.accounting import Accountant
    from harness.privacy.selection import Law


def account(
    noise_multiplier: Annotated[float, typer.Option("--noise-multiplier", help="σ: noise std / clip norm")],
    rate: Annotated[float, typer.Option("--rate", help="probability that a user (or an example) is in a step")],
    steps: Annotated[int, typer.Option("--steps", help="number of steps")],
    delta: Annotated[float, typer.Option("--delta", help="δ")],
    accountant: Annotated[
        str | None,
        typer.Option(
            "--accountant", help="pld (default) or rdp (with --trials: always)", autocompletion=completion.accountants
        ),
    ] = None,
    examples_per_user: Annotated[
        int | None,
        typer.Option("--examples-per-user", help="examples are sampled, and each user keeps at most so many"),
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            "--trials",
            help="price of choosing the best of a random number of trials: geometric, logarithmic, "
            "negative_binomial or poisson",
            autocompletion=completion.laws,
        ),
    ] = None,
    trials_mean: Annotated[float | None, typer.Option("--trials-mean", help="mean number of trials")] = None,
    trials_shape: Annotated[float | None, typer.Option("--trials-shape", help="of negative_binomial")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Compute ε of a mechanism given by its numbers.

    For one group: in each step every user (with --examples-per-user: every kept example of a user) takes part with
    probability RATE, and noise of SIGMA times the clip norm is added to the sum. Neighbours differ by one user, added
    or removed.
    """
    from harness.errors import ArgumentError

    asked = _accountant(accountant, trials)
    _check_numbers(asked, noise_multiplier, rate, steps, delta, examples_per_user)
    from harness.privacy.accounting import answering, epsilon

    event = _event(noise_multiplier, rate, steps, examples_per_user)
    if trials is not None or trials_mean is not None or trials_shape is not None:
        event = _selected(event, trials, trials_mean, trials_shape)
    try:
        value = epsilon(event, delta, asked)
        answered = answering(event, delta, asked)
    except (ArithmeticError, ValueError, MemoryError):
        more = "; try --accountant rdp" if asked == "pld" else ""
        raise ArgumentError(f"the accountant can't settle on these numbers{more}") from None
    if not math.isfinite(value):
        raise ArgumentError("no finite ε: this mechanism protects nobody")
    if json:
        console.emit_json({"epsilon": value, "delta": delta, "accountant": answered})
    else:
        instead = "" if answered == asked else ", a looser bound: ε is too large for pld"
        console.out(f"ε = {value:.5f} at δ = {delta:g} ({answered}{instead})")


def _accountant(given: str | None, trials: str | None) -> Accountant:
    """The one asked for; by default PLD, where it has an answer."""
    from harness.errors import ArgumentError

    if given is None:
        return "pld" if trials is None else "rdp"
    if given not in ("pld", "rdp"):
        raise _unknown("--accountant", given, ("pld", "rdp"))
    if given == "pld" and trials is not None:
        raise ArgumentError("--accountant: the price of --trials is only known by Rényi DP; say rdp, or leave it out")
    return cast("Accountant", given)


def _check_numbers(
    accountant: Accountant, noise_multiplier: float, rate: float, steps: int, delta: float, examples: int | None
) -> None:
    from harness.errors import ArgumentError
    from harness.spec.models import LARGEST_DELTA, MOST_PLD_STEPS, MOST_STEPS, SMALLEST_DELTA, SMALLEST_RATE

    most = MOST_PLD_STEPS if accountant == "pld" else MOST_STEPS
    for name, value, low, high in (
        ("--noise-multiplier", noise_multiplier, 1e-6, 1e6),
        ("--rate", rate, SMALLEST_RATE, 1),
        ("--steps", steps, 1, most),
        ("--delta", delta, SMALLEST_DELTA, LARGEST_DELTA),
        ("--examples-per-user", 1 if examples is None else examples, 1, 1_000_000),
    ):
        if not low <= value <= high:
            more = "; --accountant rdp takes more" if name == "--steps" and most < value <= MOST_STEPS else ""
            raise ArgumentError(f"{name}: must be from {low:g} to {high:g}, found {value}{more}")


def _event(noise_multiplier: float, rate: float, steps: int, examples: int | None) -> DpEvent:
    from harness.privacy.mechanism import GroupMechanism, Mechanism, Unit

    unit: Unit = "user" if examples is None else "example"
    group = GroupMechanism("users", 1.0, rate, 1.0, steps, examples or 1)
    return Mechanism(steps, noise_multiplier, (group,), "add_or_remove", unit).event(0)


def _selected(event: DpEvent, law: str | None, mean: float | None, shape: float | None) -> DpEvent:
    from harness.errors import ArgumentError
    from harness.privacy.selection import SHAPES, selection_event

    if law is None:
        raise ArgumentError("--trials-mean and --trials-shape need --trials: the law of the number of trials")
    if law not in SHAPES:
        raise _unknown("--trials", law, SHAPES)
    if mean is None:
        raise ArgumentError("--trials needs --trials-mean: the mean number of trials")
    try:
        return selection_event(event, cast("Law", law), mean, shape)
    except ArgumentError as error:
        raise ArgumentError(f"--trials: {error}") from None


def _unknown(option: str, found: str, names: Iterable[str]) -> Exception:
    from harness.errors import ArgumentError
    from harness.plugins import suggest

    known = tuple(names)
    near = suggest(found, known)
    listed = f"{', '.join(known[:-1])} or {known[-1]}"
    return ArgumentError(f'{option}: must be {listed}, found "{found}"' + (f'; did you mean "{near}"?' if near else ""))
