"""Sensitivity by several scores at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import (
    OwnRecordsScore,
    Page,
    PluginError,
    PluginParameters,
    SensitivityScore,
    UserRecords,
    sensitivity,
)
from policies.parts import Part, built

Weight = Annotated[FiniteFloat, Field(gt=0, le=1e6)]


class CompositeParameters(PluginParameters):
    """Parameters of `composite`."""

    scores: tuple[Part, ...] = Field(
        min_length=1, max_length=20, description="sensitivity scores that come with uudp: each its type and parameters"
    )
    combine: Literal["max", "weighted", "probabilistic_or"] = Field(
        default="max",
        description="the largest score; the mean by `weights`; or 1 - (1 - a)(1 - b)…, where small ones add up",
    )
    weights: tuple[Weight, ...] | None = Field(
        default=None, description="of the scores in the mean, in their order, constants; left out: all alike"
    )

    @model_validator(mode="after")
    def _fits(self) -> CompositeParameters:
        if self.weights is not None and self.combine != "weighted":
            raise ValueError("weights: only a mean has weights; add combine: weighted")
        if self.weights is not None and len(self.weights) != len(self.scores):
            raise ValueError(f"weights: must be {len(self.scores)}, one for each score")
        return self


class Composite(OwnRecordsScore):
    """Several scores as one: the largest, their weighted mean, or the probabilistic or; composites nest.

    `max`: whoever is at stake in one way is. `weighted`: Σ wᵢsᵢ / Σ wᵢ, with constants of the spec. `probabilistic_or`:
    1 - Π (1 - sᵢ), the chance that at least one happens, if scores were chances of things that happen independently.
    Each part is handed what it uses of the same user and nothing else. Parts that learn from noisy answers can't be
    combined yet. Costs no privacy; the score and the tier that follows from it are private.
    """

    Parameters = CompositeParameters
    parameters: CompositeParameters
    page = Page(
        formula="max: max sᵢ;  weighted: Σ wᵢ sᵢ / Σ wᵢ;  probabilistic_or: 1 − Π (1 − sᵢ)",
        sees="What its scores see, of the same user.",
        when="Users are at risk in several ways, and one number must say how much.",
        costs=(
            "No privacy. The score, and the tier that follows from it, are private; weights of the groups must be "
            "given or noisy."
        ),
        ends="0: every score is 0 (of max, weighted and probabilistic_or). 1: one is (of weighted: all are).",
        example=("type: composite\nscores: [{type: volume}, {type: identifiers}]\ncombine: probabilistic_or"),
    )

    def __init__(self, parameters: PluginParameters) -> None:
        super().__init__(parameters)
        self.parts = tuple(_part(i, wanted) for i, wanted in enumerate(self.parameters.scores))

    @property
    def uses_times(self) -> bool:
        """Whether a part does."""
        return any(part.uses_times for part in self.parts)

    @property
    def uses_model(self) -> bool:
        """Whether a part does."""
        return any(part.uses_model for part in self.parts)

    def score(self, user: UserRecords) -> float:
        """The parts' scores, combined; cut to [0, 1], which rounding could leave."""
        values = [part.score(_shown(part, user)) for part in self.parts]
        return min(1.0, max(0.0, self._combined(values)))

    def _combined(self, values: Sequence[float]) -> float:
        if self.parameters.combine == "max":
            return max(values)
        if self.parameters.combine == "probabilistic_or":
            return 1.0 - math.prod(1.0 - value for value in values)
        weights = self.parameters.weights or (1.0,) * len(values)
        return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _part(index: int, wanted: Part) -> OwnRecordsScore:
    """The score that a part names.

    Raises:
        PluginError: There is none, it refuses its parameters, or it can't be combined; the key is the composite's.
    """
    part: SensitivityScore = built(sensitivity, wanted, ("scores", index))
    if not isinstance(part, OwnRecordsScore):
        message = f'"{wanted.type}" learns from noisy answers: it can\'t be combined yet'
        raise PluginError(message, ("scores", index, "type"))
    return part


def _shown(part: OwnRecordsScore, user: UserRecords) -> UserRecords:
    """The user as a part sees them, without what only others use."""
    times = user.times if part.uses_times else ()
    return replace(user, times=times, model=user.model if part.uses_model else None)
