"""The training of gradient canaries in miniature: what an attacker sees of them, honest and broken."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from harness.auditing.one_run import Question, Test, run_tests
from harness.auditing.scores import observed_sigma, spread_scores, step_scores

DELTA = 1e-5
RATE = 0.25
STEPS = 60


@functools.cache
def honest_sigma(epsilon: float) -> float:
    """The noise multiplier of a Poisson-sampled Gaussian that costs `epsilon`."""
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    from harness.privacy.accounting import epsilon as cost

    low, high = 0.1, 100.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        event = SelfComposedDpEvent(PoissonSampledDpEvent(RATE, GaussianDpEvent(middle)), STEPS)
        low, high = (middle, high) if cost(event, DELTA) > epsilon else (low, middle)
    return high


@dataclass(frozen=True)
class Seen:
    """What the attacker has: z [steps, canaries], the claimed σ, and the truth."""

    z: np.ndarray
    sigma: np.ndarray
    included: np.ndarray

    def tests(self, confidence: float = 0.95) -> tuple[Test, ...]:
        """All three scores."""
        drawn = np.array([1 - RATE, RATE])[None, None]
        scores = {
            "claimed": step_scores(self.z, self.sigma, drawn),
            "observed": step_scores(self.z, observed_sigma(self.z, self.sigma), drawn),
            "spread": spread_scores(self.z, self.sigma),
        }
        questions = [Question("gradient", n, None, s, self.included) for n, s in scores.items()]
        return run_tests(questions, DELTA, confidence)


def simulate(
    rng: np.random.Generator,
    *,
    epsilon: float = 1.0,
    canaries: int = 200,
    noise: float = 1.0,
    clip: float = 1.0,
    repeated: bool = False,
    second_pass: bool = False,
) -> Seen:
    """A run that claims `epsilon`.

    Args:
        rng: The randomness.
        epsilon: The claim.
        canaries: Their number.
        noise: The real noise, of what is claimed.
        clip: How long a canary really is, of its clip norm.
        repeated: Every step has the same noise.
        second_pass: Each step's sum is applied once more, without noise, as a step that nobody accounts.
    """
    sigma = honest_sigma(epsilon)
    included = rng.random(canaries) < 0.5
    drawn = (rng.random((STEPS, canaries)) < RATE) & included
    normal = rng.standard_normal((1 if repeated else STEPS, canaries))
    z = clip * drawn + noise * sigma * normal
    if second_pass:
        z = np.concatenate([z, drawn.astype(float)])
    return Seen(z, np.full(z.shape, sigma), included)
