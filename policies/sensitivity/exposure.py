"""Sensitivity by how the base model sees a user's texts before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from harness.plugins import ModelView, OwnRecordsScore, Page, PluginParameters, UserRecords

Measure = Literal["loss", "tail", "gradient", "memorised"]

BOUNDS: Mapping[Measure, tuple[float, float]] = {
    "loss": (4.5, 7.0),
    "tail": (11.0, 21.0),
    "gradient": (0.2, 2.0),
    "memorised": (0.1, 0.3),
}
"""Public constants: about the 5th and 95th percentile of Shakespeare's characters, as SmolLM2-135M sees them."""


class ExposureParameters(PluginParameters):
    """Parameters of `exposure`."""

    measure: Measure = Field(
        default="loss",
        description="loss or tail (what surprises the model), gradient (what would pull at it), memorised (what it "
        "says by itself)",
    )
    low: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="a public constant: so much, or less, scores 0; default: by measure, "
        + ", ".join(f"{name} {low:g}" for name, (low, _) in BOUNDS.items()),
    )
    high: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="a public constant: so much, or more, scores 1; default: by measure, "
        + ", ".join(f"{name} {high:g}" for name, (_, high) in BOUNDS.items()),
    )

    @property
    def bounds(self) -> tuple[float, float]:
        """What scores 0, and what scores 1."""
        low, high = BOUNDS[self.measure]
        return low if self.low is None else self.low, high if self.high is None else self.high

    @model_validator(mode="after")
    def _rises(self) -> ExposureParameters:
        low, high = self.bounds
        if high <= low:
            key, other = ("high", f"low ({low:g})") if self.high is not None else ("low", f"high ({high:g})")
            raise ValueError(f"{key}: must be {'above' if key == 'high' else 'below'} {other}")
        if self.measure == "gradient" and low == 0:
            raise ValueError("low: must be above 0, since gradients are compared on a logarithmic scale")
        return self


class Exposure(OwnRecordsScore):
    """What the base model makes of a user before any training, from 0 (at most `low`) to 1 (at least `high`).

    `loss`: nats per token, the mean over examples; what the model does not expect is what it would have to memorise.
    `tail`: the same of the tenth of each example's tokens that surprise it most: names, numbers, a rare word.
    `gradient`: the l2 norm of the user's mean gradient by the last layer norm, on a logarithmic scale: how hard this
    user alone would pull at the model, and so what clipping takes and what a trace in the model could be.
    `memorised`: the share of tokens that are the model's own first guess; high where it knows the text by heart, or
    the text is trivial. It is no ratio to a compressor's entropy (zlib; Carlini et al. 2021, "Extracting Training
    Data from Large Language Models"): few words hardly compress, and would all seem memorised.

    Each user's first few examples are looked at, one user at a time (`uses_model`). Bounds are constants of the spec;
    another base model needs others. Costs no privacy; the score and the tier that follows from it are private.
    """

    Parameters = ExposureParameters
    parameters: ExposureParameters
    page = Page(
        formula="score = (measure − low) / (high − low), of `gradient` by logarithms; cut to [0, 1]",
        sees="What the frozen base model makes of the user's own first examples; no text.",
        when="What the model does not expect, or knows by heart, is what it may give away.",
        costs=(
            "No privacy, but a forward pass over every user before training. The score, and the tier that follows from "
            "it, are private; weights of the groups must be given or noisy."
        ),
        ends="0: the measure is at most `low`. 1: at least `high`.",
        example="{type: exposure, measure: tail}",
    )

    @property
    def uses_model(self) -> bool:
        """It looks at nothing else."""
        return True

    def score(self, user: UserRecords) -> float:
        """The measure between its bounds, cut to [0, 1]; 0 for a user without an example."""
        if user.model is None or not user.model.losses:
            return 0.0
        value, (low, high) = self._measured(user.model), self.parameters.bounds
        if value <= low:
            return 0.0
        if self.parameters.measure == "gradient":
            return min(1.0, math.log(value / low) / math.log(high / low))
        return min(1.0, (value - low) / (high - low))

    def _measured(self, view: ModelView) -> float:
        if self.parameters.measure == "gradient":
            return view.gradient_norm
        each = {"loss": view.losses, "tail": view.tails, "memorised": view.guessed}[self.parameters.measure]
        return math.fsum(each) / len(each)
