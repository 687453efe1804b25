"""A plan as plain data: what ``uudp plan --json`` prints and a run's ``plan.json`` holds."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.data.views import uses_model
from harness.errors import ArgumentError
from harness.planning.plan import Plan, noise_to_signal
from harness.planning.room import CPU_TOKENS
from harness.plugins import Segmenter, SensitivityScore, noise
from harness.privacy.accounting import charges_epsilon, choice_epsilon
from harness.privacy.mechanism import Charge
from harness.spec.merging import packaged_specs

VERSIONS = ("uudp", "dp-accounting", "torch", "transformers", "peft", "deepspeed", "ray")


def document(plan: Plan) -> dict[str, Any]:
    """All of a plan. What waits for noisy answers is null, and named in ``pending``."""
    spec, mechanism, population = plan.spec, plan.mechanism, plan.population
    denominator = mechanism.denominator(0) if population.users_known else None
    return {
        "name": spec.name,
        "mechanism_digest": mechanism.digest,
        "private": mechanism.private,
        "epsilon": plan.guarantee.total,
        "delta": plan.guarantee.delta,
        "accountant": plan.guarantee.accountant,
        "relation": mechanism.relation,
        "sampling": {"unit": mechanism.sampling_unit, "expected": denominator},
        "clipping": {"type": spec.clipping.type} | ({} if mechanism.adaptive is None else asdict(mechanism.adaptive)),
        "steps": mechanism.steps,
        "noise_std": mechanism.noise_std,
        "schedule": [asdict(stretch) for stretch in mechanism.schedule],
        "denominator": denominator,
        "population": {
            "users": population.users if population.users_known else None,
            "holdout_users": population.holdout_users if population.users_known else None,
            "from": population.source,
        },
        "weights_from": population.weights_source,
        "groups": [_group(plan, i) for i in range(len(mechanism.groups))],
        "tiers": _tiers(plan),
        "charges": _charges(plan),
        "holdout": _holdout(plan),
        "pending": list(plan.pending),
        "candidates": [] if plan.choice is None else [asdict(c) for c in plan.choice.candidates],
        "median_examples_per_user": None if plan.choice is None else plan.choice.median,
        "ledger": None if plan.ledger is None else plan.ledger.document(),
        "epsilon_by_step": [list(point) for point in plan.curve],
        "model": {
            "base": spec.model.base,
            "adapter": spec.model.adapter.model_dump(mode="json"),
            "dtype": spec.model.dtype,
        },
        "train": spec.train.model_dump(mode="json"),
        "compute": spec.compute.model_dump(mode="json"),
        "memory": None if plan.memory is None else plan.memory.document(),
        "claimed_by_group": plan.guarantee.largest is None,
        "plugins": _plugins(plan),
        "notes": notes(plan),
        "spec": plan.loaded.resolved,
        "origins": {key: _origin(place) for key, place in plan.loaded.origins.items()},
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
    }


def _origin(place: str) -> str:
    """Of a packaged spec its name there: where somebody installed it is nobody's business."""
    try:
        inside = Path(place).relative_to(packaged_specs())
    except (ValueError, ArgumentError):
        return place
    return f"specs/{inside.as_posix()}"


def _group(plan: Plan, i: int) -> dict[str, Any]:
    group, values, held = plan.mechanism.groups[i], plan.guarantee.epsilon, plan.basis.holds[i]
    found: dict[str, Any] = {
        "name": group.name,
        "segment": plan.groups[i].segment if len(held) == 1 else None,
        "tier": plan.groups[i].tier,
        "holds": [one.name for one in held] if len(held) > 1 else [],
        "weight": plan.population.weights[group.name] if plan.population.weights_known else None,
        "epsilon": None if values is None else values[i],
        "target_epsilon": None if plan.targets is None else plan.targets[group.name],
        "noise_multiplier": plan.mechanism.noise_multiplier(i),
        "clip_norm": group.clip_norm,
        "sampling_rate": group.sampling_rate,
        "steps": group.steps,
        "examples_per_user": group.examples_per_user,
        "canaries": group.canaries,
        "noise_to_signal": noise_to_signal(plan.mechanism, i) if not plan.levers_pending else None,
    }
    if plan.trade_offs:
        found |= {"delta_at_zero": plan.trade_offs[i][0][1], "curve": [list(p) for p in plan.trade_offs[i]]}
    return found


