"""What a noise policy does to each lever as risk rises: calibrated for a public example, for the pages of policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from harness.errors import UserError
from harness.plugins import Group, Lever, NoisePolicy, PluginError, Proposal
from harness.privacy.levers import calibrate, stretches
from harness.privacy.mechanism import Mechanism
from harness.privacy.terms import Terms

RISKS = (0.0, 0.25, 0.5, 0.75, 1.0)
BUDGET, STRENGTH = 8.0, 3.0
USERS, COHORT, STEPS, DELTA, CLIP_NORM = 20_000, 1_000, 500, 1e-6, 0.5
KEPT, DRAWN = 16, 1_000
"""Of example sampling: examples that users keep at most, and examples expected in a step."""
NAMES = {
    "clip_norm": "clip norm C_p",
    "sampling_rate": "sampling rate q_p",
    "steps": "steps T_p",
    "examples_per_user": "kept examples G_p",
    "noise_multiplier": "noise σ_p = s / C_p",
}
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class LeverCurves:
    """Every lever of five groups whose risk rises from 0 to 1. Computed of public constants alone.

    Attributes:
        targets: ε that each group asks for, by this policy.
        levers: By the keys of `NAMES`, one value per group; kept examples only where examples are sampled.
        by_example: Whether examples are sampled, not users.
        schedule: (noise, clip norm) of every plateau, as multiples of the first; empty: constant.
    """

    targets: tuple[float, ...]
    levers: Mapping[str, tuple[float, ...]]
    by_example: bool
    schedule: tuple[tuple[float, float], ...]

    @property
    def setting(self) -> str:
        """What was calibrated, in a sentence."""
        drawn = f"{DRAWN} examples a step, at most {KEPT} kept of a user" if self.by_example else f"{COHORT} a step"
        return (
            f"Five groups of equal size among {USERS:,} users, {drawn}, {STEPS} steps, δ = 10⁻⁶, mean clip norm "
            f"{CLIP_NORM:g}. A group of risk r is given the target ε = {BUDGET:g} / (1 + {STRENGTH:g} r). Calibrated "
            "as `uudp plan` does; the bars run from the least to the largest of a row."
        )

    def lines(self) -> list[str]:
        """A small table with bars, in at most 80 columns."""
        columns = range(len(RISKS))
        found = [_row("risk r", [f"{RISKS[i]:g}" for i in columns], "0 … 1")]
        rows = {"target ε": self.targets, **{NAMES[key]: values for key, values in self.levers.items()}}
        found += [_row(name, [_short(v[i]) for i in columns], _bars(v)) for name, v in rows.items()]
        if self.schedule:
            noise, clip = ([part[k] for part in self.schedule] for k in (0, 1))
            what, values = ("clip norms", clip) if len(set(noise)) == 1 else ("noise", noise)
            found += ["", f"during the run, {what} as multiples of the first step's, in equal parts:"]
            found += ["  " + " ".join(f"{value:.2f}" for value in values) + "  " + _bars(values)]
        return found


def parameters_for(cls: type[NoisePolicy], targets: Mapping[str, float], budget: float) -> dict[str, Any]:
    """Parameters that give a policy these targets, by group or as risks; its other ones keep their defaults."""
    fields = cls.Parameters.model_fields
    if "epsilon" in fields:
        return {"epsilon": dict(targets)}
    if {"risk", "strength"} <= set(fields):
        # ε / (1 + strength · risk), the largest risk being 1.
        weighed = {name: budget / target - 1 for name, target in targets.items()}
        strength = max(weighed.values())
        return {"risk": {n: w / strength if strength else 0.0 for n, w in weighed.items()}, "strength": strength}
    return {}


def levers_by_risk(cls: type[NoisePolicy]) -> LeverCurves | None:
    """The levers that a policy leads to; None where it promises nothing, or needs what only a spec can give."""
    names = tuple(f"risk {risk:g}" for risk in RISKS)
    wanted = {name: BUDGET / (1 + STRENGTH * risk) for name, risk in zip(names, RISKS, strict=True)}
    groups = [Group(name, name, weight=1 / len(names)) for name in names]
    try:
        policy = cls.of(cls.Parameters.model_validate(parameters_for(cls, wanted, BUDGET)))
        proposal = policy.propose(groups, BUDGET)
        if proposal.epsilon is None:
            return None
        mechanism = _calibrated(proposal, names)
    except (PluginError, ValidationError, UserError, ArithmeticError, ValueError, LookupError, TypeError):
        return None
    by_example = proposal.lever is Lever.EXAMPLES
    # Of sampled users, any number of examples may enter a mean: nothing is kept, and ε does not depend on it.
    keys = [key for key in NAMES if by_example or key != "examples_per_user"]
    levers = {key: tuple(_lever(mechanism, i, key) for i in range(len(names))) for key in keys}
    schedule = tuple((s.noise, s.clip) for s in mechanism.schedule)
    targets = tuple(float(proposal.epsilon[name]) for name in names)
    return LeverCurves(targets, levers, by_example, schedule)


def _calibrated(proposal: Proposal, names: tuple[str, ...]) -> Mechanism:
    by_example = proposal.lever is Lever.EXAMPLES
    terms = Terms(
        weights={name: 1 / len(names) for name in names},
        users=USERS,
        rate=DRAWN / (USERS * KEPT) if by_example else COHORT / USERS,
        steps=STEPS,
        delta=DELTA,
        clip_norm=CLIP_NORM,
        examples_per_user=KEPT if by_example else 1,
        unit="example" if by_example else "user",
        schedule=stretches(proposal.schedule, STEPS),
    )
    assert proposal.epsilon is not None
    return calibrate(proposal, {name: proposal.epsilon[name] for name in names}, terms)


def _lever(mechanism: Mechanism, group: int, key: str) -> float:
    if key == "noise_multiplier":
        return mechanism.noise_multiplier(group)
    return float(getattr(mechanism.groups[group], key))


def _row(name: str, cells: list[str], bars: str) -> str:
    return f"{name:<20}" + "".join(f"{cell:>9}" for cell in cells) + f"   {bars}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _bars(values: tuple[float, ...] | list[float]) -> str:
    """A bar per value; what is all alike lies in the middle."""
    low, high = min(values), max(values)
    if high - low <= 1e-3 * abs(high):
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
