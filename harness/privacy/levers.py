"""From what a noise policy proposes to a mechanism: one function per lever, and public schedules cut into stretches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import BudgetError
from harness.plugins import Lever, Plateau, Proposal
from harness.privacy.accounting import charges_epsilon
from harness.privacy.calibration import by_clip_norm, by_examples, by_steps
from harness.privacy.mechanism import Mechanism, Stretch
from harness.privacy.rates import by_both, by_sampling_rate
from harness.privacy.terms import Terms


def calibrate(proposal: Proposal, targets: Mapping[str, float], terms: Terms) -> Mechanism:
    """Brings each group to its target by the lever that the policy names.

    Args:
        proposal: Names the lever.
        targets: ε_p per group, in all; the order of the groups is its order.
        terms: What they share.

    Returns:
        The mechanism, not yet verified (`calibration.verify`).

    Raises:
        ArgumentError: The lever can't do it with these terms.
        BudgetError: A target can't be reached.
    """
    spent = answers_epsilon(terms)
    if spent >= min(targets.values()):
        raise BudgetError(
            f"the noisy answers that decide levers come to ε = {spent:.4g}, which leaves nothing of "
            f"{min(targets.values()):g}; ask with more noise (privacy.session.noise_multiplier)"
        )
    targets = {p: target - spent for p, target in targets.items()}
    if proposal.lever is Lever.CLIP_NORM_AND_SAMPLING_RATE:
        return by_both(targets, terms, proposal.clip_share)
    levers = {
        Lever.CLIP_NORM: by_clip_norm,
        Lever.SAMPLING_RATE: by_sampling_rate,
        Lever.STEPS: by_steps,
        Lever.EXAMPLES: by_examples,
    }
    return levers[proposal.lever](targets, terms)


def answers_epsilon(terms: Terms) -> float:
    """ε of the answers that decide levers, at the δ that is set aside for them."""
    return charges_epsilon(terms.choice, terms.choice_delta, terms.accountant)


def stretches(plateaus: Sequence[Plateau], steps: int) -> tuple[Stretch, ...]:
    """A policy's plateaus as stretches of whole steps; multiples are those of the first step.

    Args:
        plateaus: In order; empty: no schedule.
        steps: T. A plateau that is shorter than half a step may vanish.

    Returns:
        Stretches that fill all steps; neighbours that are alike are one. Empty where nothing changes.
    """
    whole, done, begin = sum(p.share for p in plateaus), 0.0, 0
    found: list[Stretch] = []
    for plateau in plateaus:
        done += plateau.share
        end = round(steps * done / whole)
        if end > begin:
            found.append(Stretch(end - begin, plateau.noise, plateau.clip))
        begin = end
    merged: list[Stretch] = []
    for s in found:
        noise, clip = s.noise / found[0].noise, s.clip / found[0].clip
        if merged and (merged[-1].noise, merged[-1].clip) == (noise, clip):
            merged[-1] = Stretch(merged[-1].steps + s.steps, noise, clip)
        else:
            merged.append(Stretch(s.steps, noise, clip))
    return tuple(merged) if len(merged) > 1 else ()