def _tiers(plan: Plan) -> dict[str, Any] | None:
    """Names of the risk tiers from the least at stake to the most, and the edges between them."""
    if plan.sensitivity is None:
        return None
    quantiles, edges = plan.sensitivity.quantiles, plan.edges
    return {
        "names": list(plan.sensitivity.names),
        "edges": None if edges is None else list(edges),
        "from": "noisy" if quantiles else "declared",
        "quantiles": list(quantiles),
    }


def _charges(plan: Plan) -> list[dict[str, Any]]:
    """Each with the ε that it would cost alone at the run's δ; composed with training, the charges cost less."""
    mechanism, delta = plan.mechanism, plan.guarantee.delta
    if delta is None:
        return []
    accountant = plan.basis.accountant

    def one(charge: Charge, alone: float) -> dict[str, Any]:
        noise = {"noise_multiplier": charge.noise_multiplier, "count": charge.count}
        return {"what": charge.what, "epsilon": alone, **noise, "pending": True}

    found = [one(c, charges_epsilon((c,), delta, accountant)) for c in mechanism.charges]
    return found + [one(c, choice_epsilon(mechanism, accountant)) for c in mechanism.choice]


def _holdout(plan: Plan) -> dict[str, Any] | None:
    """What private hold-out users are exposed to."""
    charge, delta = plan.mechanism.holdout, plan.guarantee.delta
    if charge is None or delta is None:
        return None
    value = charges_epsilon((charge,), delta, plan.basis.accountant)
    return {"epsilon": value, "noise_multiplier": charge.noise_multiplier, "evaluations": charge.count}


def _plugins(plan: Plan) -> list[dict[str, str]]:
    spec, rule = plan.spec, type(plan.segmenter)
    access = plan.segmenter.access.value
    return [
        {"kind": "source", "type": spec.data.source.type, "target": _name(type(plan.source)), "access": "records"},
        {"kind": "segmentation", "type": spec.segmentation.type, "target": _name(rule), "access": access},
        *_score_plugins(plan),
        {"kind": "noise", "type": spec.noise.type, "target": _name(noise.get(spec.noise.type)), "access": "none"},
    ]


def _score_plugins(plan: Plan) -> list[dict[str, str]]:
    if plan.spec.sensitivity is None or plan.sensitivity is None:
        return []
    pairs = zip(plan.spec.sensitivity.scores, plan.sensitivity.scores, strict=True)
    return [
        {"kind": "sensitivity", "type": one.type, "target": _name(type(score)), "access": score.access.value}
        for one, score in pairs
    ]


def _audit_in_words(plan: Plan) -> list[str]:
    found, audit = [], plan.spec.audit
    if count := sum(group.canaries for group in plan.mechanism.groups):
        found.append(
            f"{count} made users are planted for the audit, each in the training with probability ½: they count in "
            "what sums are divided by, and change nobody's ε."
        )
    if audit is not None and audit.user_inference is not None and audit.user_inference.fresh:
        found.append(
            f"For the audit, the last examples of every user (at most {audit.user_inference.examples}, and half of "
            "them) are left out of the training."
        )
    return found


def notes(plan: Plan) -> list[str]:
    """What a reader should know besides the numbers."""
    spec, found = plan.spec, []
    if not plan.mechanism.private:
        found.append("NOT PRIVATE: the noise policy adds no noise; nothing is promised to anybody.")
    if plan.population.source == "public":
        found.append("The number of users was counted in the data, by name; the spec declares it public.")
    if plan.asked.pending:
        found.append("Before training, noisy answers are asked for, and charged to every user whatever they say.")
    found += _choice_in_words(plan)
    if plan.guarantee.own_records:
        found.append("Groups depend on users' own records: which user is in which group is private.")
    found += _learnt_in_words(plan)
    found += _merged_in_words(plan)
    found += _dropped_in_words(plan)
    if any(map(uses_model, _rules(plan))):
        found.append(
            "The base model looks at users, one at a time, before groups are known; the run is charged before."
        )
    if plan.mechanism.holdout is not None:
        found.append("Hold-out users are protected too: what is said of them is noisy, within the budget of their own.")
    elif spec.data.holdout.users > 0 or spec.data.holdout.file is not None:
        found.append("Hold-out users gave up protection: exact statistics of their texts are published.")
    if spec.data.visibility == "public":
        found.append("The data are declared public: a demonstration. The accounting is that of private data.")
    if spec.evaluation.ordinary and plan.mechanism.private:
        found.append("For comparison, the same steps are also trained without clipping and noise.")
    found += _audit_in_words(plan)
    found += _full_in_words(plan)
    found += _sweep_in_words(plan)
    if plan.trade_offs:
        found.append(
            "Groups are sampled differently: the same (ε, δ) then hides different trade-offs. δ(0) and the curve of "
            "each group say what its users are exposed to at other ε."
        )
    if plan.memory is not None:
        found += plan.memory.notes()
    if plan.ledger is None:
        return [*found, "No ledger (privacy.ledger: null): what runs on this data set spend is not recorded."]
    return found + plan.ledger.notes()


