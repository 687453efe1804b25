"""Plain sentences, computed from a run's public numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.reporting import formatting as f
from harness.reporting.summary import Losses


def headline(losses: Losses, private: bool) -> str:
    """What training achieved, in a sentence or two."""
    who = "Private training" if private else "Training"
    if losses.trained_loss is None:
        return "This run was not evaluated."
    if losses.gain is None:
        return f"{who} ended at {f.loss(losses.trained_loss)} nats per token; the base model was not measured."
    size = f.loss(abs(losses.gain))
    if losses.gain <= 0:
        outcome = f"{who} did not help: the loss is {size} nats per token higher than the base model’s."
        return outcome if losses.gain < 0 else f"{who} changed nothing: the loss is the base model’s."
    outcome = f"{who} took {size} nats per token off the base model’s loss"
    if losses.ordinary_gain is None:
        return f"{outcome}."
    if losses.share_kept is None:
        return f"{outcome}; ordinary training took off nothing."
    share = f.percent(losses.share_kept)
    return f"{outcome}: {share} of what ordinary training took off ({f.loss(losses.ordinary_gain)})."


def spending(charges: Sequence[Mapping[str, Any]], searched: bool = False) -> str:
    """Where the budget went, in a sentence or two.

    Args:
        charges: Noisy answers besides training.
        searched: Whether it paid for a search.
    """
    if searched:
        told = "It paid for the whole search: every trial, whichever of them had been released"
        told += ", with the noisy answers that trials asked for" if charges else ""
        return f"{told}. It was spent when the first trial began."
    if not charges:
        return "All of it went into training. No other answer about private data was released."
    names = "one more answer" if len(charges) == 1 else f"{len(charges)} more answers"
    return (
        f"Training and {names} drew on private data. What they cost together is composed, group by group, "
        "so the parts need not add up to the whole."
    )


def loss_noise(std: float | None, first: float) -> str:
    """How noisy the losses of private hold-out users are.

    Args:
        std: Standard deviation of the noise of a later evaluation, in nats per token; None: not known.
        first: How much more the first evaluation has.
    """
    words = "Hold-out users are protected too, so every loss here is a noisy answer about them, and charged to them."
    if std is None:
        return words
    return (
        f"{words} The noise has a standard deviation of {f.significant(std, 2)} nats per token, and of "
        f"{f.significant(std * first, 2)} in the first one; a smaller difference between two of them says nothing."
    )
