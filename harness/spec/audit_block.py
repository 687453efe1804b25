"""The `audit` block: which attacks are run against a finished run, and which made users are planted for them.

Canaries and planted secrets are users that nobody is behind. They are in the training (each with probability ½, drawn
by the run's key), take their group's levers, and count in the public denominators: they are part of the mechanism.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from harness.spec.block import Block

CanaryKind = Literal["gradient", "text"]
MOST_CANARIES = 100_000


class OneRunBlock(Block):
    """A lower bound on ε from one run: canary users are guessed in or out (Steinke, Nasr and Jagielski, 2023)."""

    canaries: Annotated[int, Field(ge=20, le=MOST_CANARIES, strict=True)] = Field(
        default=200, description="made users, each in the training with probability ½; dealt to kinds and groups"
    )
    kinds: tuple[CanaryKind, ...] | None = Field(
        default=None,
        min_length=1,
        description="gradient: a direction of its own in place of a gradient, seen in every noisy sum (of adapters); "
        "text: random tokens, seen through the trained model; default: both, where there is an adapter",
    )
    guesses: Annotated[int, Field(ge=2, le=MOST_CANARIES, strict=True)] | None = Field(
        default=None,
        description="of every test, half of them for the highest scores and half for the lowest; fixed beforehand "
        "(default: half of its canaries; never more than it has)",
    )

    @model_validator(mode="after")
    def _fits(self) -> OneRunBlock:
        kinds = self.kinds or ()
        if len(set(kinds)) != len(kinds):
            raise ValueError("kinds: the same kind twice")
        if self.guesses is not None and self.guesses % 2:
            raise ValueError("guesses: must be even, since half of them are for each side")
        return self


class UserInferenceBlock(Block):
    """Was this user trained on? Asked of the model with texts of theirs, trained users against held-out ones."""

    users: Annotated[int, Field(ge=10, le=1_000_000, strict=True)] = Field(
        default=500, description="at most so many users, half of them trained on and half held out"
    )
    examples: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=4, description="at most so many of a user's examples are looked at, and at most half of them"
    )
    fresh: bool = Field(
        default=True,
        description="these examples are left out of the training, of every user: the attacker has texts that the model "
        "has not seen; false: texts that it may have been trained on, which are easier to tell",
    )


class ExtractionBlock(Block):
    """Planted secrets: codes in made users' texts, which the trained model is asked for."""

    secrets: Annotated[int, Field(ge=2, le=10_000, strict=True)] = Field(
        default=20, description="made users with a secret code each, in the training with probability ½"
    )
    copies: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=4, description="examples of such a user that hold the code"
    )
    digits: Annotated[int, Field(ge=3, le=18, strict=True)] = Field(default=6, description="of a code")
    candidates: Annotated[int, Field(ge=10, le=1_000_000, strict=True)] = Field(
        default=1000, description="other codes that the planted one is ranked among"
    )
    samples: Annotated[int, Field(ge=0, le=10_000, strict=True)] = Field(
        default=10, description="continuations that are drawn beside the likeliest one"
    )


class ReconstructionBlock(Block):
    """A user's words from their update: made texts, alone and in small cohorts, without noise and with the run's."""

    texts: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=8, description="made texts that are looked for"
    )
    tokens: Annotated[int, Field(ge=2, le=512, strict=True)] = Field(default=12, description="of such a text")
    cohorts: tuple[Annotated[int, Field(ge=1, le=1000, strict=True)], ...] = Field(
        default=(1, 4, 16), min_length=1, max_length=10, description="users whose updates are summed"
    )


class AuditBlock(Block):
    """Attacks on the finished run. Each block that is there is run; `one_run: {}` takes the defaults."""

    one_run: OneRunBlock | None = Field(default=None, description="a lower bound on ε, measured with canary users")
    user_inference: UserInferenceBlock | None = Field(
        default=None, description="trained users told from held-out ones; of real users it stays in private/"
    )
    extraction: ExtractionBlock | None = Field(default=None, description="planted secrets, asked for")
    reconstruction: ReconstructionBlock | None = Field(default=None, description="words found in single updates")
    confidence: Annotated[FiniteFloat, Field(ge=0.5, le=0.999999)] = Field(
        default=0.95, description="of all bounds of the one-run audit together, and of every interval"
    )

    @property
    def plants(self) -> bool:
        """Whether made users are put into the training."""
        return self.one_run is not None or self.extraction is not None
