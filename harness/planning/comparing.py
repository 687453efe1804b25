"""Noise policies side by side before anything is paid: the same targets, budget and groups, other levers.

From public constants alone, as the plan itself: no private record is read, and no session is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from harness.errors import ArgumentError, UserError
from harness.planning.asking import questions
from harness.planning.basis import Basis, Population
from harness.planning.completing import calibrated
from harness.planning.levers import parameters_for
from harness.planning.making import check_lever, propose
from harness.planning.plan import Plan, noise_to_signal, noise_to_signal_of_run
from harness.plugins import Group, PluginError, Proposal, noise, suggest
from harness.privacy.mechanism import Mechanism

ALL = "all"
SPEC, POLICY, BASELINE = "spec", "policy", "baseline"
_CLOSE = 1e-9


@dataclass(frozen=True)
class Alternative:
    """One way to keep the plan's targets. Public.

    Attributes:
        name: Of the policy, with what sets a baseline apart.
        policy: The noise policy.
        kind: ``spec``: the spec's own; ``policy``; ``baseline``: it does not follow the targets.
        mechanism: What would be executed; None: it can't be, for this `reason`.
        epsilon: ε of the mechanism's groups.
        noise_to_signal: Of the mechanism's groups, over the whole run; None while the plan waits for noisy answers.
        reason: Why there is no mechanism.
        note: What else should be known of it.
    """

    name: str
    policy: str
    kind: str
    mechanism: Mechanism | None = None
    epsilon: tuple[float, ...] = ()
    noise_to_signal: tuple[float, ...] | None = None
    reason: str = ""
    note: str = ""

    def document(self, weights: Mapping[str, float]) -> dict[str, Any]:
        """Plain data, the plan's groups in their order.

        Args:
            weights: Of every group of the plan, over which the mean is taken.
        """
        found = {g["name"]: g for g in self._groups()}
        ratios = dict(zip(found, self.noise_to_signal or (), strict=False))
        trained = sum(weights[name] for name in ratios)
        return {
            "name": self.name,
            "policy": self.policy,
            "kind": self.kind,
            "mechanism_digest": None if self.mechanism is None else self.mechanism.digest,
            "groups": [found.get(name, _absent(name)) for name in weights] if found else [],
            # One step has one noise: what all groups give to it adds up.
            "overall": 1 / sum(1 / ratio for ratio in ratios.values()) if ratios else None,
            "mean": sum(weights[name] * ratio for name, ratio in ratios.items()) / trained if ratios else None,
            "worst": max(ratios.values()) if len(ratios) == len(weights) else None,
            "worst_group": _worst(ratios, weights),
            "reason": self.reason or None,
            "note": self.note or None,
        }

    def _groups(self) -> Iterator[dict[str, Any]]:
        for i, g in enumerate(self.mechanism.groups if self.mechanism is not None else ()):
            assert self.mechanism is not None
            yield {
                "name": g.name,
                "epsilon": self.epsilon[i],
                "noise_multiplier": self.mechanism.noise_multiplier(i),
                "clip_norm": g.clip_norm,
                "sampling_rate": g.sampling_rate,
                "steps": g.steps,
                "examples_per_user": g.examples_per_user,
                "noise_to_signal": None if self.noise_to_signal is None else noise_to_signal(self.mechanism, i),
                "over_the_run": None if self.noise_to_signal is None else self.noise_to_signal[i],
            }


def _absent(name: str) -> dict[str, Any]:
    """A group that is not trained on: nothing is learnt from it, and it loses nothing."""
    nothing = ("noise_multiplier", "clip_norm", "examples_per_user", "noise_to_signal", "over_the_run")
    return {"name": name, "epsilon": 0.0, "sampling_rate": 0.0, "steps": 0, **dict.fromkeys(nothing)}


def _worst(ratios: Mapping[str, float], weights: Mapping[str, float]) -> str | None:
    if not ratios:
        return None
    left_out = [name for name in weights if name not in ratios]
    return left_out[0] if left_out else max(ratios, key=lambda name: ratios[name])


def compare(plan: Plan, names: Sequence[str]) -> tuple[Alternative, ...]:
    """The plan's own policy, other ones at its targets, and three baselines.

    Args:
        plan: Of a private run.
        names: Noise policies as a spec names them; ``all``: every one that comes with uudp or is installed.

    Returns:
        The spec's own policy first, then those named, without repeating it, then the baselines.

    Raises:
        ArgumentError: The plan has no targets, or there is no such policy.
    """
    targets = plan.targets
    if targets is None:
        raise ArgumentError("compare: the spec's noise policy protects nobody, so there are no targets to compare at")
    own = plan.spec.noise.type
    every = [name for name in noise.targets() if name != "none"] if ALL in names else []
    wanted = [*every, *(name for name in names if name != ALL)]
    for name in wanted:
        try:
            noise.get(name)
        except PluginError as error:
            near = suggest(name, error.candidates)
            raise ArgumentError(f"compare: {error.message}" + (f'; did you mean "{near}"?' if near else "")) from None
    ratios = _ratios(plan.mechanism) if not plan.pending else None
    assert plan.guarantee.epsilon is not None
    found = [Alternative(own, own, SPEC, plan.mechanism, plan.guarantee.epsilon, ratios)]
    # What is the same for all groups is a baseline, at the loosest ε and at the strictest one.
    others = [name for name in dict.fromkeys(wanted) if name not in (own, "uniform")]
    for one in (*(_by_policy(plan, name, targets) for name in others), *_baselines(plan, targets)):
        found.append(_like_another(one, found))
    return tuple(found)


def _like_another(one: Alternative, found: Sequence[Alternative]) -> Alternative:
    """With a note where it comes to the same mechanism as one before it."""
    if one.mechanism is None:
        return one
    twin = next((other.name for other in found if _same(other.mechanism, one.mechanism)), None)
    return one if twin is None else replace(one, note="; ".join(n for n in (one.note, f"the same as {twin} here") if n))


def _same(a: Mechanism | None, b: Mechanism) -> bool:
    return a is not None and a.digest == b.digest


def _by_policy(plan: Plan, name: str, targets: Mapping[str, float]) -> Alternative:
    """A policy with its defaults, at these targets."""
    budget = plan.spec.privacy.epsilon
    start = Alternative(name, name, POLICY)
    try:
        if not noise.get(name).private:
            return replace(start, reason="it adds no noise: nothing is promised to anybody")
        policy = noise.build(name, parameters_for(noise.get(name), targets, budget))
        proposal = propose(policy, plan.groups, budget, plan.basis.loaded)
        check_lever(proposal, plan.population)
    except PluginError as error:
        return replace(start, reason=_one_line(error.message))
    except ValidationError as error:
        needed = ", ".join(str(e["loc"][0]) for e in error.errors(include_url=False) if e["loc"])
        return replace(start, reason=f"it needs parameters that only a spec can give ({needed})")
    except UserError as error:
        refused = error.__context__  # its own words: the spec has no place for a policy that it does not name
        return replace(start, reason=_one_line(refused.message if isinstance(refused, PluginError) else str(error)))
    except (Exception, SystemExit) as error:  # somebody's own policy may raise anything
        return replace(start, reason=_one_line(f"it fails ({type(error).__name__}: {error})"))
    assert proposal.epsilon is not None
    exact = {g: targets[g] if abs(e / targets[g] - 1) < _CLOSE else e for g, e in proposal.epsilon.items()}
    note = "" if exact == dict(targets) else "has targets of its own, which differ from the spec's"
    return _planned(replace(start, note=note), plan, replace(proposal, epsilon=exact), plan.groups, plan.population)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _baselines(plan: Plan, targets: Mapping[str, float]) -> Iterator[Alternative]:
    loosest, strictest = max(targets.values()), min(targets.values())
    start = Alternative("", "uniform", BASELINE)
    words = {loosest: "the loosest target", strictest: "the strictest target"}
    for epsilon in dict.fromkeys((loosest, strictest)):
        note = "misses the stricter targets" if epsilon > strictest else "keeps every target"
        named = replace(start, name=f"uniform at ε = {epsilon:g}", note=f"{words[epsilon]} for all; {note}")
        yield _planned(named, plan, Proposal(dict.fromkeys(targets, epsilon)), plan.groups, plan.population)
    if loosest == strictest:
        return
    kept = tuple(g for g in plan.groups if targets[g.name] == loosest)
    share = sum(plan.population.weights[g.name] for g in kept)
    smaller = replace(
        plan.population,
        users=plan.population.users * share,
        weights={g.name: plan.population.weights[g.name] / share for g in kept},
    )
    named = replace(start, name="only the loosest", note="the stricter groups are not trained on at all")
    if not plan.population.weights_known:
        yield replace(named, reason="how many users are left waits for a noisy answer")
        return
    yield _planned(named, plan, Proposal(dict.fromkeys((g.name for g in kept), loosest)), kept, smaller)


def _planned(
    start: Alternative, plan: Plan, proposal: Proposal, groups: tuple[Group, ...], population: Population
) -> Alternative:
    """What calibration makes of a proposal, or why it can't."""
    basis: Basis = replace(plan.basis, proposal=proposal, groups=groups, loaded=_at_delta(plan))
    median = None if plan.choice is None else plan.choice.median
    try:
        found = calibrated(basis, population, questions(basis, population), median)
    except UserError as error:
        return replace(start, reason=str(error).removeprefix("noise: "))
    except (ArithmeticError, ValueError, MemoryError):
        return replace(start, reason="the accountant can't settle on these numbers")
    assert found.epsilon is not None
    ratios = _ratios(found.mechanism) if not plan.pending else None
    return replace(start, mechanism=found.mechanism, epsilon=found.epsilon, noise_to_signal=ratios)


def _at_delta(plan: Plan) -> Any:
    """The spec at the plan's δ, whoever is left out."""
    loaded = plan.basis.loaded
    privacy = loaded.spec.privacy.model_copy(update={"delta": plan.guarantee.delta})
    return replace(loaded, spec=loaded.spec.model_copy(update={"privacy": privacy}))


def _ratios(mechanism: Mechanism) -> tuple[float, ...]:
    return tuple(noise_to_signal_of_run(mechanism, i) for i in range(len(mechanism.groups)))


def document(plan: Plan, alternatives: Sequence[Alternative]) -> list[dict[str, Any]]:
    """All of them as plain data."""
    weights = {g.name: plan.population.weights[g.name] for g in plan.groups}
    return [one.document(weights) for one in alternatives]