def _sweep_in_words(plan: Plan) -> list[str]:
    """That a search is another command."""
    if plan.spec.sweep is None or plan.basis.search is not None:
        return []
    return ["The sweep block is not used by a single run; `uudp sweep SPEC --plan` shows what a search costs."]


def _learnt_in_words(plan: Plan) -> list[str]:
    """What is claimed where groups follow from noisy answers."""
    if plan.guarantee.largest is None:
        return []
    return [
        "Groups are learnt from noisy answers: only the run's ε is claimed of anybody; a group's is what its levers "
        "aim at."
    ]


def _merged_in_words(plan: Plan) -> list[str]:
    """Which groups were too small to stand alone."""
    found = []
    for group, held in zip(plan.groups, plan.basis.holds, strict=True):
        if len(held) > 1 and plan.spec.groups is not None and plan.spec.groups.smallest is not None:
            names = ", ".join(f'"{one.name}"' for one in held)
            how = "their public counts" if plan.population.weights_source == "public" else "the weights in the spec"
            found.append(
                f'Merged, since groups below {plan.spec.groups.smallest:g} of all users are, by {how}: "{group.name}" '
                f"holds {names}, with the strictest ε of theirs."
            )
    return found


def _dropped_in_words(plan: Plan) -> list[str]:
    """Which groups are not trained on."""
    names = ", ".join(f'"{one.name}"' for one in plan.basis.dropped)
    words = f"Dropped (groups.drop): nobody in {names} is trained on; numbers of users are those of the other groups."
    return [words] if names else []


def _rules(plan: Plan) -> tuple[Segmenter | SensitivityScore, ...]:
    """What puts users into groups."""
    return (plan.segmenter, *(plan.sensitivity.scores if plan.sensitivity is not None else ()))


def _full_in_words(plan: Plan) -> list[str]:
    """How units' norms are found where all parameters are trained, by public bounds alone."""
    spec = plan.spec
    if spec.model.adapter.type != "full":
        return []
    most = max(g.examples_per_user for g in plan.mechanism.groups) if plan.mechanism.sampling_unit == "user" else 1
    tokens = most * spec.data.max_tokens
    budget = CPU_TOKENS if plan.memory is None else plan.memory.tokens
    begin = "All parameters are trained: each unit's gradient norm is found in a pass of its own, without the gradient."
    if tokens <= budget:
        return [f"{begin} A unit's {tokens} tokens at most (examples_per_user × max_tokens) fit into one micro-batch."]
    return [
        f"{begin} A unit can have up to {tokens} tokens (examples_per_user × max_tokens), more than a micro-batch's "
        f"{budget}: the gradient of a unit that is cut is held whole for its norm, which takes one or two float32 "
        "copies of the model more on that worker; a larger compute.microbatch_tokens avoids it."
    ]


def _choice_in_words(plan: Plan) -> list[str]:
    choice, sampling = plan.choice, plan.spec.sampling
    if choice is None or not plan.asked.asks_median:
        return []
    if sampling.unit == "user":
        known = "" if choice.median is None else f" It came to {choice.median:.1f}."
        return [f"Examples per user and step: the noisy median of examples per user, which changes nobody's ε.{known}"]
    what = "What is sampled" if sampling.unit == "auto" else "How many examples a user keeps"
    words = (
        f"{what} is chosen by a noisy median of examples per user among the candidates below, all calibrated to the "
        "same ε at the same expected number of examples per step."
    )
    if choice.median is not None:
        chosen = f"{choice.terms.unit}, with {choice.terms.examples_per_user} example(s) per user"
        words += f" The median came to {choice.median:.1f}; chosen: {chosen}."
    return [words]


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
